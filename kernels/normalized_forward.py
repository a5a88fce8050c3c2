"""One step of an LSTM with layer norm, forward, without its matrix product.

As in ``lstm_cell``, cuBLAS multiplies first: z = W_hh (hidden_mask * h'). A program has BLOCK_B
rows of a group with all of their units, since the norms of z and of c~, the c before zoneout, need
the mean and the variance of a row. A row is in registers from the first load to the last store. A
step reads and writes what ``lstm_cell`` does, and in training writes z (4H a row) to the reserve
too.

Compiled for sm_80 and sm_90 (``python -m benchmarks.triton_resources``) and tested under
Triton's interpreter; it has not yet run on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from fastlstm.kernels.gates import cell_forward, mix, tanh
from fastlstm.kernels.norms import constants, grid, normalise, normalise_gates
from fastlstm.kernels.options import option_arguments
from fastlstm.kernels.tiles import load_gates, load_keep, load_peepholes, store_gates

if TYPE_CHECKING:
    from torch import Tensor

    from fastlstm.options import CellOptions


@triton.jit(do_not_specialize=["step", "T", "B", "reverse"])
def normalized_cell_forward_kernel(
    p_igates,
    stride_t,
    stride_b,
    stride_g,
    p_hgates,
    p_weight_ch,
    p_norm_hh,
    p_norm_c,
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
    """See the module's docstring; :func:`normalized_cell_forward` describes the arguments."""
    OPERAND: tl.constexpr = p_h.dtype.element_ty
    ACC: tl.constexpr = p_c.dtype.element_ty
    i_g = tl.program_id(1).to(tl.int64)
    o_b = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_h = tl.arange(0, BLOCK_H)
    units = (o_h < H)[None, :]
    mask = (o_b < B)[:, None] & units
    t = tl.where(((reverse >> tl.program_id(1)) & 1) != 0, T - 1 - step, step).to(tl.int64)

    o_state = (i_g * B + o_b)[:, None]
    z_i, z_f, z_g, z_o = load_gates(p_hgates + o_state * (4 * H) + o_h[None, :], H, mask, ACC)
    p = p_igates + t * stride_t + i_g * stride_g + o_b[:, None] * stride_b + o_h[None, :]
    i, f, g, o = load_gates(p, H, mask, ACC)
    h_i, h_f, h_g, h_o, _ = normalise_gates(z_i, z_f, z_g, z_o, mask, H)
    n_i, n_f, n_g, n_o = load_gates(p_norm_hh + i_g * (4 * H) + o_h[None, :], H, units, ACC)
    o_state = o_state * H + o_h[None, :]
    c = tl.load(p_c + o_state, mask=mask, other=0.0)
    w_ci, w_cf, w_co = load_peepholes(p_weight_ch, i_g, o_h, H, ACC)
    i, f, g, o = i + n_i * h_i, f + n_f * h_f, g + n_g * h_g, o + n_o * h_o
    PEEPHOLE: tl.constexpr = p_weight_ch is not None
    i, f, g, o, c_t, h_t = cell_forward(i, f, g, o, c, w_ci, w_cf, w_co, PEEPHOLE, CLIP)
    if p_norm_c is not None:
        normal, _ = normalise(c_t, mask, H)
        p = p_norm_c + i_g * (2 * H) + o_h[None, :]
        gain = tl.load(p, mask=units, other=0.0).to(ACC)
        bias = tl.load(p + H, mask=units, other=0.0).to(ACC)
        h_t = o * tanh(gain * normal + bias)
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
        p = p_reserve + o_t * (9 * H) + o_h[None, :]
        store_gates(p, i, f, g, o, H, mask)
        tl.store(p + 4 * H, c_t, mask=mask)
        store_gates(p + 5 * H, z_i, z_f, z_g, z_o, H, mask)


def normalized_cell_forward(
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
    options: CellOptions,
    masked_h: Tensor | None = None,
) -> None:
    """Launch step ``step``.

    Arguments are those of :func:`fastlstm.kernels.lstm_cell.lstm_cell_forward`, but ``igates`` are
    normalised already, ``options`` have norm_hh, and a step of the reserve is (B, G, 9H).
    """
    T, B, G, H = y.shape
    normalized_cell_forward_kernel[grid(B, G, H)](
        igates,
        *igates.stride()[:3],
        hgates,
        weight_ch,
        options.norm_hh,
        options.norm_c,
        lengths,
        h,
        c,
        y,
        reserve,
        *(reverse, step, T, B, G, H),
        p_masked_h=masked_h,
        **constants(H),
        **option_arguments(options),
    )
