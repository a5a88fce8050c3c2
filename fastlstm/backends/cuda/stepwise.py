"""The recurrence step by step: in each a matrix product by cuBLAS and a cell by ``csrc/cuda``.

It is for W_hh that does not fit on chip, for single steps, and where it is expected to be faster
than a persistent launch (:mod:`ways`). Where the launches would take the CPU longer than the GPU,
a CUDA graph does them all (:mod:`graphs`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlstm.backends import gpu, pointers
from fastlstm.call import Call, OutputGradients, Results
from fastlstm.options import CellOptions


def forward(
    kernels: Any, arguments: dict[str, Any], weight_hh: Tensor, call: Call, results: Results
) -> None:
    """Run all steps.

    Args:
        kernels: the compiled module, or its emulation.
        arguments: what ``kernels.cell_forward`` takes in every step.
        weight_hh: (G, 4H, H).
        call: its hx and cx are read.
        results: hy and cy are written here, and the rest by the kernels.
    """
    _, hy, cy, *_ = results
    hy.copy_(call.hx)
    c = call.cx.to(gpu.sums(cy.dtype), copy=True, memory_format=torch.contiguous_format)
    hgates = hy.new_empty(*hy.shape[:2], weight_hh.shape[1])
    state: dict[str, Any] = {"hgates": hgates.data_ptr(), "h": hy.data_ptr(), "c": c.data_ptr()}
    run, operand = kernels.cell_forward, hy
    if call.options is not None:
        run, mask = kernels.cell_forward_with_options, call.options.hidden_mask
        if gpu.has_norm(call):
            run = kernels.normalized_cell_forward
            state |= norm_arguments(call.options)
        operand = hy if mask is None else hy * mask
        state["masked_h"] = 0 if mask is None else operand.data_ptr()
        state["options"] = option_arguments(call.options)
    for step in range(arguments["T"]):
        torch.bmm(operand, weight_hh.transpose(1, 2), out=hgates)
        run(**arguments, **state, step=step)
    cy.copy_(c)


def backward(
    kernels: Any,
    arguments: dict[str, Any],
    weight_hh: Tensor,
    call: Call,
    grads: OutputGradients,
) -> tuple[Tensor, Tensor]:
    """Run all steps, the last one first; dhx and dcx, in the dtype of cx (G, B, H).

    ``arguments`` are what ``kernels.cell_backward`` takes in every step, or the kernel with layer
    norm, where the call has it.
    """
    cx = call.cx
    (G, B, H), sums = cx.shape, gpu.sums(cx.dtype)
    dh, dc = (
        torch.zeros_like(cx, dtype=sums) if d is None else d.to(sums, copy=True).contiguous()
        for d in (grads.dhy, grads.dcy)
    )
    dhgates, product = cx.new_empty(G, B, 4 * H), cx.new_empty(G, B, H)
    state: dict[str, Any] = {
        "dhgates": dhgates.data_ptr(),
        "dh": dh.data_ptr(),
        "dc": dc.data_ptr(),
    }
    run, mask = kernels.cell_backward, None
    if call.options is not None:
        run, mask = kernels.cell_backward_with_options, call.options.hidden_mask
        if gpu.has_norm(call):
            run = kernels.normalized_cell_backward
        state["options"] = option_arguments(call.options)
    for step in reversed(range(arguments["T"])):
        run(**arguments, **state, step=step)
        if mask is not None:
            dh.addcmul_(mask, torch.bmm(dhgates, weight_hh, out=product))
        elif dh.dtype == weight_hh.dtype:
            dh.baddbmm_(dhgates, weight_hh)
        else:
            dh.add_(torch.bmm(dhgates, weight_hh, out=product))
    return dh.to(cx.dtype), dc.to(cx.dtype)


def option_arguments(options: CellOptions) -> dict[str, Any]:
    """What the kernels take as ``options``; see CellOptions in csrc/cuda/kernels.h."""
    return {
        "hidden_mask": pointers.address(options.hidden_mask),
        "keep_h": pointers.address(options.keep_h),
        "keep_h_stride": pointers.outer_strides(options.keep_h),
        "keep_c": pointers.address(options.keep_c),
        "keep_c_stride": pointers.outer_strides(options.keep_c),
        "cell_clip": float(options.cell_clip),
    }


def norm_arguments(options: CellOptions) -> dict[str, Any]:
    """The gains and biases that the kernels of cells with layer norm take."""
    return {
        "norm_hh": pointers.address(options.norm_hh),
        "norm_c": pointers.address(options.norm_c),
    }
