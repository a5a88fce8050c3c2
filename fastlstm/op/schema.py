"""The two ops of ``torch.library``, and their arguments as the flat rows that it asks for.

``torch.ops.fastlstm.lstm_sequence`` and ``torch.ops.fastlstm.lstm_sequence_backward`` have fake
implementations, so that ``torch.compile`` and ``torch.export`` see through them. The fused backends
implement both ops; which one runs is an argument. This is the only file where a call is a row of
arguments: everywhere else it is a :class:`fastlstm.call.Call`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm._C import direct_backward_op, direct_forward_op
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
    reserve_width,
)
from fastlstm.op.checks import check_backward, check_op
from fastlstm.options import CellOptions

FORWARD = "fastlstm::lstm_sequence"
BACKWARD = "fastlstm::lstm_sequence_backward"
# The same with a call's options. They are ops of their own: those above keep the schemas of saved
# programs.
FORWARD_WITH_OPTIONS = "fastlstm::lstm_sequence_with_options"
BACKWARD_WITH_OPTIONS = "fastlstm::lstm_sequence_with_options_backward"

_WEIGHTS = (
    "Tensor[] weight_ih, Tensor[] bias_ih, Tensor[] bias_hh, Tensor[] weight_hh,"
    " Tensor[] weight_ch, Tensor[] weight_hr"
)
_LAYOUT = "int[] reverse, Tensor? lengths, Tensor? batch_sizes, Tensor? reset"
_OPTIONS = (
    ", Tensor? hidden_mask, Tensor? keep_h, Tensor? keep_c, Tensor? norm_hh, Tensor? norm_c,"
    " float cell_clip"
)
_WITHOUT_NORMS = 8  # gradients of a call without options
_OF_FORWARD = 5  # arguments of the forward op beside those of the call


def _define(forward: str, backward: str, options: str = "", dnorms: str = "") -> None:
    torch.library.define(
        forward,
        f"(Tensor input, {_WEIGHTS}, Tensor hx, Tensor cx, {_LAYOUT}{options}, bool train,"
        " bool return_all_cells, int checkpoint_every, bool return_sequence, str backend)"
        " -> (Tensor y, Tensor hy, Tensor cy, Tensor cells, Tensor reserve)",
    )
    torch.library.define(
        backward,
        "(Tensor? dy, Tensor? dhy, Tensor? dcy, Tensor? dcells, Tensor y, Tensor reserve,"
        f" Tensor input, {_WEIGHTS}, Tensor hx, Tensor cx, {_LAYOUT}{options}, bool[] needs,"
        " int checkpoint_every, str backend)"
        " -> (Tensor dinput, Tensor dweight_ih, Tensor dbias, Tensor dweight_hh, Tensor dweight_ch,"
        f" Tensor dweight_hr, Tensor dhx, Tensor dcx{dnorms})",
    )


_define(FORWARD, BACKWARD)
_define(FORWARD_WITH_OPTIONS, BACKWARD_WITH_OPTIONS, _OPTIONS, ", Tensor dnorm_hh, Tensor dnorm_c")


def flatten_call(call: Call) -> tuple[Any, ...]:
    """A call as the ops' schemas have it."""
    w_ih, w_hh, b_ih, b_hh, w_ch, w_hr = map(list, call.weights)
    row = (call.input, w_ih, b_ih, b_hh, w_hh, w_ch, w_hr, call.hx, call.cx, *call.layout)
    return row if call.options is None else (*row, *call.options)


def unflatten_call(row: Sequence[Any]) -> Call:
    """The inverse of :func:`flatten_call`; also for a row of flags or dimensions."""
    input, w_ih, b_ih, b_hh, w_hh, w_ch, w_hr, hx, cx, *others = row
    weights = GroupWeights(w_ih, w_hh, b_ih, b_hh, w_ch, w_hr)
    options = CellOptions(*others[4:]) if len(others) > 4 else None
    return Call(input, weights, hx, cx, SequenceLayout(*others[:4]), options)


def flatten_forward(call: Call, wanted: Wanted, backend: str) -> tuple[Any, ...]:
    """The arguments of the forward op."""
    options = (wanted.train, wanted.cells, wanted.checkpoint_every, wanted.y)
    return (*flatten_call(call), *options, backend)


def unflatten_forward(row: Sequence[Any]) -> tuple[Call, Wanted, str]:
    """The inverse of :func:`flatten_forward`."""
    train, cells, checkpoint_every, y, backend = row[-_OF_FORWARD:]
    wanted = Wanted(train, y, cells, checkpoint_every)
    return unflatten_call(row[:-_OF_FORWARD]), wanted, backend


def flatten_backward(
    call: Call, saved: Saved, grads: OutputGradients, needs: Needs, backend: str
) -> tuple[Any, ...]:
    """The arguments of the backward op."""
    y, reserve, checkpoint_every = saved
    return (*grads, y, reserve, *flatten_call(call), list(needs), checkpoint_every, backend)


def unflatten_backward(
    row: Sequence[Any],
) -> tuple[Call, Saved, OutputGradients, Needs, str]:
    """The inverse of :func:`flatten_backward`."""
    *tensors, needs, checkpoint_every, backend = row
    y, reserve = tensors[4:6]
    saved = Saved(y, reserve, checkpoint_every)
    call = unflatten_call(tensors[6:])
    return call, saved, OutputGradients(*tensors[:4]), needs, backend


def _forward_by_backend(*row: Any) -> tuple[Tensor, ...]:
    call, wanted, name = unflatten_forward(row)
    backend = check_op(call, wanted, name)
    if not backend.CHECKPOINTS and (wanted.checkpoint_every or not wanted.y):
        raise ValueError(
            f"checkpoint_every, return_sequence: expected 0 and True for the op on {name!r}, "
            f"got {wanted.checkpoint_every} and {wanted.y}"
        )
    return tuple(backend.forward(call, wanted))


def _backward_by_backend(*row: Any) -> tuple[Tensor, ...]:
    call, saved, grads, flags, name = unflatten_backward(row)
    wanted = Wanted(True, True, grads.dcells is not None, saved.checkpoint_every)
    backend = check_op(call, wanted, name)
    check_backward(call, saved, grads, flags)
    found = backend.backward(call, saved, grads, Needs(*flags))
    if call.options is None:
        found = found[:_WITHOUT_NORMS]
    return tuple(gradient.to(call.input.dtype) for gradient in found)


@torch.library.impl(FORWARD, "default")
def _forward(*row: Any) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] | None = direct_forward_op(*row)
    return _forward_by_backend(*row) if outputs is None else outputs


@torch.library.impl(BACKWARD, "default")
def _backward(*row: Any) -> tuple[Tensor, ...]:
    outputs: tuple[Tensor, ...] | None = direct_backward_op(*row)
    return _backward_by_backend(*row) if outputs is None else outputs


torch.library.impl(FORWARD_WITH_OPTIONS, "default", _forward_by_backend)
torch.library.impl(BACKWARD_WITH_OPTIONS, "default", _backward_by_backend)


@torch.library.register_fake(FORWARD_WITH_OPTIONS)
@torch.library.register_fake(FORWARD)
def _forward_fake(*row: Any) -> tuple[Tensor, ...]:
    call, wanted, _ = unflatten_forward(row)
    input, (G, B, P), H, rows = call.input, call.hx.shape, call.cx.shape[2], call.rows
    nothing = input.new_empty(0)
    reserve = nothing
    if wanted.train and wanted.checkpoint_every:
        sums = torch.promote_types(input.dtype, torch.float32)
        states = (-(-call.T // wanted.checkpoint_every), G, B, P + H)
        reserve = input.new_empty(states, dtype=sums)
    elif wanted.train:
        reserve = input.new_empty(*rows, G, reserve_width(call))
    return (
        input.new_empty(*rows, G, P) if wanted.y else nothing.clone(),
        input.new_empty(G, B, P),
        input.new_empty(G, B, H),
        input.new_empty(*rows, G, H) if wanted.cells else nothing.clone(),
        reserve,
    )


@torch.library.register_fake(BACKWARD_WITH_OPTIONS)
@torch.library.register_fake(BACKWARD)
def _backward_fake(*row: Any) -> tuple[Tensor, ...]:
    call, saved, _, needs, _ = unflatten_backward(row)
    (G, _, P), H, I = call.hx.shape, call.cx.shape[2], call.input_size
    weights = (G, 4 * H, I), (G, 4 * H), (G, 4 * H, P), (G, 3 * H), (G, P, H)
    sizes = (tuple(call.input.shape), *weights)
    new_empty = saved.y.new_empty
    asked = [new_empty(size if need else 0) for size, need in zip(sizes, needs, strict=True)]
    found = (*asked, new_empty(call.hx.shape), new_empty(call.cx.shape))
    if call.options is None:
        return found
    norms = (call.options.norm_hh, call.options.norm_c)
    return *found, *[new_empty(0) if norm is None else new_empty(norm.shape) for norm in norms]


def _op(call: Call, plain: str, with_options: str) -> Any:
    name = plain if call.options is None else with_options
    return getattr(torch.ops.fastlstm, name.partition("::")[2]).default


def lstm_sequence(call: Call, wanted: Wanted, backend: str) -> Results:
    """Run a call as the op, for compilers and others that are to see it."""
    op = _op(call, FORWARD, FORWARD_WITH_OPTIONS)
    return Results(*op(*flatten_forward(call, wanted, backend)))


def lstm_sequence_backward(
    call: Call, saved: Saved, grads: OutputGradients, needs: Needs, backend: str
) -> Gradients:
    """Run the backward pass of a call as the op."""
    op = _op(call, BACKWARD, BACKWARD_WITH_OPTIONS)
    return Gradients(*op(*flatten_backward(call, saved, grads, needs, backend)))
