"""Triton kernels for GPUs (``kernels/``), which have not yet run on one.

Where W_hh fits on one multiprocessor, the recurrence is a single launch each way
(``lstm_forward``, ``lstm_backward``); elsewhere, and for a single step, it is a matrix product by
cuBLAS and a fused cell (``lstm_cell``) a step. The input projection and the gradients of weights
and input are matrix products over the whole sequence. All products in float32 follow
``torch.backends.cuda.matmul`` (TF32 only by request; cuDNN, and so ``nn.LSTM``, uses TF32 unless
told not to). No gradient is summed up by atomics: two runs give the same bits.

Nothing waits for the GPU, and no loop over steps allocates: after one call, which compiles, a call
can be captured by ``torch.cuda.graph``. That is left to the user, since only who owns the tensors
knows that their addresses stay; it pays where launches take longer than kernels, which is a loop
over steps with a small batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from fastlstm import products
from fastlstm.kernels import INTERPRETED
from fastlstm.types import Problem

UNMEASURED = "not yet measured on a GPU"

_INSTALLED = find_spec("triton") is not None
_CAPABILITY = (8, 0)  # the oldest with bfloat16, asynchronous copies and 99 KiB a block
_GROUPS = 32  # their directions are bits of one word
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def supports(problem: Problem) -> str | None:
    """None, or why these kernels cannot run ``problem``."""
    if problem.device != "cuda" and not (problem.device == "cpu" and INTERPRETED):
        return (
            "needs cuda; on the cpu kernels are only interpreted, with TRITON_INTERPRET=1 in the "
            "environment from the start"
        )
    if not _INSTALLED:
        return "needs the package triton: pip install 'fastlstm[triton]'"
    if problem.dtype not in _DTYPES:
        return f"has floating-point numbers of 16 to 64 bits, not {problem.dtype}"
    if problem.device == "cuda":
        if torch.version.hip is not None:
            return "was written for NVIDIA GPUs, not for ROCm"
        found = _capability()
        if found < _CAPABILITY:
            return f"needs compute capability 8.0 or later, not {found[0]}.{found[1]}"
    if problem.G > _GROUPS:
        return f"takes at most {_GROUPS} groups, not {problem.G}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    if problem.batch_sizes:
        return "reads padded batches with lengths, not a PackedSequence"
    if problem.reset or problem.return_all_cells:
        return "has neither a reset mask nor all cell states"
    return None


def _capability() -> tuple[int, int]:
    """Of the current GPU; of an H100 under the interpreter, which has no limits."""
    if INTERPRETED:
        return 9, 0
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.major, properties.minor


def _precision() -> str:
    """Of float32 products in kernels: TF32 where ``torch.mm`` may use it, else nearly float32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # since torch 2.9
        return "tf32" if matmul.fp32_precision == "tf32" else "tf32x3"
    return "tf32" if matmul.allow_tf32 else "tf32x3"


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What is summed up in, and what c is kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _stack(weights: Sequence[Tensor]) -> Tensor | None:
    """One parameter of all groups, contiguous, the group first; a copy if there are several."""
    if not weights:
        return None
    return torch.stack(tuple(weights)) if len(weights) > 1 else weights[0].contiguous()[None]


def _unit_stride(tensor: Tensor) -> Tensor:
    """With neighbours side by side in the last dimension; the others may have any stride."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _bits(flags: Sequence[bool]) -> int:
    return sum(1 << group for group, flag in enumerate(flags) if flag)


def forward(
    input: Tensor,
    weight_ih: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    weight_hr: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    train: bool,
    return_all_cells: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, hy, cy, cells, reserve); reserve (T, B, G, 5H) is empty unless ``train``.

    What :func:`supports` refuses is None, empty or false, and cells are empty.
    """
    from fastlstm.kernels.configurations import single_launch
    from fastlstm.kernels.lstm_cell import lstm_cell_forward
    from fastlstm.kernels.lstm_forward import lstm_forward

    (T, B), (G, _, H) = input.shape[:2], cx.shape
    y = input.new_empty(T, B, G, H)
    hy, cy = input.new_empty(G, B, H), input.new_empty(G, B, H)
    nothing = input.new_empty(0)
    reserve = input.new_empty(T, B, G, 5 * H) if train else nothing.clone()
    if y.numel() == 0:
        return y, hy, cy, nothing, reserve

    w_ih = _stack(weight_ih)
    if w_ih is not None:
        input = products.project(input, w_ih, _stack(bias_ih), _stack(bias_hh))
    igates, lengths = _unit_stride(input), _contiguous(lengths)
    w_hh, w_ch = _stack(weight_hh), _stack(weight_ch)
    assert w_hh is not None
    filled = reserve if train else None
    configuration = single_launch(_capability(), y.element_size(), H) if T > 1 else None
    with torch.cuda.device_of(y):
        if configuration is not None:
            lstm_forward(
                igates,
                w_hh,
                w_ch,
                hx.contiguous(),
                cx.contiguous(),
                lengths,
                y,
                hy,
                cy,
                filled,
                reverse=_bits(reverse),
                precision=_precision(),
                configuration=configuration,
            )
            return y, hy, cy, nothing, reserve
        hy.copy_(hx)
        c = cx.to(_sums(cx.dtype), copy=True, memory_format=torch.contiguous_format)
        hgates = hy.new_empty(G, B, 4 * H)
        for step in range(T):
            torch.bmm(hy, w_hh.transpose(1, 2), out=hgates)
            lstm_cell_forward(
                igates, hgates, w_ch, lengths, hy, c, y, filled, reverse=_bits(reverse), step=step
            )
        cy.copy_(c)
    return y, hy, cy, nothing, reserve


def backward(
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    dcells: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    input: Tensor,
    weight_ih: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    weight_hr: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Gradients of input, weight_ih, bias, weight_hh, weight_ch, weight_hr, hx and cx.

    Those of weights are over the groups. ``needs`` says which of the first six are asked for; the
    others are empty.
    """
    G, H = y.shape[2:]
    if y.numel() == 0:
        I = weight_ih[0].shape[1] if weight_ih else 0
        sizes = input.shape, (G, 4 * H, I), (G, 4 * H), (G, 4 * H, H), (G, 3 * H), (0,)
        zeros = [y.new_zeros(s if need else 0) for s, need in zip(sizes, needs, strict=True)]
        return *zeros, torch.empty_like(hx), torch.empty_like(cx)

    lengths = _contiguous(lengths)
    dgates, dweight_ch, dhx, dcx = _recurrence(
        dy, dhy, dcy, reserve, weight_hh, weight_ch, cx, reverse, lengths, needs[4]
    )
    dinput, dweight_ih, dbias, dweight_hh, dweight_hr = (y.new_empty(0) for _ in range(5))
    if needs[0]:
        dinput = products.dinput(dgates, input, weight_ih) if weight_ih else dgates
    if needs[1]:
        dweight_ih = products.dweight_ih(dgates, input, lengths)
    if needs[2]:
        dbias = dgates.sum((0, 1), dtype=_sums(y.dtype)).to(y.dtype)
    if needs[3]:
        dweight_hh = products.dweight_hh(dgates, y, hx, reverse, lengths)
    dweight_ch = y.new_empty(0) if dweight_ch is None else dweight_ch.sum(0).to(y.dtype)
    return dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dweight_hr, dhx, dcx


def _recurrence(
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    reserve: Tensor,
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    needs_weight_ch: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """dgates (T, B, G, 4H), summands of dweight_ch (n, G, 3H), dhx and dcx (G, B, H)."""
    from fastlstm.kernels.configurations import CELL, single_launch
    from fastlstm.kernels.lstm_backward import lstm_backward
    from fastlstm.kernels.lstm_cell import lstm_cell_backward

    T, B, G, five_h = reserve.shape
    H, sums = five_h // 5, _sums(reserve.dtype)
    configuration = single_launch(_capability(), reserve.element_size(), H) if T > 1 else None
    tiles = -(-B // (configuration or CELL).block_b)
    dweight_ch = reserve.new_zeros(tiles, G, 3 * H, dtype=sums) if needs_weight_ch else None
    dgates = reserve.new_empty(T, B, G, 4 * H)
    dy = None if dy is None else _unit_stride(dy)
    w_hh, w_ch, cx = _stack(weight_hh), _stack(weight_ch), cx.contiguous()
    assert w_hh is not None
    with torch.cuda.device_of(reserve):
        if configuration is not None:
            dhx, dcx = torch.empty_like(cx), torch.empty_like(cx)
            lstm_backward(
                dy,
                _contiguous(dhy),
                _contiguous(dcy),
                reserve,
                w_hh,
                w_ch,
                cx,
                lengths,
                dgates,
                dhx,
                dcx,
                dweight_ch,
                reverse=_bits(reverse),
                precision=_precision(),
                configuration=configuration,
            )
            return dgates, dweight_ch, dhx, dcx
        dh, dc = torch.zeros_like(cx), torch.zeros_like(cx, dtype=sums)
        if dhy is not None:
            dh.copy_(dhy)
        if dcy is not None:
            dc.copy_(dcy)
        dhgates = dgates.new_empty(G, B, 4 * H)
        for step in reversed(range(T)):
            lstm_cell_backward(
                dy,
                reserve,
                w_ch,
                cx,
                lengths,
                dh,
                dc,
                dgates,
                dhgates,
                dweight_ch,
                reverse=_bits(reverse),
                step=step,
            )
            dh.baddbmm_(dhgates, w_hh)
    return dgates, dweight_ch, dh, dc.to(cx.dtype)
