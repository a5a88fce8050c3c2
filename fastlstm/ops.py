"""The sequence op as ``torch.library`` knows it: ``torch.ops.fastlstm.lstm_sequence``.

One op forward, one backward, each with a fake implementation, so that torch.compile and
torch.export see through them. The fused backends implement both; which one is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm import dispatch

_FORWARD = "fastlstm::lstm_sequence"
_BACKWARD = "fastlstm::lstm_sequence_backward"

torch.library.define(
    _FORWARD,
    "(Tensor igates, Tensor[] weight_hh, Tensor[] weight_ch, Tensor hx, Tensor cx,"
    " bool[] reverse, Tensor? lengths, bool train, str backend)"
    " -> (Tensor y, Tensor hy, Tensor cy, Tensor reserve)",
)
torch.library.define(
    _BACKWARD,
    "(Tensor? dy, Tensor? dhy, Tensor? dcy, Tensor y, Tensor reserve,"
    " Tensor[] weight_hh, Tensor[] weight_ch, Tensor hx, Tensor cx,"
    " bool[] reverse, Tensor? lengths, bool needs_dweight_hh, str backend)"
    " -> (Tensor digates, Tensor dweight_hh, Tensor dweight_ch, Tensor dhx, Tensor dcx)",
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
def _forward_fake(
    igates: Tensor,
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    train: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    T, B, G, four_h = igates.shape
    H = four_h // 4
    return (
        igates.new_empty(T, B, G, H),
        igates.new_empty(G, B, H),
        igates.new_empty(G, B, H),
        igates.new_empty(T, B, G, 5 * H) if train else igates.new_empty(0),
    )


@torch.library.register_fake(_BACKWARD)
def _backward_fake(
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    needs_dweight_hh: bool,
    backend: str,
) -> tuple[Tensor, ...]:
    T, B, G, H = y.shape
    return (
        y.new_empty(T, B, G, 4 * H),
        y.new_empty(G, 4 * H, H) if needs_dweight_hh else y.new_empty(0),
        y.new_empty(G, 3 * H) if weight_ch else y.new_empty(0),
        y.new_empty(G, B, H),
        y.new_empty(G, B, H),
    )


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, weight_hh, weight_ch, hx, cx, ctx.reverse, lengths, ctx.train, ctx.backend = inputs
    y, _, _, reserve = output
    ctx.num_groups, ctx.peephole = len(weight_hh), bool(weight_ch)
    ctx.save_for_backward(y, reserve, hx, cx, lengths, *weight_hh, *weight_ch)
    ctx.set_materialize_grads(False)


def _differentiate(
    ctx: Any, dy: Tensor | None, dhy: Tensor | None, dcy: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    if not ctx.train:
        raise RuntimeError("lstm_sequence: expected train=True for a backward pass, got False")
    y, reserve, hx, cx, lengths, *weights = ctx.saved_tensors
    weight_hh, weight_ch = weights[: ctx.num_groups], weights[ctx.num_groups :]
    needs_dweight_hh = any(ctx.needs_input_grad[1])
    digates, dweight_hh, dweight_ch, dhx, dcx = torch.ops.fastlstm.lstm_sequence_backward(
        dy,
        dhy,
        dcy,
        y,
        reserve,
        weight_hh,
        weight_ch,
        hx,
        cx,
        ctx.reverse,
        lengths,
        needs_dweight_hh,
        ctx.backend,
    )
    return (
        digates,
        list(dweight_hh.unbind()) if needs_dweight_hh else [None] * ctx.num_groups,
        list(dweight_ch.unbind()) if ctx.peephole else [],
        dhx,
        dcx,
        None,
        None,
        None,
        None,
    )


def _refuse_second_derivative(ctx: Any, *_: Tensor | None) -> tuple[Any, ...]:
    raise RuntimeError(
        "lstm_sequence: fused backends have first derivatives only; "
        "backend='reference' has those of every order"
    )


torch.library.register_autograd(_FORWARD, _differentiate, setup_context=_save_for_backward)
torch.library.register_autograd(_BACKWARD, _refuse_second_derivative)

lstm_sequence = torch.ops.fastlstm.lstm_sequence
