"""The recurrence by ``csrc/cuda``: one persistent launch, or a matrix product and a cell a step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm.backends import gpu, pointers

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

NONE = (0, 0)  # address and stride of a weight that is not there


class Launch(NamedTuple):
    """What the launches of one pass have in common; made by :func:`prepare`."""

    kernels: Any
    sizes: tuple[str, int, int, int, int]
    """dtype, T, B, G, H"""
    arguments: dict[str, Any]
    """how groups and rows go through time, the device's number and the stream"""
    products: str
    plan: dict[str, int] | None
    """of a persistent launch; None for a matrix product and a cell a step"""
    owners: tuple[Tensor | None, ...]
    """of the memory in ``arguments``"""


@lru_cache(maxsize=1024)
def best_plan(
    kernels: Any,
    direction: str,
    sizes: tuple[str, int, int, int],
    products: str,
    number: int,
    layered: bool = False,
) -> tuple[dict[str, int] | None, str]:
    """The best plan by the model of csrc/cuda/plan.cpp, or None, and why the weights do not fit.

    ``sizes`` are dtype, B, G and H, ``number`` the device's; ``layered`` if groups are layers.
    """
    device = kernels.device(number)
    plans, refusal = kernels.plans(
        direction, *sizes, layered=layered, products=products, device=device
    )
    return plans[0] if plans else None, refusal


def prepare(
    kernels: Any,
    direction: str,
    y: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    reset: Tensor | None,
    layers: int = 0,
) -> Launch:
    """For a pass, "forward" or "backward", of a call whose output is ``y`` (T, B, G, H).

    With ``layers`` the groups are so many layers, and y (T, B, H) is the last one's. It is for the
    stream that is current on y's device. Its plan may be replaced by another of
    ``kernels.plans``, or by None.

    Lengths are clamped, whatever came: a kernel that trusts a wrong one writes past the end.
    """
    T, B, G, H = *y.shape[:2], layers or y.shape[2], y.shape[-1]
    if lengths is not None:
        lengths = lengths.to(torch.int64).clamp(0, T).contiguous()
    reset = gpu.contiguous(reset)
    on_gpu = y.device.type == "cuda"  # else they are emulated
    number = y.device.index if on_gpu else 0
    arguments = {
        "reverse": reverse,
        "lengths": pointers.address(lengths),
        "reset": pointers.address(reset),
        "device": number,
        "stream": torch.cuda.current_stream().cuda_stream if on_gpu else 0,
    }
    dtype, products = DTYPES[y.dtype], gpu.precision()
    sizes = (dtype, B, G, H)
    # A single step would read W_hh only once.
    plan = None
    if T > 1:
        plan, _ = best_plan(kernels, direction, sizes, products, number, layers > 0)
    owners = (lengths, reset)
    return Launch(kernels, (dtype, T, B, G, H), arguments, products, plan, owners)


def forward(
    launch: Launch,
    igates: Tensor,
    weight_hh: Tensor,
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    y: Tensor,
    hy: Tensor,
    cy: Tensor,
    cells: Tensor | None,
    reserve: Tensor | None,
) -> None:
    """Fills y, hy, cy and, where they are given, cells and reserve; weight_hh is (G, 4H, H)."""
    kernels, plan = launch.kernels, launch.plan
    igates = pointers.unit_stride(igates)
    w_ch, _owner = pointers.grid(weight_ch)
    arguments = {
        **launch.arguments,
        "igates": igates.data_ptr(),
        "igates_stride": pointers.outer_strides(igates, False),
        "weight_ch": w_ch,
        "y": y.data_ptr(),
        "cells": pointers.address(cells),
        "reserve": pointers.address(reserve),
    }
    if plan is not None:
        hx, cx = hx.contiguous(), cx.contiguous()
        workspace = y.new_empty(plan["workspace_bytes"], dtype=torch.uint8)
        kernels.forward(
            *launch.sizes,
            **arguments,
            layered=False,
            weight_ih=NONE,
            bias_ih=NONE,
            states=0,
            weight_hh=(weight_hh.data_ptr(), weight_hh.stride(0)),
            hx=hx.data_ptr(),
            cx=cx.data_ptr(),
            hy=hy.data_ptr(),
            cy=cy.data_ptr(),
            workspace=workspace.data_ptr(),
            products=launch.products,
            plan=plan,
        )
        return
    hy.copy_(hx)
    c = cx.to(gpu.sums(cx.dtype), copy=True, memory_format=torch.contiguous_format)
    hgates = hy.new_empty(*hy.shape[:2], weight_hh.shape[1])
    state = {"hgates": hgates.data_ptr(), "h": hy.data_ptr(), "c": c.data_ptr()}
    for step in range(y.shape[0]):
        torch.bmm(hy, weight_hh.transpose(1, 2), out=hgates)
        kernels.cell_forward(*launch.sizes, **arguments, **state, step=step)
    cy.copy_(c)


def backward(
    launch: Launch,
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    dcells: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    weight_hh: Tensor,
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    needs_bias: bool,
    needs_weight_ch: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dgates (T, B, G, 4H), dbias (G, 4H) and dweight_ch (G, 3H) or empty, dhx and dcx."""
    kernels, plan = launch.kernels, launch.plan
    T, B, G, H = y.shape
    new_empty, sums = y.new_empty, gpu.sums(y.dtype)
    # Not into the reserve, as the kernels could: after retain_graph a second backward reads it.
    dgates = new_empty(T, B, G, 4 * H)
    # Sums over time of each tile of the batch; a loop over steps adds to its single one.
    new, tiles = (y.new_zeros, 1) if plan is None else (new_empty, plan["tiles"])
    dbias = new((tiles, G, 4 * H), dtype=sums) if needs_bias else None
    dweight_ch = new((tiles, G, 3 * H), dtype=sums) if needs_weight_ch else None
    dy = None if dy is None else pointers.unit_stride(dy)
    dcells, y, reserve = gpu.contiguous(dcells), y.contiguous(), reserve.contiguous()
    hx, cx = hx.contiguous(), cx.contiguous()
    w_ch, _owner = pointers.grid(weight_ch)
    arguments = {
        **launch.arguments,
        "dy": pointers.address(dy),
        "dy_stride": pointers.outer_strides(dy, False),
        "dcells": pointers.address(dcells),
        "reserve": reserve.data_ptr(),
        "weight_ch": w_ch,
        "cx": cx.data_ptr(),
        "digates": dgates.data_ptr(),
        "digates_stride": pointers.outer_strides(dgates, False),
        "dbias": pointers.address(dbias),
        "dweight_ch": pointers.address(dweight_ch),
    }
    if plan is not None:
        dhx, dcx = torch.empty_like(hx), torch.empty_like(cx)
        dhy, dcy = gpu.contiguous(dhy), gpu.contiguous(dcy)
        workspace = new_empty(plan["workspace_bytes"], dtype=torch.uint8)
        kernels.backward(
            *launch.sizes,
            **arguments,
            dhy=pointers.address(dhy),
            dcy=pointers.address(dcy),
            y=y.data_ptr(),
            layered=False,
            weight_ih=NONE,
            weight_hh=(weight_hh.data_ptr(), weight_hh.stride(0)),
            hx=hx.data_ptr(),
            dhx=dhx.data_ptr(),
            dcx=dcx.data_ptr(),
            workspace=workspace.data_ptr(),
            products=launch.products,
            plan=plan,
        )
    else:
        dh, dc = (
            torch.zeros_like(cx, dtype=sums) if d is None else d.to(sums, copy=True).contiguous()
            for d in (dhy, dcy)
        )
        dhgates, product = new_empty(G, B, 4 * H), new_empty(G, B, H)
        state = {"dhgates": dhgates.data_ptr(), "dh": dh.data_ptr(), "dc": dc.data_ptr()}
        for step in reversed(range(T)):
            kernels.cell_backward(*launch.sizes, **arguments, **state, step=step)
            if dh.dtype == weight_hh.dtype:
                dh.baddbmm_(dhgates, weight_hh)
            else:
                dh.add_(torch.bmm(dhgates, weight_hh, out=product))
        dhx, dcx = dh.to(hx.dtype), dc.to(cx.dtype)
    return dgates, total(dbias, y), total(dweight_ch, y), dhx, dcx


def total(summands: Tensor | None, like: Tensor) -> Tensor:
    """The gradient that those of the tiles add up to; empty if there are none."""
    return like.new_empty(0) if summands is None else summands.sum(0).to(like.dtype)
