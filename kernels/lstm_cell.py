"""One step of an LSTM without its matrix product: the cell, forward and backward, in one pass.

For ``LSTMCell``, and for LSTMs that are too large for one multiprocessor: cuBLAS multiplies h by
W_hh, and this kernel computes the rest of the step. A program computes BLOCK_B rows and BLOCK_H
units of a group; every number is read and written once::

    forward   reads igates and hgates (4H a row), c (H); writes y, h and c (H), and in training the
              reserve (5H)
    backward  reads the reserve (6H, two steps' c), dy and dh (H), dc (H); writes dgates (4H) twice,
              dh and dc (H)

With hidden_mask forward writes the masked h too; with zoneout both read keep_h and keep_c (H each).

Tensors with T steps are in the order of time, and a group may go through them backwards; so dgates
are also written as (G, B, 4H), which is what the next matrix product reads in one call for all
groups. c and dc are float32 between steps (float64 for float64), whatever the tensors are.

Nothing here allocates or waits, so a loop over steps can be captured in a CUDA graph. Compiled for
sm_80, sm_90 and sm_100 (``python -m benchmarks.triton_resources``) and tested under Triton's
interpreter; it has not yet run on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from fastlstm.kernels.configurations import CELL
from fastlstm.kernels.gates import cell_backward, cell_forward, mix, new_cell
from fastlstm.kernels.options import option_arguments
from fastlstm.kernels.tiles import (
    add_row_sums,
    load_gates,
    load_keep,
    load_peepholes,
    store_gates,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fastlstm.options import CellOptions


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def lstm_cell_forward_kernel(
    p_igates,
    stride_t,
    stride_b,
    stride_g,
    p_hgates,
    p_weight_ch,
    p_lengths,
    p_h,
    p_c,
    p_y,
    p_reserve,
    reverse,
    step,
    T,
    B,
    G,
    H,
    p_masked_h,
    p_hidden_mask,
    keep_h,
    keep_c,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CLIP: tl.constexpr,
):
    """See the module's docstring; :func:`lstm_cell_forward` describes the arguments."""
    OPERAND: tl.constexpr = p_h.dtype.element_ty
    ACC: tl.constexpr = p_c.dtype.element_ty
    i_g = tl.program_id(2).to(tl.int64)
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (o_b < B)[:, None] & (o_h < H)[None, :]
    t = tl.where(((reverse >> tl.program_id(2)) & 1) != 0, T - 1 - step, step).to(tl.int64)

    p = p_igates + t * stride_t + i_g * stride_g + o_b[:, None] * stride_b + o_h[None, :]
    i, f, g, o = load_gates(p, H, mask, ACC)
    o_state = (i_g * B + o_b)[:, None]
    h_i, h_f, h_g, h_o = load_gates(p_hgates + o_state * (4 * H) + o_h[None, :], H, mask, ACC)
    o_state = o_state * H + o_h[None, :]
    c = tl.load(p_c + o_state, mask=mask, other=0.0)
    w_ci, w_cf, w_co = load_peepholes(p_weight_ch, i_g, o_h, H, ACC)
    i, f, g, o, c_t, h_t = cell_forward(
        i + h_i, f + h_f, g + h_g, o + h_o, c, w_ci, w_cf, w_co, p_weight_ch is not None, CLIP
    )
    if keep_h is not None:
        keep = load_keep(keep_h, t, i_g, o_b, o_h, mask, ACC)
        h_t = mix(tl.load(p_h + o_state, mask=mask, other=0.0).to(ACC), h_t, keep)
    if keep_c is not None:
        keep = load_keep(keep_c, t, i_g, o_b, o_h, mask, ACC)
        c_t = mix(c, c_t, keep)
    h_t = h_t.to(OPERAND)
    updated = mask
    if p_lengths is not None:  # past its length a row keeps its state and emits zero
        active = (t < tl.load(p_lengths + o_b, mask=o_b < B, other=0))[:, None]
        updated = mask & active
        c_t = tl.where(active, c_t, c)
    tl.store(p_h + o_state, h_t, mask=updated)
    if p_hidden_mask is not None:
        masked_h = h_t.to(ACC) * tl.load(p_hidden_mask + o_state, mask=mask, other=0.0).to(ACC)
        tl.store(p_masked_h + o_state, masked_h.to(OPERAND), mask=updated)
    tl.store(p_c + o_state, c_t, mask=updated)
    o_t = ((t * B + o_b) * G + i_g)[:, None]
    tl.store(p_y + o_t * H + o_h[None, :], tl.where(updated, h_t, 0.0).to(OPERAND), mask=mask)
    if p_reserve is not None:
        p = p_reserve + o_t * (5 * H) + o_h[None, :]
        store_gates(p, i, f, g, o, H, mask)
        tl.store(p + 4 * H, c_t, mask=mask)


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def lstm_cell_backward_kernel(
    p_dy,
    stride_t,
    stride_b,
    stride_g,
    p_reserve,
    p_weight_ch,
    p_cx,
    p_lengths,
    p_dh,
    p_dc,
    p_dgates,
    p_dhgates,
    p_dweight_ch,
    reverse,
    step,
    T,
    B,
    G,
    H,
    p_hidden_mask,
    keep_h,
    keep_c,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    CLIP: tl.constexpr,
):
    """See the module's docstring; :func:`lstm_cell_backward` describes the arguments."""
    ACC: tl.constexpr = p_dc.dtype.element_ty
    RECOMPUTED: tl.constexpr = keep_c is not None or CLIP > 0
    i_g = tl.program_id(2).to(tl.int64)
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (o_b < B)[:, None] & (o_h < H)[None, :]
    backwards = ((reverse >> tl.program_id(2)) & 1) != 0
    t = tl.where(backwards, T - 1 - step, step).to(tl.int64)

    o_t = ((t * B + o_b) * G + i_g)[:, None]
    p = p_reserve + o_t * (5 * H) + o_h[None, :]
    i, f, g, o = load_gates(p, H, mask, ACC)
    c = tl.load(p + 4 * H, mask=mask, other=0.0).to(ACC)
    o_state = (i_g * B + o_b)[:, None]
    p_gates = p_dhgates + o_state * (4 * H) + o_h[None, :]
    o_state = o_state * H + o_h[None, :]
    if step > 0:
        before = tl.where(backwards, 1, -1).to(tl.int64) * B * G * 5 * H
        c_prev = tl.load(p + 4 * H + before, mask=mask, other=0.0).to(ACC)
    else:
        c_prev = tl.load(p_cx + o_state, mask=mask, other=0.0).to(ACC)
    dh = tl.load(p_dh + o_state, mask=mask, other=0.0).to(ACC)
    dc = tl.load(p_dc + o_state, mask=mask, other=0.0)
    dh_t = dh
    if p_dy is not None:
        p = p_dy + t * stride_t + i_g * stride_g + o_b[:, None] * stride_b + o_h[None, :]
        dh_t += tl.load(p, mask=mask, other=0.0).to(ACC)
    w_ci, w_cf, w_co = load_peepholes(p_weight_ch, i_g, o_h, H, ACC)
    dh_kept = tl.zeros([BLOCK_B, BLOCK_H], ACC)
    dc_t = dc
    if keep_h is not None:
        keep = load_keep(keep_h, t, i_g, o_b, o_h, mask, ACC)
        dh_kept = keep * dh_t
        dh_t = (1.0 - keep) * dh_t
    if keep_c is not None:
        keep = load_keep(keep_c, t, i_g, o_b, o_h, mask, ACC)
        dc_kept = keep * dc
        dc_t = (1.0 - keep) * dc
    if RECOMPUTED:
        c = new_cell(i, f, g, c_prev, CLIP)
    d_i, d_f, d_g, d_o, dc_t = cell_backward(
        i, f, g, o, c_prev, c, dh_t, dc_t, w_ci, w_cf, w_co, p_weight_ch is not None, CLIP
    )
    if keep_c is not None:
        dc_t += dc_kept
    if p_lengths is not None:  # past its length a row's state went through unchanged
        active = (t < tl.load(p_lengths + o_b, mask=o_b < B, other=0))[:, None]
        d_i, d_f = tl.where(active, d_i, 0.0), tl.where(active, d_f, 0.0)
        d_g, d_o = tl.where(active, d_g, 0.0), tl.where(active, d_o, 0.0)
        dc_t = tl.where(active, dc_t, dc)
        dh = tl.where(active, dh_kept, dh)
        if RECOMPUTED:  # from gates that may be NaN there
            c = tl.where(active, c, 0.0)
    else:
        dh = dh_kept
    tl.store(p_dh + o_state, dh, mask=mask)
    tl.store(p_dc + o_state, dc_t, mask=mask)
    store_gates(p_gates, d_i, d_f, d_g, d_o, H, mask)
    store_gates(p_dgates + o_t * (4 * H) + o_h[None, :], d_i, d_f, d_g, d_o, H, mask)

    if p_dweight_ch is not None:
        p = p_dweight_ch + (tl.program_id(0) * G + i_g) * (3 * H)
        add_row_sums(p, d_i * c_prev, o_h, H)
        add_row_sums(p + H, d_f * c_prev, o_h, H)
        add_row_sums(p + 2 * H, d_o * c, o_h, H)


def _grid(B: int, G: int, H: int) -> tuple[int, int, int]:
    """Rows are along x: a grid has 2^31 - 1 programs there, and 65,535 along y and z."""
    return triton.cdiv(B, CELL.block_b), triton.cdiv(H, CELL.block_h), G


def lstm_cell_forward(
    igates: Tensor,
    hgates: Tensor,
    weight_ch: Tensor | None,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor,
    y: Tensor,
    reserve: Tensor | None,
    reverse: int,
    step: int,
    options: CellOptions | None = None,
    masked_h: Tensor | None = None,
) -> None:
    """Launch step ``step``, in 0..T-1 in the order of processing; all but igates is contiguous.

    Args:
        igates: (T, B, G, 4H), any stride but in the last dimension.
        hgates: (G, B, 4H), h W_hh^T.
        weight_ch: (G, 3H) peepholes i, f, o, or None.
        lengths: (B,) integers, or None.
        h: (G, B, H), written where a row is within its length.
        c: (G, B, H) in float32 (float64), from c' to c.
        y: (T, B, G, H), this step's part written.
        reserve: (T, B, G, 5H), this step's part written; None in inference.
        reverse: bit g is set for a group g that reads from the last step to the first.
        step: group g works at time T - 1 - step if its bit is set, else at time step.
        options: see :func:`fastlstm.kernels.options.option_arguments`. Default: none.
        masked_h: (G, B, H), written: h times hidden_mask. Default: none, without that mask.
    """
    T, B, G, H = y.shape
    lstm_cell_forward_kernel[_grid(B, G, H)](
        igates,
        *igates.stride()[:3],
        hgates,
        weight_ch,
        lengths,
        h,
        c,
        y,
        reserve,
        *(reverse, step, T, B, G, H),
        p_masked_h=masked_h,
        BLOCK_B=CELL.block_b,
        BLOCK_H=CELL.block_h,
        num_warps=CELL.num_warps,
        enable_fp_fusion=True,
        **option_arguments(options),
    )


def lstm_cell_backward(
    dy: Tensor | None,
    reserve: Tensor,
    weight_ch: Tensor | None,
    cx: Tensor,
    lengths: Tensor | None,
    dh: Tensor,
    dc: Tensor,
    dgates: Tensor,
    dhgates: Tensor,
    dweight_ch: Tensor | None,
    reverse: int,
    step: int,
    options: CellOptions | None = None,
) -> None:
    """Launch the gradient of step ``step``; everything but dy is contiguous.

    Args:
        dy: (T, B, G, H), any stride but in the last dimension; None for zeros.
        reserve: (T, B, G, 5H), as forward left it.
        weight_ch, lengths, reverse, step, options: as in forward.
        cx: (G, B, H) first cell state.
        dh: (G, B, H), the gradient of h after this step; written: what of it goes past the step,
            none (with zoneout keep_h) of it within a row's length. The caller adds dhgates W_hh.
        dc: (G, B, H) in float32 (float64), from the gradient of c to that of c'.
        dgates: (T, B, G, 4H), this step's part written.
        dhgates: (G, B, 4H), written: the same numbers.
        dweight_ch: (tiles, G, 3H) in the dtype of dc: this step is added to the row of each of the
            ceil(B / CELL.block_b) tiles of the batch. None if not wanted.
    """
    T, B, G, four_h = dgates.shape
    H = four_h // 4
    lstm_cell_backward_kernel[_grid(B, G, H)](
        dy,
        *(dy.stride()[:3] if dy is not None else (0, 0, 0)),
        reserve,
        weight_ch,
        cx,
        lengths,
        dh,
        dc,
        dgates,
        dhgates,
        dweight_ch,
        *(reverse, step, T, B, G, H),
        BLOCK_B=CELL.block_b,
        BLOCK_H=CELL.block_h,
        num_warps=CELL.num_warps,
        enable_fp_fusion=True,
        **option_arguments(options),
    )
