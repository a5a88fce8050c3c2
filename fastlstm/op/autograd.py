"""The gradients of the sequence op, for autograd, ``torch.library`` and ``torch.func`` alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from fastlstm.backends import select
from fastlstm.call import (
    Call,
    Gradients,
    GroupWeights,
    Needs,
    OutputGradients,
    Results,
    Saved,
    SequenceLayout,
    Wanted,
    split,
)
from fastlstm.op import functorch, schema, second_order, vmap
from fastlstm.options import CellOptions
from fastlstm.tracing import Mode, find_mode


def lstm_sequence(
    backend: ModuleType, call: Call, wanted: Wanted, weights: GroupWeights | None = None
) -> Results:
    """Run a call whose gradients are recorded, where nothing but autograd watches.

    Autograd's own function takes 60 us a call less than the op of ``torch.library``.

    Args:
        backend: what runs the call.
        call: the call.
        wanted: the outputs.
        weights: those of which the call's are copies in autocast's dtype. They then get the
            gradients, which are not rounded to that dtype on the way. Default: the call's.
    """
    of_weights = chain.from_iterable(call.weights if weights is None else weights)
    tensors = (call.input, call.hx, call.cx, *of_weights)
    if call.options is not None:
        tensors += tuple(call.options.gains)
    return Results(*_LSTMSequence.apply((backend, call, wanted), *tensors))


class _LSTMSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        backend, call, wanted = arguments
        results = backend.forward(call, wanted)
        _save(ctx, call, results, wanted, backend)
        return results[:4]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs_input, _, _, *needs_weights = ctx.needs_input_grad[1:]
        asked = GroupWeights._make(map(any, split(needs_weights, ctx.counts)))
        found = _gradients(ctx, needs_input, asked, OutputGradients(*grads))
        of_weights = chain.from_iterable(found.weights)
        gains = [] if found.options is None else found.options.gains
        return None, found.input, found.hx, found.cx, *of_weights, *gains


def _save(ctx: Any, call: Call, results: Results, wanted: Wanted, backend: ModuleType) -> None:
    ctx.train, ctx.checkpoint_every, ctx.backend = wanted.train, wanted.checkpoint_every, backend
    save_call(ctx, call, results.y, results.reserve)


def save_call(ctx: Any, call: Call, *others: Tensor | None) -> None:
    """Save a call, and other tensors, for the backward pass of an autograd function."""
    ctx.reverse, ctx.counts = call.layout.reverse, [len(group) for group in call.weights]
    tensors = [*call.layout[1:], call.input, call.hx, call.cx, *chain.from_iterable(call.weights)]
    ctx.cell_clip = None
    if call.options is not None:
        *of_options, ctx.cell_clip = call.options
        tensors += of_options
    ctx.save_for_backward(*others, *tensors)
    ctx.set_materialize_grads(False)


def saved_call(ctx: Any, num_others: int) -> tuple[Call, tuple[Any, ...]]:
    """The call and the other tensors that :func:`save_call` saved."""
    saved = ctx.saved_tensors  # once: a checkpoint brings the tensors back a single time
    layout = SequenceLayout(ctx.reverse, *saved[num_others : num_others + 3])
    input, hx, cx, *weights = saved[num_others + 3 :]
    options = None
    if ctx.cell_clip is not None:
        options = CellOptions(*[*weights[sum(ctx.counts) :], ctx.cell_clip])
    call = Call(input, GroupWeights(*split(weights, ctx.counts)), hx, cx, layout, options)
    return call, saved[:num_others]


def needs_of(needs_input: bool, asked: Any) -> Needs:
    """The flags of a backward pass, from one flag for each field of :class:`GroupWeights`.

    It computes one gradient for both biases.
    """
    w_ih, w_hh, b_ih, b_hh, w_ch, w_hr = asked
    return Needs(needs_input, w_ih, b_ih or b_hh, w_hh, w_ch, w_hr)


def tensor_gradients(found: Gradients, needs_input: bool, asked: Any, call: Call) -> Call:
    """The gradients of a call's tensors, in their place; None for those not asked for."""
    # The gradients of both biases are equal; a copy, so that an in-place change of one does not
    # change the other.
    dbias_hh = found.bias.clone() if asked.bias_ih and asked.bias_hh else found.bias
    biases = (found.bias, dbias_hh)
    stacked = (found.weight_ih, found.weight_hh, *biases, found.weight_ch, found.weight_hr)
    dweights: Any = [
        list(gradient) if is_asked else [None] * len(parameter)
        for gradient, is_asked, parameter in zip(stacked, asked, call.weights, strict=True)
    ]
    dinput: Any = found.input if needs_input else None
    options = call.options
    if options is not None and options.norm_hh is not None:
        norm_c = None if options.norm_c is None else found.norm_c
        options = options._replace(norm_hh=found.norm_hh, norm_c=norm_c)
    return Call(dinput, GroupWeights(*dweights), found.hx, found.cx, call.layout, options)


def _gradients(ctx: Any, needs_input: bool, asked: Any, grads: OutputGradients) -> Call:
    """The gradients of a call's tensors, in the place of the tensors; None if not asked for.

    Args:
        ctx: what :func:`_save` filled.
        needs_input: whether that of the input is asked for.
        asked: the same for each parameter.
        grads: of the outputs; None is zero.
    """
    if not ctx.train:
        raise RuntimeError("lstm_sequence: expected train=True for a backward pass, got False")
    # An output that was not wanted is empty, and has no gradient.
    grads = OutputGradients(*[None if g is None or g.dim() == 1 else g for g in grads])
    call, (y, reserve) = saved_call(ctx, 2)
    saved = Saved(y, reserve, ctx.checkpoint_every)
    found = _run_backward(call, saved, grads, needs_of(needs_input, asked), ctx.backend)
    return tensor_gradients(found, needs_input, asked, call)


def _run_backward(
    call: Call, saved: Saved, grads: OutputGradients, needs: Needs, backend: ModuleType
) -> Gradients:
    """The gradients, by the backend, or by differentiable code where they are watched."""
    given = [grad for grad in grads if grad is not None]
    weights = chain.from_iterable(call.weights)
    mode = find_mode([*given, saved.y, saved.reserve, call.input, call.hx, call.cx, *weights])
    if mode is Mode.FORWARD_AD:
        return second_order.gradients(call, grads, needs)
    is_batched = any(is_legacy_batchedtensor(grad) for grad in given)
    if mode in (Mode.AUTOGRAD, Mode.NONE) and not torch.is_grad_enabled() and not is_batched:
        return backend.backward(call, saved, grads, needs)
    if call.options is not None:
        if mode is Mode.TRACED and not torch.is_grad_enabled():
            return schema.lstm_sequence_backward(call, saved, grads, needs, select.name(backend))

        def plain(*grads: Tensor | None) -> Gradients:
            return second_order.gradients(call, OutputGradients(*grads), needs)

        return Gradients(*functorch.through_vmap(plain, grads)) if is_batched else plain(*grads)
    name = select.name(backend)

    def transformed(*grads: Tensor | None) -> Gradients:
        row = schema.flatten_backward(call, saved, OutputGradients(*grads), needs, name)
        return Gradients(*_transformed_backward(*row))

    if is_batched:
        return Gradients(*functorch.through_vmap(transformed, grads))
    if mode is Mode.FUNCTORCH:
        return transformed(*grads)
    return schema.lstm_sequence_backward(call, saved, grads, needs, name)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call, wanted, backend = schema.unflatten_forward(inputs)
    _save(ctx, call, Results(*output), wanted, select.get(backend))


def _differentiate(ctx: Any, needs: Sequence[Any], *grads: Tensor | None) -> tuple[Any, ...]:
    flags: Any = schema.unflatten_call([*needs[:9], *[None] * 4])
    asked = GroupWeights._make(any(f) if isinstance(f, list) else f for f in flags.weights)
    found = _gradients(ctx, flags.input, asked, OutputGradients(*grads[:4]))
    row = [*schema.flatten_call(found)[:9], *[None] * 4]
    if found.options is not None:
        row += [None, None, None, found.options.norm_hh, found.options.norm_c, None]
    return *row, *[None] * (len(needs) - len(row))


def _save_for_second_order(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    call, _, grads, needs, _ = schema.unflatten_backward(inputs)
    ctx.needs = Needs(*needs)
    save_call(ctx, call, *grads)


def _differentiate_again(ctx: Any, _: Sequence[Any], *dgradients: Tensor | None) -> tuple[Any, ...]:
    call, grads = saved_call(ctx, 4)
    dgrads, dcall = second_order.differentiate(dgradients, OutputGradients(*grads), call, ctx.needs)
    return *dgrads, None, None, *schema.flatten_call(dcall)[:9], *[None] * 7


def _register(
    name: str, save: Any, differentiate: Any, rule: Any
) -> Callable[..., tuple[Tensor, ...]]:
    """Register autograd and vmap of an op; return the op as ``torch.func`` transforms it."""
    op = getattr(torch.ops.fastlstm, name.partition("::")[2]).default
    torch.library.register_autograd(
        name,
        lambda ctx, *grads: differentiate(ctx, ctx.needs_input_grad, *grads),
        setup_context=save,
    )
    torch.library.register_vmap(name, partial(rule, op))
    return functorch.transformable(op, save, differentiate, rule)


_with_options = torch.ops.fastlstm.lstm_sequence_with_options.default
torch.library.register_autograd(
    schema.FORWARD_WITH_OPTIONS,
    lambda ctx, *grads: _differentiate(ctx, ctx.needs_input_grad, *grads),
    setup_context=_save_for_backward,
)
torch.library.register_vmap(schema.FORWARD_WITH_OPTIONS, partial(vmap.one_by_one, _with_options))


_transformed = _register(schema.FORWARD, _save_for_backward, _differentiate, vmap.forward)
_transformed_backward = _register(
    schema.BACKWARD, _save_for_second_order, _differentiate_again, vmap.backward
)


def transformed_lstm_sequence(call: Call, wanted: Wanted, backend: str) -> Results:
    """Run a call inside a function that ``torch.func`` transforms."""
    return Results(*_transformed(*schema.flatten_forward(call, wanted, backend)))
