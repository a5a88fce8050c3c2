"""The backward recurrence of small LSTMs: all steps, groups and rows in a single launch.

A program computes one group and BLOCK_B rows of the batch, from the last step to the first.
Programs are independent::

    shared memory   W_hh of the group: four (H, H) matrices i, f, g, o
    registers       dh and dc of the program's rows, c', the running sums for the peepholes, the
                    mask of h
    read a step     the reserve (BLOCK_B, 5H), dy (BLOCK_B, H); with zoneout keep_h and keep_c
                    (BLOCK_B, H)
    written a step  dgates (BLOCK_B, 4H), the gradients of the pre-activations

dh of the step before is the sum of four products, one for each gate. The caller computes the
products for weight_hh, weight_ih and x, and the sums for the biases, which would not fit in
registers here, from dgates of all steps. It also adds the programs' sums for the peepholes: there
are no atomics, so every run adds in the same order.

Compiled for sm_80, sm_90 and sm_100 (``python -m benchmarks.triton_resources``) and tested under
Triton's interpreter; it has not yet run on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from fastlstm.kernels.gates import cell_backward, new_cell
from fastlstm.kernels.options import option_arguments
from fastlstm.kernels.tiles import (
    dot,
    load_gates,
    load_keep,
    load_peepholes,
    load_weights,
    store_gates,
)

if TYPE_CHECKING:
    from torch import Tensor

    from fastlstm.kernels.configurations import Configuration
    from fastlstm.options import CellOptions


@triton.jit(do_not_specialize=["T", "B", "reverse"])
def lstm_backward_kernel(
    p_dy,
    stride_t,
    stride_b,
    stride_g,
    p_dhy,
    p_dcy,
    p_reserve,
    p_weight_hh,
    p_weight_ch,
    p_cx,
    p_lengths,
    p_dgates,
    p_dhx,
    p_dcx,
    p_dweight_ch,
    reverse,
    T,
    B,
    G,
    p_hidden_mask,
    keep_h,
    keep_c,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_B: tl.constexpr,
    ACC: tl.constexpr,
    PRECISION: tl.constexpr,
    NUM_STAGES: tl.constexpr,
    CLIP: tl.constexpr,
):
    """See the module's docstring; :func:`lstm_backward` describes the arguments."""
    OPERAND: tl.constexpr = p_cx.dtype.element_ty
    PEEPHOLE: tl.constexpr = p_weight_ch is not None
    RECOMPUTED: tl.constexpr = keep_c is not None or CLIP > 0
    i_b = tl.program_id(0)
    i_g = tl.program_id(1)
    o_b = i_b * BLOCK_B + tl.arange(0, BLOCK_B)
    o_h = tl.arange(0, BLOCK_H)
    mask = (o_b < B)[:, None] & (o_h < H)[None, :]
    backwards = ((reverse >> i_g) & 1) != 0

    w_i, w_f, w_g, w_o = load_weights(p_weight_hh, i_g, o_h[:, None], o_h[None, :], H)
    w_ci, w_cf, w_co = load_peepholes(p_weight_ch, i_g, o_h, H, ACC)
    o_state = (i_g * B + o_b)[:, None] * H + o_h[None, :]
    cx = tl.load(p_cx + o_state, mask=mask, other=0.0)
    dh = tl.zeros([BLOCK_B, BLOCK_H], ACC)
    dc = tl.zeros([BLOCK_B, BLOCK_H], ACC)
    if p_dhy is not None:
        dh += tl.load(p_dhy + o_state, mask=mask, other=0.0).to(ACC)
    if p_dcy is not None:
        dc += tl.load(p_dcy + o_state, mask=mask, other=0.0).to(ACC)
    if p_lengths is not None:
        lengths = tl.load(p_lengths + o_b, mask=o_b < B, other=0)[:, None]
    if p_hidden_mask is not None:
        hidden_mask = tl.load(p_hidden_mask + o_state, mask=mask, other=0.0).to(ACC)
    if p_dweight_ch is not None:
        sum_ci = tl.zeros([BLOCK_B, BLOCK_H], ACC)
        sum_cf = tl.zeros([BLOCK_B, BLOCK_H], ACC)
        sum_co = tl.zeros([BLOCK_B, BLOCK_H], ACC)

    # Within a time step 32 bits are enough, and save registers; dy may have any strides.
    o_row = (o_b * G + i_g)[:, None]
    o_reserve = o_row * (5 * H) + o_h[None, :]
    o_dgates = o_row * (4 * H) + o_h[None, :]
    a_step = B * G * 5 * H  # elements of the reserve
    last = tl.where(backwards, 0, T - 1).to(tl.int64)  # of the steps, as forward took them
    c = tl.load(p_reserve + last * a_step + 4 * H + o_reserve, mask=mask, other=0.0).to(ACC)
    if p_dy is not None:
        o_dy = o_b.to(tl.int64)[:, None] * stride_b + o_h[None, :]
        p_dy += i_g.to(tl.int64) * stride_g
    for step in tl.range(T, num_stages=NUM_STAGES):
        t = tl.where(backwards, step, T - 1 - step).to(tl.int64)
        i, f, g, o = load_gates(p_reserve + t * a_step + o_reserve, H, mask, ACC)
        before = t + tl.where(backwards, 1, -1)
        exists = (before >= 0) & (before < T)
        p = p_reserve + before * a_step + 4 * H + o_reserve
        has_rows = o_b < tl.where(exists, B, 0)
        c_prev = tl.load(p, mask=has_rows[:, None] & (o_h < H)[None, :], other=0.0)
        c_prev = tl.where(exists, c_prev, cx).to(ACC)
        dh_t = dh
        if p_dy is not None:
            dh_t += tl.load(p_dy + t * stride_t + o_dy, mask=mask, other=0.0).to(ACC)
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
            i, f, g, o, c_prev, c, dh_t, dc_t, w_ci, w_cf, w_co, PEEPHOLE, CLIP
        )
        if keep_c is not None:
            dc_t += dc_kept
        if p_lengths is not None:  # past its length a row's state went through unchanged
            active = t < lengths
            d_i, d_f = tl.where(active, d_i, 0.0), tl.where(active, d_f, 0.0)
            d_g, d_o = tl.where(active, d_g, 0.0), tl.where(active, d_o, 0.0)
            dc = tl.where(active, dc_t, dc)
            dh = tl.where(active, dh_kept, dh)
            if RECOMPUTED:  # from gates that may be NaN there
                c = tl.where(active, c, 0.0)
        else:
            dc = dc_t
            dh = dh_kept
        if p_dweight_ch is not None:
            sum_ci += d_i * c_prev
            sum_cf += d_f * c_prev
            sum_co += d_o * c
        c = c_prev
        d_i, d_f, d_g, d_o = d_i.to(OPERAND), d_f.to(OPERAND), d_g.to(OPERAND), d_o.to(OPERAND)
        store_gates(p_dgates + t * (B * G * 4 * H) + o_dgates, d_i, d_f, d_g, d_o, H, mask)
        dh_kept = dh
        if p_hidden_mask is not None:
            dh = tl.zeros([BLOCK_B, BLOCK_H], ACC)
        dh += dot(d_i, w_i, PRECISION, ACC)
        dh += dot(d_f, w_f, PRECISION, ACC)
        dh += dot(d_g, w_g, PRECISION, ACC)
        dh += dot(d_o, w_o, PRECISION, ACC)
        if p_hidden_mask is not None:
            dh = dh_kept + hidden_mask * dh
    tl.store(p_dhx + o_state, dh, mask=mask)
    tl.store(p_dcx + o_state, dc, mask=mask)

    if p_dweight_ch is not None:
        p = p_dweight_ch + (i_b * G + i_g) * (3 * H) + o_h
        tl.store(p, tl.sum(sum_ci, 0), mask=o_h < H)
        tl.store(p + H, tl.sum(sum_cf, 0), mask=o_h < H)
        tl.store(p + 2 * H, tl.sum(sum_co, 0), mask=o_h < H)


def lstm_backward(
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    reserve: Tensor,
    weight_hh: Tensor,
    weight_ch: Tensor | None,
    cx: Tensor,
    lengths: Tensor | None,
    dgates: Tensor,
    dhx: Tensor,
    dcx: Tensor,
    dweight_ch: Tensor | None,
    reverse: int,
    precision: str,
    configuration: Configuration,
    options: CellOptions | None = None,
) -> None:
    """Launch the kernel; everything but dy is contiguous.

    Args:
        dy: (T, B, G, H), any stride but in the last dimension; None for zeros.
        dhy, dcy: (G, B, H), None for zeros.
        reserve: (T, B, G, 5H), as forward left it.
        weight_hh, weight_ch, cx, lengths, reverse, precision, configuration, options: as in
            forward.
        dgates: (T, B, G, 4H), written.
        dhx, dcx: (G, B, H), written.
        dweight_ch: (tiles, G, 3H) in the dtype of the sums, written: a summand for each of the
            ceil(B / block_b) tiles of the batch. None if not wanted.
    """
    T, B, G, four_h = dgates.shape
    lstm_backward_kernel[(triton.cdiv(B, configuration.block_b), G)](
        dy,
        *(dy.stride()[:3] if dy is not None else (0, 0, 0)),
        dhy,
        dcy,
        reserve,
        weight_hh,
        weight_ch,
        cx,
        lengths,
        dgates,
        dhx,
        dcx,
        dweight_ch,
        reverse,
        T,
        B,
        G,
        H=four_h // 4,
        BLOCK_H=configuration.block_h,
        BLOCK_B=configuration.block_b,
        ACC=tl.float64 if dgates.element_size() == 8 else tl.float32,
        PRECISION=precision,
        NUM_STAGES=configuration.num_stages,
        num_warps=configuration.num_warps,
        enable_fp_fusion=True,
        **option_arguments(options),
    )
