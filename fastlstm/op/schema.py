"""The sequence op as ``torch.library`` knows it: ``torch.ops.fastlstm.lstm_sequence``.

One op forward, one backward, each with a fake implementation, so that torch.compile and
torch.export see through them. The fused backends implement both; which one is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fastlstm import tracing
from fastlstm.backends import pointers, select
from fastlstm.call import Call, Course, split
from fastlstm.op import second_order, vmap
from fastlstm.op.checks import check_backward, check_op

_FORWARD = "fastlstm::lstm_sequence"
_BACKWARD = "fastlstm::lstm_sequence_backward"

_WEIGHTS = (
    "Tensor[] weight_ih, Tensor[] bias_ih, Tensor[] bias_hh, Tensor[] weight_hh,"
    " Tensor[] weight_ch, Tensor[] weight_hr"
)
_COURSE = "int[] reverse, Tensor? lengths, Tensor? batch_sizes, Tensor? reset"

torch.library.define(
    _FORWARD,
    f"(Tensor input, {_WEIGHTS}, Tensor hx, Tensor cx, {_COURSE}, bool train,"
    " bool return_all_cells, int checkpoint_every, bool return_sequence, str backend)"
    " -> (Tensor y, Tensor hy, Tensor cy, Tensor cells, Tensor reserve)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor? dy, Tensor? dhy, Tensor? dcy, Tensor? dcells, Tensor y, Tensor reserve,"
    f" Tensor input, {_WEIGHTS}, Tensor hx, Tensor cx, {_COURSE}, bool[] needs,"
    " int checkpoint_every, str backend)"
    " -> (Tensor dinput, Tensor dweight_ih, Tensor dbias, Tensor dweight_hh, Tensor dweight_ch,"
    " Tensor dweight_hr, Tensor dhx, Tensor dcx)",
)


_INPUTS = len(Call._fields)


@torch.library.impl(_FORWARD, "default")
def _forward(*args: Any) -> tuple[Tensor, ...]:
    call, (train, return_all_cells, *options) = Call._make(args[:_INPUTS]), args[_INPUTS:]
    check_op(call, return_all_cells, *options)
    return run_forward(*pointers.plain_call(call), train, return_all_cells, *options)


@torch.library.impl(_BACKWARD, "default")
def _backward(*args: Any) -> tuple[Tensor, ...]:
    *sequences, needs, checkpoint_every, name = args
    call = Call._make(sequences[6:])
    check_op(call, sequences[3] is not None, checkpoint_every, True, name)
    grads, (y, reserve) = sequences[:4], sequences[4:6]
    check_backward(grads, y, reserve, call, needs, checkpoint_every)
    return _run_backward(*args)


def run_forward(*args: Any) -> tuple[Tensor, ...]:
    """The backend's own function, with the op's arguments; the last one is its name."""
    *inputs, checkpoint_every, return_sequence, name = args
    backend = select.get(name)
    if select.has_checkpoints(backend):
        return backend.forward(*inputs, checkpoint_every, return_sequence)
    if checkpoint_every or not return_sequence:
        raise ValueError(
            f"checkpoint_every, return_sequence: expected 0 and True for the op on {name!r}, "
            f"got {checkpoint_every} and {return_sequence}"
        )
    return backend.forward(*inputs)


def _run_backward(*args: Any) -> tuple[Tensor, ...]:
    *inputs, needs, checkpoint_every, name = args
    backend = select.get(name)
    options = (checkpoint_every,) if select.has_checkpoints(backend) else ()
    names = ("dy", "dhy", "dcy", "dcells", "y", "reserve")
    sequences = [
        None if tensor is None else pointers.plain(name, tensor)
        for name, tensor in zip(names, inputs[:6], strict=True)
    ]
    call = pointers.plain_call(Call._make(inputs[6:]))
    return backend.backward(*sequences, *call, needs, *options)


@torch.library.register_fake(_FORWARD)
def _forward_fake(*args: Any) -> tuple[Tensor, ...]:
    call, (train, return_all_cells, every, return_sequence, _) = (
        Call._make(args[:_INPUTS]),
        args[_INPUTS:],
    )
    input, hx, cx = call.input, call.hx, call.cx
    (G, B, P), H = hx.shape, cx.shape[2]
    is_packed = call.batch_sizes is not None
    rows = (input.shape[0],) if is_packed else (input.shape[0], B)
    reserve = input.new_empty(*rows, G, 5 * H) if train and not every else input.new_empty(0)
    if train and every:
        T = call.batch_sizes.shape[0] if call.batch_sizes is not None else input.shape[0]
        sums = torch.promote_types(input.dtype, torch.float32)
        reserve = input.new_empty(-(-T // every), G, B, P + H, dtype=sums)
    return (
        input.new_empty(*rows, G, P) if return_sequence else input.new_empty(0),
        input.new_empty(G, B, P),
        input.new_empty(G, B, H),
        input.new_empty(*rows, G, H) if return_all_cells else input.new_empty(0),
        reserve,
    )


@torch.library.register_fake(_BACKWARD)
def _backward_fake(*args: Any) -> tuple[Tensor, ...]:
    y, call, needs = args[4], Call._make(args[6 : 6 + _INPUTS]), args[6 + _INPUTS]
    (G, _, P), H = call.hx.shape, call.cx.shape[2]
    I = call.weight_ih[0].shape[1] if call.weight_ih else 0
    sizes = (call.input.shape, (G, 4 * H, I), (G, 4 * H), (G, 4 * H, P), (G, 3 * H), (G, P, H))
    asked = [y.new_empty(size if need else 0) for size, need in zip(sizes, needs, strict=True)]
    return *asked, y.new_empty(call.hx.shape), y.new_empty(call.cx.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call = Call._make(inputs[:_INPUTS])
    ctx.train, _, ctx.checkpoint_every, _, ctx.backend = inputs[_INPUTS:]
    y, _, _, _, reserve = output
    ctx.reverse, ctx.counts = call.reverse, [len(group) for group in call.groups]
    ctx.save_for_backward(y, reserve, call.lengths, call.batch_sizes, call.reset, *call.tensors)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any,
    needs: Sequence[Any],
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    dcells: Tensor | None,
    _: Tensor | None,
) -> tuple[Any, ...]:
    asked = [any(need) if isinstance(need, list) else need for need in needs[:7]]
    return *_gradients(ctx, asked, dy, dhy, dcy, dcells), *[None] * 9


def _gradients(ctx: Any, asked: Sequence[bool], *grads: Tensor | None) -> tuple[Any, ...]:
    """Of the first nine inputs of the op; ``asked`` is about the first seven."""
    if not ctx.train:
        raise RuntimeError("lstm_sequence: expected train=True for a backward pass, got False")
    # Of an output that was not asked for, and is empty, there is no gradient.
    grads = tuple(None if grad is None or grad.dim() == 1 else grad for grad in grads)
    saved = ctx.saved_tensors  # once: a checkpoint brings them back a single time
    y, reserve, lengths, batch_sizes, reset, input, hx, cx, *weights = saved
    groups = split(weights, ctx.counts)
    call = Call._make((input, *groups, hx, cx, ctx.reverse, lengths, batch_sizes, reset))
    needs = [*asked[:2], asked[2] or asked[3], *asked[4:]]
    rest = (y, reserve, *call, needs, ctx.checkpoint_every, ctx.backend)
    tensors = [t for t in (*grads, *saved) if t is not None]
    if tracing.is_forward_mode():
        gradients = second_order.gradients(grads, call, needs)
    elif any(map(tracing.is_batched_by_autograd, grads)):
        gradients = tracing.through_vmap(lambda *grads: _transformed_backward(*grads, *rest), grads)
    elif tracing.is_active():
        gradients = _transformed_backward(*grads, *rest)
    elif torch.is_grad_enabled() or tracing.is_watched(tensors):
        gradients = _lstm_sequence_backward(*grads, *rest)
    else:
        gradients = _run_backward(*grads, *rest)
    dinput, dweight_ih, dbias, *dweights, dhx, dcx = gradients
    # Both biases have one gradient, but not one memory: what is done to one must not reach the
    # other.
    dbias_hh = dbias.clone() if asked[2] and asked[3] else dbias
    dgroups = zip((dweight_ih, dbias, dbias_hh, *dweights), asked[1:], ctx.counts, strict=True)
    return dinput if asked[0] else None, *(_unbind(*group) for group in dgroups), dhx, dcx


class _LSTMSequence(torch.autograd.Function):
    """The op with its gradients, where only autograd sees it: 60 us a call less than by the op."""

    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        counts, course, *rest = options
        input, hx, cx, *weights = tensors
        inputs = (input, *split(weights, counts), hx, cx, *course, True, *rest)
        output = run_forward(*inputs)
        _save_for_backward(ctx, inputs, output)
        return output[:4]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        asked = [needs[1], *map(any, split(needs[4:], ctx.counts))]
        dinput, *dgroups, dhx, dcx = _gradients(ctx, asked, *grads)
        return None, dinput, dhx, dcx, *chain.from_iterable(dgroups)


def differentiable_lstm_sequence(call: Call, *options: Any) -> tuple[Tensor, ...]:
    """(y, hy, cy, cells) in training, for calls that nothing but autograd watches.

    ``options`` are the op's arguments after ``train``.
    """
    counts = [len(group) for group in call.groups]
    return _LSTMSequence.apply((counts, call.course, *options), *call.tensors)


def _unbind(gradient: Tensor, asked: bool, count: int) -> list[Tensor | None]:
    return list(gradient.unbind()) if asked else [None] * count


def _save_for_second_order(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grads, call, needs = inputs[:4], Call._make(inputs[6 : 6 + _INPUTS]), inputs[6 + _INPUTS]
    ctx.reverse, ctx.counts = call.reverse, [len(group) for group in call.groups]
    ctx.needs = needs
    ctx.save_for_backward(*grads, call.lengths, call.batch_sizes, call.reset, *call.tensors)
    ctx.set_materialize_grads(False)


def _differentiate_again(ctx: Any, _: Sequence[Any], *dgradients: Tensor | None) -> tuple[Any, ...]:
    *grads, lengths, batch_sizes, reset, input, hx, cx = (saved := ctx.saved_tensors)[:10]
    weights = saved[10:]
    groups = split(weights, ctx.counts)
    call = Call._make((input, *groups, hx, cx, ctx.reverse, lengths, batch_sizes, reset))
    dgrads, dcall = second_order.differentiate(dgradients, grads, call, ctx.needs)
    return *dgrads, None, None, *dcall[: -len(Course._fields)], *[None] * 7


lstm_sequence = torch.ops.fastlstm.lstm_sequence.default
_lstm_sequence_backward = torch.ops.fastlstm.lstm_sequence_backward.default


def _register(
    name: str, op: Any, save: Any, differentiate: Any, rule: Any
) -> Callable[..., tuple[Tensor, ...]]:
    """Autograd and vmap of the op for ``torch.library``; returns what ``torch.func`` tracing."""
    torch.library.register_autograd(
        name,
        lambda ctx, *grads: differentiate(ctx, ctx.needs_input_grad, *grads),
        setup_context=save,
    )
    torch.library.register_vmap(name, partial(rule, op))
    return tracing.transformable(op, save, differentiate, rule)


_transformed = _register(_FORWARD, lstm_sequence, _save_for_backward, _differentiate, vmap.forward)
_transformed_backward = _register(
    _BACKWARD, _lstm_sequence_backward, _save_for_second_order, _differentiate_again, vmap.backward
)


def transformed_lstm_sequence(call: Call, *options: Any) -> tuple[Tensor, ...]:
    """(y, hy, cy, cells) inside of a function that ``torch.func`` tracing."""
    train = torch.is_grad_enabled() and any(map(tracing.requires_grad, call.tensors))
    return _transformed(*call, train, *options)[:4]
