"""The forward recurrence of small LSTMs: all steps, groups and rows in a single launch.

A program computes one group and BLOCK_B rows of the batch, from the first step to the last.
Programs are independent, so there is no barrier between steps::

    shared memory   W_hh of the group: four (H, H) matrices i, f, g, o
    registers       h and c of the program's rows, the gates, the peepholes, the mask of h
    read a step     igates (BLOCK_B, 4H); with zoneout keep_h and keep_c (BLOCK_B, H)
    written a step  y (BLOCK_B, H) and, in training, the reserve (BLOCK_B, 5H), once

After one product with each of the four matrices a thread has all gates of a unit, so activations
need no exchange. Only h is exchanged between threads, through shared memory, as the left operand of
the next step. Sums, c and the activations are float32, float64 for float64.

Compiled for sm_80, sm_90 and sm_100 (``python -m benchmarks.triton_resources``) and tested under
Triton's interpreter; it has not yet run on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from fastlstm.kernels.gates import cell_forward, mix
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
def lstm_forward_kernel(
    p_igates,
    stride_t,
    stride_b,
    stride_g,
    p_weight_hh,
    p_weight_ch,
    p_hx,
    p_cx,
    p_lengths,
    p_y,
    p_hy,
    p_cy,
    p_reserve,
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
    """See the module's docstring; :func:`lstm_forward` describes the arguments."""
    OPERAND: tl.constexpr = p_hx.dtype.element_ty
    PEEPHOLE: tl.constexpr = p_weight_ch is not None
    i_g = tl.program_id(1)
    o_b = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    o_h = tl.arange(0, BLOCK_H)
    mask = (o_b < B)[:, None] & (o_h < H)[None, :]
    backwards = ((reverse >> i_g) & 1) != 0

    # Transposed: h (BLOCK_B, H) is multiplied from the left.
    w_i, w_f, w_g, w_o = load_weights(p_weight_hh, i_g, o_h[None, :], o_h[:, None], H)
    w_ci, w_cf, w_co = load_peepholes(p_weight_ch, i_g, o_h, H, ACC)
    o_state = (i_g * B + o_b)[:, None] * H + o_h[None, :]
    h = tl.load(p_hx + o_state, mask=mask, other=0.0)
    c = tl.load(p_cx + o_state, mask=mask, other=0.0).to(ACC)
    if p_lengths is not None:
        lengths = tl.load(p_lengths + o_b, mask=o_b < B, other=0)[:, None]
    if p_hidden_mask is not None:
        hidden_mask = tl.load(p_hidden_mask + o_state, mask=mask, other=0.0).to(ACC)

    # Within a time step 32 bits are enough, and save registers; igates may have any strides.
    o_row = (o_b * G + i_g)[:, None]
    o_y = o_row * H + o_h[None, :]
    o_reserve = o_row * (5 * H) + o_h[None, :]
    o_igates = o_b.to(tl.int64)[:, None] * stride_b + o_h[None, :]
    p_igates += i_g.to(tl.int64) * stride_g
    for step in tl.range(T, num_stages=NUM_STAGES):
        t = tl.where(backwards, T - 1 - step, step).to(tl.int64)
        i, f, g, o = load_gates(p_igates + t * stride_t + o_igates, H, mask, ACC)
        operand = h
        if p_hidden_mask is not None:
            operand = (h.to(ACC) * hidden_mask).to(OPERAND)
        i += dot(operand, w_i, PRECISION, ACC)
        f += dot(operand, w_f, PRECISION, ACC)
        g += dot(operand, w_g, PRECISION, ACC)
        o += dot(operand, w_o, PRECISION, ACC)
        i, f, g, o, c_t, h_t = cell_forward(i, f, g, o, c, w_ci, w_cf, w_co, PEEPHOLE, CLIP)
        if keep_h is not None:
            keep = load_keep(keep_h, t, i_g, o_b, o_h, mask, ACC)
            h_t = mix(h.to(ACC), h_t, keep)
        if keep_c is not None:
            keep = load_keep(keep_c, t, i_g, o_b, o_h, mask, ACC)
            c_t = mix(c, c_t, keep)
        y = h_t.to(OPERAND)
        if p_lengths is not None:  # past its length a row keeps its state and emits zero
            active = t < lengths
            c = tl.where(active, c_t, c)
            h = tl.where(active, y, h)
            y = tl.where(active, y, 0.0).to(OPERAND)
        else:
            c = c_t
            h = y
        tl.store(p_y + t * (B * G * H) + o_y, y, mask=mask)
        if p_reserve is not None:
            p = p_reserve + t * (B * G * 5 * H) + o_reserve
            store_gates(p, i, f, g, o, H, mask)
            tl.store(p + 4 * H, c, mask=mask)
    tl.store(p_hy + o_state, h, mask=mask)
    tl.store(p_cy + o_state, c, mask=mask)


def lstm_forward(
    igates: Tensor,
    weight_hh: Tensor,
    weight_ch: Tensor | None,
    hx: Tensor,
    cx: Tensor,
    lengths: Tensor | None,
    y: Tensor,
    hy: Tensor,
    cy: Tensor,
    reserve: Tensor | None,
    reverse: int,
    precision: str,
    configuration: Configuration,
    options: CellOptions | None = None,
) -> None:
    """Launch the kernel; everything but igates is contiguous.

    Args:
        igates: (T, B, G, 4H), any stride but in the last dimension.
        weight_hh: (G, 4H, H).
        weight_ch: (G, 3H) peepholes i, f, o, or None.
        hx, cx: (G, B, H) first states.
        lengths: (B,) integers, or None.
        y: (T, B, G, H), hy, cy: (G, B, H); written.
        reserve: (T, B, G, 5H), written: activated gates and the running c; None in inference.
        reverse: bit g is set for a group g that reads from the last step to the first.
        precision: of float32 products, "tf32" or "tf32x3".
        configuration: from :func:`fastlstm.kernels.configurations.single_launch`.
        options: see :func:`fastlstm.kernels.options.option_arguments`. Default: none.
    """
    T, B, G, H = y.shape
    lstm_forward_kernel[(triton.cdiv(B, configuration.block_b), G)](
        igates,
        *igates.stride()[:3],
        weight_hh,
        weight_ch,
        hx,
        cx,
        lengths,
        y,
        hy,
        cy,
        reserve,
        reverse,
        T,
        B,
        G,
        H=H,
        BLOCK_H=configuration.block_h,
        BLOCK_B=configuration.block_b,
        ACC=tl.float64 if y.element_size() == 8 else tl.float32,
        PRECISION=precision,
        NUM_STAGES=configuration.num_stages,
        num_warps=configuration.num_warps,
        enable_fp_fusion=True,
        **option_arguments(options),
    )
