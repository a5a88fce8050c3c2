"""The recurrence step by step: in each a matrix product by cuBLAS and a cell by ``csrc/cuda``.

It is for W_hh that does not fit on chip, for single steps, and where it is expected to be faster
than a persistent launch (:mod:`ways`). Where the launches would take the CPU longer than the GPU,
a CUDA graph does them all (:mod:`graphs`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlstm.backends import gpu
from fastlstm.call import Call, OutputGradients, Results


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
    state = {"hgates": hgates.data_ptr(), "h": hy.data_ptr(), "c": c.data_ptr()}
    for step in range(arguments["T"]):
        torch.bmm(hy, weight_hh.transpose(1, 2), out=hgates)
        kernels.cell_forward(**arguments, **state, step=step)
    cy.copy_(c)


def backward(
    kernels: Any,
    arguments: dict[str, Any],
    weight_hh: Tensor,
    cx: Tensor,
    grads: OutputGradients,
) -> tuple[Tensor, Tensor]:
    """Run all steps, the last one first; dhx and dcx, in the dtype of cx (G, B, H).

    ``arguments`` are what ``kernels.cell_backward`` takes in every step.
    """
    (G, B, H), sums = cx.shape, gpu.sums(cx.dtype)
    dh, dc = (
        torch.zeros_like(cx, dtype=sums) if d is None else d.to(sums, copy=True).contiguous()
        for d in (grads.dhy, grads.dcy)
    )
    dhgates, product = cx.new_empty(G, B, 4 * H), cx.new_empty(G, B, H)
    state = {"dhgates": dhgates.data_ptr(), "dh": dh.data_ptr(), "dc": dc.data_ptr()}
    for step in reversed(range(arguments["T"])):
        kernels.cell_backward(**arguments, **state, step=step)
        if dh.dtype == weight_hh.dtype:
            dh.baddbmm_(dhgates, weight_hh)
        else:
            dh.add_(torch.bmm(dhgates, weight_hh, out=product))
    return dh.to(cx.dtype), dc.to(cx.dtype)
