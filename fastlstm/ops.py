"""The sequence op as ``torch.library`` knows it: ``torch.ops.fastlstm.lstm_sequence``.

One op forward, one backward, each with a fake implementation, so that torch.compile and
torch.export see through them. The fused backends implement both; which one is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from fastlstm import dispatch

_FORWARD = "fastlstm::lstm_sequence"
_BACKWARD = "fastlstm::lstm_sequence_backward"

torch.library.define(
    _FORWARD,
    "(Tensor input, Tensor[] weight_ih, Tensor[] bias_ih, Tensor[] bias_hh, Tensor[] weight_hh,"
    " Tensor[] weight_ch, Tensor hx, Tensor cx, int[] reverse, Tensor? lengths,"
    " bool train, str backend) -> (Tensor y, Tensor hy, Tensor cy, Tensor reserve)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor? dy, Tensor? dhy, Tensor? dcy, Tensor y, Tensor reserve, Tensor? input,"
    " Tensor[] weight_ih, Tensor[] weight_hh, Tensor[] weight_ch, Tensor hx, Tensor cx,"
    " int[] reverse, Tensor? lengths, bool[] needs, str backend)"
    " -> (Tensor dinput, Tensor dweight_ih, Tensor dbias, Tensor dweight_hh, Tensor dweight_ch,"
    " Tensor dhx, Tensor dcx)",
)


@torch.library.impl(_FORWARD, "default")
def _forward(*args: Any) -> tuple[Tensor, ...]:
    *inputs, backend = args
    return dispatch.get(backend).forward(*inputs)


@torch.library.impl(_BACKWARD, "default")
def _backward(*args: Any) -> tuple[Tensor, ...]:
    *inputs, backend = args
    return dispatch.get(backend).backward(*inputs)


@torch.library.register_fake(_FORWARD)
def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    input, cx, train = args[0], args[7], args[10]
    (T, B), (G, _, H) = input.shape[:2], cx.shape
    return (
        input.new_empty(T, B, G, H),
        input.new_empty(G, B, H),
        input.new_empty(G, B, H),
        input.new_empty(T, B, G, 5 * H) if train else input.new_empty(0),
    )


@torch.library.register_fake(_BACKWARD)
def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    y, input, weight_ih, needs = args[3], args[5], args[6], args[13]
    T, B, G, H = y.shape
    I = weight_ih[0].shape[1] if weight_ih else 0
    sizes = (
        (T, B, G, 4 * H) if input is None else input.shape,
        (G, 4 * H, I),
        (G, 4 * H),
        (G, 4 * H, H),
        (G, 3 * H),
    )
    asked = [y.new_empty(size if need else 0) for size, need in zip(sizes, needs, strict=True)]
    return *asked, y.new_empty(G, B, H), y.new_empty(G, B, H)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, hx, cx, reverse, lengths = inputs[:10]
    ctx.train, ctx.backend = inputs[10:]
    y, _, _, reserve = output
    ctx.reverse, ctx.num_biases = reverse, (len(bias_ih), len(bias_hh))
    ctx.sizes = (len(weight_ih), len(weight_hh), len(weight_ch))
    # igates are not looked at again: only x is needed, for the gradient of weight_ih.
    x = input if weight_ih else None
    ctx.save_for_backward(y, reserve, x, hx, cx, lengths, *weight_ih, *weight_hh, *weight_ch)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dhy: Tensor | None, dcy: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    asked = [any(need) if isinstance(need, list) else need for need in ctx.needs_input_grad[:6]]
    return *_gradients(ctx, asked, dy, dhy, dcy), *[None] * 4


def _gradients(
    ctx: Any, asked: Sequence[bool], dy: Tensor | None, dhy: Tensor | None, dcy: Tensor | None
) -> tuple[Any, ...]:
    """Of the first eight inputs of the op; ``asked`` is about the first six."""
    if not ctx.train:
        raise RuntimeError("lstm_sequence: expected train=True for a backward pass, got False")
    y, reserve, input, hx, cx, lengths, *weights = ctx.saved_tensors
    weight_ih, weight_hh, weight_ch = _split(weights, ctx.sizes)
    needs = [asked[0], asked[1], asked[2] or asked[3], asked[4], asked[5]]
    arguments = (
        dy,
        dhy,
        dcy,
        y,
        reserve,
        input,
        weight_ih,
        weight_hh,
        weight_ch,
        hx,
        cx,
        ctx.reverse,
        lengths,
        needs,
    )
    tensors = [t for t in (dy, dhy, dcy, *ctx.saved_tensors) if t is not None]
    if torch.is_grad_enabled() or is_watched(tensors):
        gradients = _lstm_sequence_backward(*arguments, ctx.backend)
    else:
        gradients = dispatch.get(ctx.backend).backward(*arguments)
    dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dhx, dcx = gradients
    # Both biases have one gradient, but not one memory: what is done to one must not reach the
    # other.
    dbias_hh = dbias.clone() if asked[2] and asked[3] else dbias
    return (
        dinput if asked[0] else None,
        _unbind(dweight_ih, asked[1], ctx.sizes[0]),
        _unbind(dbias, asked[2], ctx.num_biases[0]),
        _unbind(dbias_hh, asked[3], ctx.num_biases[1]),
        _unbind(dweight_hh, asked[4], ctx.sizes[1]),
        _unbind(dweight_ch, asked[5], ctx.sizes[2]),
        dhx,
        dcx,
    )


class _LSTMSequence(torch.autograd.Function):
    """The op with its gradients, where only autograd sees it: 60 us a call less than by the op."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        counts, reverse, lengths, backend = call
        input, hx, cx, *weights = tensors
        groups = _split(weights, counts)
        inputs = (input, *groups, hx, cx, reverse, lengths, True)
        output = dispatch.get(backend).forward(*inputs)
        ctx.counts = counts
        _save_for_backward(ctx, (*inputs, backend), output)
        return output[:3]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        groups = _split(needs[4:], ctx.counts)
        asked = [needs[1], *map(any, groups)]
        dinput, *dgroups, dhx, dcx = _gradients(ctx, asked, *grads)
        return None, dinput, dhx, dcx, *chain.from_iterable(dgroups)


def differentiable_lstm_sequence(
    input: Tensor,
    groups: Sequence[Sequence[Tensor]],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, hy, cy) of ``lstm_sequence`` in training, for calls that nothing but autograd watches.

    ``groups`` are the lists of weights from weight_ih to weight_ch.
    """
    call = ([len(group) for group in groups], reverse, lengths, backend)
    return _LSTMSequence.apply(call, input, hx, cx, *chain.from_iterable(groups))


def _split(items: Iterable[Any], sizes: Sequence[int]) -> list[list[Any]]:
    items = iter(items)
    return [list(islice(items, size)) for size in sizes]


def _unbind(gradient: Tensor, asked: bool, count: int) -> list[Tensor | None]:
    return list(gradient.unbind()) if asked else [None] * count


def _refuse_second_derivative(ctx: Any, *_: Tensor | None) -> tuple[Any, ...]:
    raise RuntimeError(
        "lstm_sequence: fused backends have first derivatives only; "
        "backend='reference' has those of every order"
    )


torch.library.register_autograd(_FORWARD, _differentiate, setup_context=_save_for_backward)
torch.library.register_autograd(_BACKWARD, _refuse_second_derivative)

lstm_sequence = torch.ops.fastlstm.lstm_sequence.default
_lstm_sequence_backward = torch.ops.fastlstm.lstm_sequence_backward.default


def is_watched(tensors: Sequence[Tensor]) -> bool:
    """Whether something shall see the op itself: a compiler, tracer, mode or tensor subclass."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or not all(type(tensor) in (Tensor, torch.nn.Parameter) for tensor in tensors)
    )
