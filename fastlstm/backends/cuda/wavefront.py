"""The layers of one LSTM at once by ``csrc/cuda``: a wavefront, one persistent launch each way.

A layer does a step while the one below it does the next. T + L - 1 meetings of blocks take the
place of L * T, h goes from layer to layer without a product between them, and all layers' blocks
work at once. All layers' W_hh, and W_ih of all but the first, must fit on chip together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlstm.backends import gpu, pointers
from fastlstm.backends.cuda import recurrence
from fastlstm.backends.gpu import matmuls
from fastlstm.call import Call, Problem


def refusal(kernels: Any, problem: Problem, direction: str) -> str | None:
    """None, or why the layers of ``problem`` run one after the other in that pass."""
    p = problem
    apart = {
        "a layer's second direction begins at the last step of the layer below": p.G > 1,
        "there is a single step": p.T == 1,
        "cells of every step are asked for": p.return_all_cells,
        "checkpoints are kept of one layer at a time": p.checkpoint_every,
        "there is dropout between them": p.dropout,
        "a PackedSequence is padded around each": p.batch_sizes,
        "torch.func transforms the call": p.transformed,
    }
    for reason, holds in apart.items():
        if holds:
            return reason
    number = torch.cuda.current_device() if p.device == "cuda" else 0
    sizes = (recurrence.DTYPES[p.dtype], p.B, p.L, p.H)
    return _slower(kernels, direction, sizes, p.T, gpu.precision(), number)


@lru_cache(maxsize=1024)
def _slower(
    kernels: Any,
    direction: str,
    sizes: tuple[str, int, int, int],
    T: int,
    precision: str,
    number: int,
) -> str | None:
    """None, or why a wavefront does not fit, or is expected to take longer than its layers.

    What products between layers take is not in the model.
    """
    dtype, B, L, H = sizes
    expected = []
    for layered, groups in ((True, L), (False, 1)):
        shape = (dtype, B, groups, H)
        plan, reason = recurrence.best_plan(kernels, direction, shape, precision, number, layered)
        if plan is None:  # of one layer too only if of all
            return reason
        how = {"products": precision, "plan": plan, "costs": kernels.costs()}
        ns = kernels.step_ns(direction, *shape, layered=layered, **how)
        expected.append(ns / 1000)
    wave, step = expected
    if (T + L - 1) * wave < T * L * step:
        return None
    return f"a model expects {wave:.1f} us for a step of all at once, {step:.1f} us for one of each"


def forward(kernels: Any, call: Call, train: bool) -> tuple[Tensor, ...]:
    """y (T, B, H) of the last layer, hy and cy (L, B, H), and what the backward pass needs.

    That is y of the other layers (L - 1, T, B, H) and reserve (L, T, B, 5H), both empty unless
    ``train``. The groups of ``call`` are layers: all but the first read the y of the one before
    them, and their weight_ih is (4H, H). Time goes forward.
    """
    (T, B), (L, _, H) = call.input.shape[:2], call.cx.shape
    new_empty = call.input.new_empty
    y, hy, cy = new_empty(T, B, H), new_empty(L, B, H), new_empty(L, B, H)
    below = new_empty(L - 1, T, B, H) if train else new_empty(0)
    reserve = new_empty(L, T, B, 5 * H) if train else new_empty(0)
    first = [gpu.stack(weights[:1]) for weights in (call.weight_ih, call.bias_ih, call.bias_hh)]
    assert first[0] is not None
    igates = pointers.unit_stride(matmuls.project(call.input, first[0], *first[1:]))
    bias = _bias(call)
    weight_ih, weight_hh = gpu.stack(call.weight_ih[1:]), gpu.stack(call.weight_hh)
    assert weight_ih is not None and weight_hh is not None
    w_ch, _owner = pointers.grid(call.weight_ch)
    hx, cx = call.hx.contiguous(), call.cx.contiguous()
    launch, workspace = _launch(kernels, "forward", y, call)
    kernels.forward(
        *launch.sizes,
        **launch.arguments,
        layered=True,
        igates=igates.data_ptr(),
        igates_stride=pointers.outer_strides(igates, False),
        weight_ih=(weight_ih.data_ptr(), weight_ih.stride(0)),
        bias_ih=(bias.data_ptr(), bias.stride(0)),
        weight_hh=(weight_hh.data_ptr(), weight_hh.stride(0)),
        weight_ch=w_ch,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        y=y.data_ptr(),
        hy=hy.data_ptr(),
        cy=cy.data_ptr(),
        cells=0,
        states=pointers.address(below if train else None),
        reserve=pointers.address(reserve if train else None),
        workspace=workspace.data_ptr(),
        products=launch.products,
        plan=launch.plan,
    )
    return y, hy, cy, below, reserve


def backward(
    kernels: Any,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    y: Tensor,
    below: Tensor,
    reserve: Tensor,
    call: Call,
    needs: Sequence[bool],
) -> tuple[Any, ...]:
    """Gradients of input, weight_ih, bias, weight_hh, weight_ch, hx and cx of ``call``.

    Layers go one after the other where this pass is expected to be faster so.

    Args:
        grads: dy (T, B, H) of the last layer, dhy and dcy (L, B, H); None for zero.
        y, below, reserve: as :func:`forward` returned them.
        needs: which of the first five are asked for.

    Returns:
        Those of weights are over the layers, weight_ih's a list; what is not asked for is None.
    """
    (T, B, H), L = y.shape, len(reserve)
    sizes = (recurrence.DTYPES[y.dtype], B, L, H)
    number = y.device.index if y.device.type == "cuda" else 0
    slower = _slower(kernels, "backward", sizes, T, gpu.precision(), number)
    run = _recur_at_once if slower is None else _recur_one_by_one
    weight_hh = gpu.stack(call.weight_hh)
    assert weight_hh is not None
    ys = [*below, y]
    dgates, dbias, dweight_ch, dhx, dcx = run(
        kernels, grads, ys, reserve, call, weight_hh, needs[2], needs[4]
    )
    dinput = dweight_ih = dweight_hh = None
    if needs[0]:
        dinput = matmuls.dinput(dgates[0], call.input, call.weight_ih[:1])
    if needs[1]:
        read = [call.input, *below]
        dweight_ih = [
            matmuls.dweight_ih(d, x, call.lengths)[0] for d, x in zip(dgates, read, strict=True)
        ]
    if needs[3]:
        course = ([False], call.lengths, call.reset)
        each = zip(dgates, ys, call.hx.split(1), strict=True)
        dweight_hh = torch.cat(
            [matmuls.dweight_hh(d, h.unsqueeze(2), hx, *course) for d, h, hx in each]
        )
    return dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dhx, dcx


def _recur_at_once(
    kernels: Any,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    ys: Sequence[Tensor],
    reserve: Tensor,
    call: Call,
    weight_hh: Tensor,
    needs_bias: bool,
    needs_weight_ch: bool,
) -> tuple[Any, ...]:
    """A list of the layers' dgates (T, B, 1, 4H); dbias, dweight_ch or empty; dhx and dcx."""
    L, y, (T, B, H) = len(ys), ys[-1], ys[-1].shape
    new_empty = y.new_empty
    launch, workspace = _launch(kernels, "backward", y, call)
    assert launch.plan is not None
    dy = None if grads[0] is None else pointers.unit_stride(grads[0])
    dhy, dcy = gpu.contiguous(grads[1]), gpu.contiguous(grads[2])
    dgates = new_empty(L, T, B, 4 * H)
    tiles, sums = launch.plan["tiles"], torch.float32
    dbias = new_empty(tiles, L, 4 * H, dtype=sums) if needs_bias else None
    dweight_ch = new_empty(tiles, L, 3 * H, dtype=sums) if needs_weight_ch else None
    weight_ih = gpu.stack(call.weight_ih[1:])
    assert weight_ih is not None
    w_ch, _owner = pointers.grid(call.weight_ch)
    hx, cx = call.hx.contiguous(), call.cx.contiguous()
    dhx, dcx = torch.empty_like(hx), torch.empty_like(cx)
    kernels.backward(
        *launch.sizes,
        **launch.arguments,
        layered=True,
        dy=pointers.address(dy),
        dy_stride=pointers.outer_strides(dy, False),
        dhy=pointers.address(dhy),
        dcy=pointers.address(dcy),
        dcells=0,
        reserve=reserve.data_ptr(),
        y=y.data_ptr(),
        weight_ih=(weight_ih.data_ptr(), weight_ih.stride(0)),
        weight_hh=(weight_hh.data_ptr(), weight_hh.stride(0)),
        weight_ch=w_ch,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        digates=dgates.data_ptr(),
        digates_stride=(dgates.stride(1), dgates.stride(2), dgates.stride(0)),
        dbias=pointers.address(dbias),
        dweight_ch=pointers.address(dweight_ch),
        dhx=dhx.data_ptr(),
        dcx=dcx.data_ptr(),
        workspace=workspace.data_ptr(),
        products=launch.products,
        plan=launch.plan,
    )
    of_layers = list(dgates.unsqueeze(3))
    total = recurrence.total
    return of_layers, total(dbias, y), total(dweight_ch, y), dhx, dcx


def _recur_one_by_one(
    kernels: Any,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    ys: Sequence[Tensor],
    reserve: Tensor,
    call: Call,
    weight_hh: Tensor,
    needs_bias: bool,
    needs_weight_ch: bool,
) -> tuple[Any, ...]:
    """As :func:`_recur_at_once`, the last layer first."""
    dy, *dstates = grads
    dy = None if dy is None else dy.unsqueeze(2)
    found: list[tuple[Tensor, ...]] = []
    for layer in reversed(range(len(ys))):
        own = slice(layer, layer + 1)
        sequences = ys[layer].unsqueeze(2), reserve[layer].unsqueeze(2)
        launch = recurrence.prepare(
            kernels, "backward", sequences[0], [False], call.lengths, call.reset
        )
        dhy, dcy = (None if d is None else d[own] for d in dstates)
        gradients = recurrence.backward(
            *(launch, dy, dhy, dcy, None, *sequences, weight_hh[own], call.weight_ch[own]),
            *(call.hx[own], call.cx[own], needs_bias, needs_weight_ch),
        )
        found.insert(0, gradients)
        if layer:
            dy = matmuls.dinput(gradients[0], ys[layer - 1], call.weight_ih[own]).unsqueeze(2)
    dgates, *others = zip(*found, strict=True)
    return list(dgates), *(torch.cat(tensors) for tensors in others)


def _launch(
    kernels: Any, direction: str, y: Tensor, call: Call
) -> tuple[recurrence.Launch, Tensor]:
    """The launch of a pass, and its workspace."""
    course = (call.reverse, call.lengths, call.reset)
    layers = len(call.weight_hh)
    launch = recurrence.prepare(kernels, direction, y, *course, layers=layers)
    assert launch.plan is not None  # or the layers would not be here
    return launch, y.new_empty(launch.plan["workspace_bytes"], dtype=torch.uint8)


def _bias(call: Call) -> Tensor:
    """(L - 1, 4H) the sums of both biases of all layers but the first."""
    stacked = [torch.stack(tuple(b[1:])) for b in (call.bias_ih, call.bias_hh) if b]
    if not stacked:
        return call.input.new_zeros(len(call.weight_hh) - 1, 4 * call.cx.shape[2])
    return sum(stacked[1:], stacked[0])
