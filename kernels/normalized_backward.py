"""One step of an LSTM with layer norm, backward, without its matrix product.

Programs are those of ``normalized_forward``. A step normalises z and c~, which it computes anew
from the gates and c', and has two more sums over a row for the gradient of each norm. It reads the
reserve (9H a row, and the c before) and writes dgates (4H), and dz, the gradient of z, twice: for
the whole sequence, and as the next matrix product reads it, (G, B, 4H).

Each program adds the gradients of gains, biases and peepholes to sums of its own, 9H numbers that
are read and written in a step, beside the 30H a row of the rest. So no sum needs atomics.

Compiled for sm_80 and sm_90 (``python -m benchmarks.triton_resources``) and tested under
Triton's interpreter; it has not yet run on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from fastlstm.kernels.gates import cell_output_backward, new_cell, next_cell_backward
from fastlstm.kernels.norms import constants, grid, normalise, normalise_gates
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
def normalized_cell_backward_kernel(
    p_dy,
    stride_t,
    stride_b,
    stride_g,
    p_reserve,
    p_weight_ch,
    p_norm_hh,
    p_norm_c,
    p_cx,
    p_lengths,
    p_dh,
    p_dc,
    p_dgates,
    p_dz,
    p_dhgates,
    p_dweight_ch,
    p_dnorm_hh,
    p_dnorm_c,
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
    """See the module's docstring; :func:`normalized_cell_backward` describes the arguments."""
    ACC: tl.constexpr = p_dc.dtype.element_ty
    i_g = tl.program_id(1).to(tl.int64)
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_h = tl.arange(0, BLOCK_H)
    units = (o_h < H)[None, :]
    mask = (o_b < B)[:, None] & units
    backwards = ((reverse >> tl.program_id(1)) & 1) != 0
    t = tl.where(backwards, T - 1 - step, step).to(tl.int64)
    there = mask  # past its length a row's numbers may be anything: they are read as zeros
    if p_lengths is not None:
        there = mask & (t < tl.load(p_lengths + o_b, mask=o_b < B, other=0))[:, None]

    o_t = ((t * B + o_b) * G + i_g)[:, None]
    p = p_reserve + o_t * (9 * H) + o_h[None, :]
    i, f, g, o = load_gates(p, H, there, ACC)
    z_i, z_f, z_g, z_o = load_gates(p + 5 * H, H, there, ACC)
    o_state = (i_g * B + o_b)[:, None]
    p_step_dz = p_dhgates + o_state * (4 * H) + o_h[None, :]
    o_state = o_state * H + o_h[None, :]
    if step > 0:
        before = tl.where(backwards, 1, -1).to(tl.int64) * B * G * 9 * H
        c_prev = tl.load(p + 4 * H + before, mask=there, other=0.0).to(ACC)
    else:
        c_prev = tl.load(p_cx + o_state, mask=there, other=0.0).to(ACC)
    dh = tl.load(p_dh + o_state, mask=mask, other=0.0).to(ACC)
    dc = tl.load(p_dc + o_state, mask=mask, other=0.0)
    dh_t, dc_t = dh, dc
    if p_dy is not None:
        p = p_dy + t * stride_t + i_g * stride_g + o_b[:, None] * stride_b + o_h[None, :]
        dh_t += tl.load(p, mask=there, other=0.0).to(ACC)
    dh_kept, dc_kept = tl.zeros_like(dc), tl.zeros_like(dc)
    if keep_h is not None:
        keep = load_keep(keep_h, t, i_g, o_b, o_h, there, ACC)
        dh_kept = keep * dh_t
        dh_t = (1.0 - keep) * dh_t
    if keep_c is not None:
        keep = load_keep(keep_c, t, i_g, o_b, o_h, there, ACC)
        dc_kept = keep * dc
        dc_t = (1.0 - keep) * dc

    p_sums = tl.program_id(0) * G + i_g  # of the parameters of this program's rows and group
    c = new_cell(i, f, g, c_prev, CLIP)
    if p_norm_c is not None:
        normal, scale = normalise(c, there, H)
        p = p_norm_c + i_g * (2 * H) + o_h[None, :]
        gain = tl.load(p, mask=units, other=0.0).to(ACC)
        bias = tl.load(p + H, mask=units, other=0.0).to(ACC)
        d_o, d = cell_output_backward(o, gain * normal + bias, dh_t)
        add_row_sums(p_dnorm_c + p_sums * (2 * H), d * normal, o_h, H)
        add_row_sums(p_dnorm_c + p_sums * (2 * H) + H, d, o_h, H)
        d *= gain
        mean = (tl.sum(d, 1) / H)[:, None]
        dc_t += scale * (d - mean - normal * (tl.sum(d * normal, 1) / H)[:, None])
    else:
        d_o, d = cell_output_backward(o, c, dh_t)
        dc_t += d
    w_ci, w_cf, w_co = load_peepholes(p_weight_ch, i_g, o_h, H, ACC)
    PEEPHOLE: tl.constexpr = p_weight_ch is not None
    d_i, d_f, d_g, dc_t = next_cell_backward(
        i, f, g, c_prev, d_o, dc_t, w_ci, w_cf, w_co, PEEPHOLE, CLIP
    )
    tl.store(p_dh + o_state, tl.where(there, dh_kept, dh), mask=mask)
    tl.store(p_dc + o_state, tl.where(there, dc_t + dc_kept, dc), mask=mask)
    store_gates(p_dgates + o_t * (4 * H) + o_h[None, :], d_i, d_f, d_g, d_o, H, mask)
    if p_dweight_ch is not None:
        p = p_dweight_ch + p_sums * (3 * H)
        add_row_sums(p, d_i * c_prev, o_h, H)
        add_row_sums(p + H, d_f * c_prev, o_h, H)
        add_row_sums(p + 2 * H, d_o * c, o_h, H)

    z_i, z_f, z_g, z_o, scale = normalise_gates(z_i, z_f, z_g, z_o, there, H)
    p = p_dnorm_hh + p_sums * (4 * H)
    add_row_sums(p, d_i * z_i, o_h, H)
    add_row_sums(p + H, d_f * z_f, o_h, H)
    add_row_sums(p + 2 * H, d_g * z_g, o_h, H)
    add_row_sums(p + 3 * H, d_o * z_o, o_h, H)
    n_i, n_f, n_g, n_o = load_gates(p_norm_hh + i_g * (4 * H) + o_h[None, :], H, units, ACC)
    d_i, d_f, d_g, d_o = d_i * n_i, d_f * n_f, d_g * n_g, d_o * n_o
    mean = (tl.sum(d_i + d_f + d_g + d_o, 1) / (4 * H))[:, None]
    along = d_i * z_i + d_f * z_f + (d_g * z_g + d_o * z_o)
    along = (tl.sum(along, 1) / (4 * H))[:, None]
    d_i, d_f = scale * (d_i - mean - z_i * along), scale * (d_f - mean - z_f * along)
    d_g, d_o = scale * (d_g - mean - z_g * along), scale * (d_o - mean - z_o * along)
    store_gates(p_step_dz, d_i, d_f, d_g, d_o, H, mask)
    store_gates(p_dz + o_t * (4 * H) + o_h[None, :], d_i, d_f, d_g, d_o, H, mask)


def normalized_cell_backward(
    dy: Tensor | None,
    reserve: Tensor,
    weight_ch: Tensor | None,
    cx: Tensor,
    lengths: Tensor | None,
    dh: Tensor,
    dc: Tensor,
    dhgates: Tensor,
    dgates: Tensor,
    dz: Tensor,
    dweight_ch: Tensor | None,
    dnorm_hh: Tensor,
    dnorm_c: Tensor | None,
    reverse: int,
    step: int,
    options: CellOptions,
) -> None:
    """Launch the gradient of step ``step``.

    Arguments are those of :func:`fastlstm.kernels.lstm_cell.lstm_cell_backward`, and:

    Args:
        reserve: (T, B, G, 9H).
        dhgates: (G, B, 4H), written: the dz of this step.
        dz: (T, B, G, 4H), this step's part written.
        dweight_ch, dnorm_hh, dnorm_c: (tiles, G, 3H), (tiles, G, 4H) and (tiles, G, 2H) in the
            dtype of dc; this step is added. The batch has ceil(B / rows) tiles, with the rows of
            :func:`fastlstm.kernels.configurations.normalized_cell`.
    """
    T, B, G, four_h = dgates.shape
    H = four_h // 4
    normalized_cell_backward_kernel[grid(B, G, H)](
        dy,
        *(dy.stride()[:3] if dy is not None else (0, 0, 0)),
        reserve,
        weight_ch,
        options.norm_hh,
        options.norm_c,
        cx,
        lengths,
        dh,
        dc,
        dgates,
        dz,
        dhgates,
        dweight_ch,
        dnorm_hh,
        dnorm_c,
        *(reverse, step, T, B, G, H),
        **constants(H),
        **option_arguments(options),
    )
