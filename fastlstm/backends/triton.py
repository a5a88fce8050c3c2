"""Triton kernels for GPUs (``kernels/``), which have not yet run on one.

Where W_hh fits on one multiprocessor, the recurrence is a single launch each way
(``lstm_forward``, ``lstm_backward``); elsewhere, and for a single step, it is a matrix product by
cuBLAS and a fused cell (``lstm_cell``) a step. The input projection and the gradients of weights
and input are matrix products over the whole sequence. The kernels' products of float32
are TF32 where cuDNN's, and so ``nn.LSTM``'s, are; those by torch follow
``torch.backends.cuda.matmul``. No gradient is summed up by atomics: two runs give the same bits.

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

from fastlstm.backends import gpu, pointers
from fastlstm.backends.gpu import matmuls, packed_sequence
from fastlstm.call import Problem
from fastlstm.kernels import INTERPRETED

_GROUPS = 32  # their directions are bits of one word
_INSTALLED = find_spec("triton") is not None
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
        reason = gpu.refusal(_capability())
        if reason is not None:
            return reason
    if problem.G > _GROUPS:
        return f"takes at most {_GROUPS} groups, not {problem.G}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    if problem.reset or problem.return_all_cells:
        return "has neither a reset mask nor all cell states"
    return None


def _capability() -> tuple[int, int]:
    """Of the current GPU; of an H100 under the interpreter, which has no limits."""
    return (9, 0) if INTERPRETED else gpu.capability()


def _bits(flags: Sequence[bool]) -> int:
    """One for each group that is reversed; vmap makes groups that no problem told of."""
    if len(flags) > _GROUPS:
        raise ValueError(f"reverse: expected at most {_GROUPS} groups, got {len(flags)}")
    return sum(1 << group for group, flag in enumerate(flags) if flag)


@packed_sequence.forward
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
) -> tuple[Tensor, ...]:
    """(y, hy, cy, cells, reserve); reserve (T, B, G, 5H) or (N, G, 5H) is empty unless ``train``.

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

    w_ih = gpu.stack(weight_ih)
    if w_ih is not None:
        input = matmuls.project(input, w_ih, gpu.stack(bias_ih), gpu.stack(bias_hh))
    igates, lengths = pointers.unit_stride(input), gpu.contiguous(lengths)
    w_hh, w_ch = gpu.stack(weight_hh), gpu.stack(weight_ch)
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
                precision=gpu.precision(),
                configuration=configuration,
            )
            return y, hy, cy, nothing, reserve
        hy.copy_(hx)
        c = cx.to(gpu.sums(cx.dtype), copy=True, memory_format=torch.contiguous_format)
        hgates = hy.new_empty(G, B, 4 * H)
        for step in range(T):
            torch.bmm(hy, w_hh.transpose(1, 2), out=hgates)
            lstm_cell_forward(
                igates, hgates, w_ch, lengths, hy, c, y, filled, reverse=_bits(reverse), step=step
            )
        cy.copy_(c)
    return y, hy, cy, nothing, reserve


@packed_sequence.backward
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

    lengths = gpu.contiguous(lengths)
    dgates, dweight_ch, dhx, dcx = _recurrence(
        dy, dhy, dcy, reserve, weight_hh, weight_ch, cx, reverse, lengths, needs[4]
    )
    dinput, dweight_ih, dbias, dweight_hh, dweight_hr = (y.new_empty(0) for _ in range(5))
    if needs[0]:
        dinput = matmuls.dinput(dgates, input, weight_ih) if weight_ih else dgates
    if needs[1]:
        dweight_ih = matmuls.dweight_ih(dgates, input, lengths)
    if needs[2]:
        dbias = dgates.sum((0, 1), dtype=gpu.sums(y.dtype)).to(y.dtype)
    if needs[3]:
        dweight_hh = matmuls.dweight_hh(dgates, y, hx, reverse, lengths, reset)
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
    H, sums = five_h // 5, gpu.sums(reserve.dtype)
    configuration = single_launch(_capability(), reserve.element_size(), H) if T > 1 else None
    tiles = -(-B // (configuration or CELL).block_b)
    dweight_ch = reserve.new_zeros(tiles, G, 3 * H, dtype=sums) if needs_weight_ch else None
    dgates = reserve.new_empty(T, B, G, 4 * H)
    dy = None if dy is None else pointers.unit_stride(dy)
    w_hh, w_ch, cx = gpu.stack(weight_hh), gpu.stack(weight_ch), cx.contiguous()
    assert w_hh is not None
    with torch.cuda.device_of(reserve):
        if configuration is not None:
            dhx, dcx = torch.empty_like(cx), torch.empty_like(cx)
            lstm_backward(
                dy,
                gpu.contiguous(dhy),
                gpu.contiguous(dcy),
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
                precision=gpu.precision(),
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
