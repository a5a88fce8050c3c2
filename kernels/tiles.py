"""Load, store and multiply tiles of gates, peepholes and recurrent weights.

Prefixes in all kernels: p_ a pointer, i_ an index of this program, o_ a range of indices; tiles
have the names of the equations.
"""

import triton
import triton.language as tl

from fastlstm.kernels import INTERPRETED

# The interpreter keeps bfloat16 as 16-bit integers, and its dot multiplies those. As float32 the
# products are the tensor cores' own: those of two bfloat16 numbers are exact in float32.
_UPCAST_BFLOAT16 = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, PRECISION: tl.constexpr, ACC: tl.constexpr):
    """a @ b, summed up in ACC.

    PRECISION is about float32 on a GPU: "tf32" rounds the operands to 11 bits, "tf32x3" adds the
    products of what was rounded off, but for the smallest, and errs by 2^-22. "ieee" would do
    without tensor cores, and Triton 3.9.0 fails an assertion of its compiler on such a kernel.
    """
    if _UPCAST_BFLOAT16 and a.dtype == tl.bfloat16:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=ACC)


@triton.jit
def load_gates(p_gates, H, mask, ACC: tl.constexpr):
    """Four tiles i, f, g, o that lie H elements apart."""
    i = tl.load(p_gates, mask=mask, other=0.0).to(ACC)
    f = tl.load(p_gates + H, mask=mask, other=0.0).to(ACC)
    g = tl.load(p_gates + 2 * H, mask=mask, other=0.0).to(ACC)
    o = tl.load(p_gates + 3 * H, mask=mask, other=0.0).to(ACC)
    return i, f, g, o


@triton.jit
def store_gates(p_gates, i, f, g, o, H, mask):
    """Four tiles i, f, g, o to addresses H elements apart."""
    tl.store(p_gates, i, mask=mask)
    tl.store(p_gates + H, f, mask=mask)
    tl.store(p_gates + 2 * H, g, mask=mask)
    tl.store(p_gates + 3 * H, o, mask=mask)


@triton.jit
def add_row_sums(p_sums, tile, o_h, H):
    """Add the sum over the rows of a tile to the numbers there; no other program touches them."""
    mask = o_h < H
    sums = tl.load(p_sums + o_h, mask=mask, other=0.0)
    tl.store(p_sums + o_h, sums + tl.sum(tile, 0), mask=mask)


@triton.jit
def load_peepholes(p_weight_ch, i_g, o_h, H, ACC: tl.constexpr):
    """Rows i, f, o of group ``i_g`` of weight_ch (G, 3H); zeros, never used, without one."""
    if p_weight_ch is None:
        w_ci = tl.zeros([1, 1], ACC)
        w_cf = w_ci
        w_co = w_ci
    else:
        p = p_weight_ch + i_g * (3 * H) + o_h[None, :]
        mask = o_h[None, :] < H
        w_ci = tl.load(p, mask=mask, other=0.0).to(ACC)
        w_cf = tl.load(p + H, mask=mask, other=0.0).to(ACC)
        w_co = tl.load(p + 2 * H, mask=mask, other=0.0).to(ACC)
    return w_ci, w_cf, w_co


@triton.jit
def load_keep(keep, t, i_g, o_b, o_h, mask, ACC: tl.constexpr):
    """The share of the state before that a state keeps at step t.

    ``keep`` is a pointer to (T, B, G, H) and the strides of T, B and G.
    """
    p_keep, stride_t, stride_b, stride_g = keep
    p = p_keep + t.to(tl.int64) * stride_t + i_g.to(tl.int64) * stride_g
    p += o_b.to(tl.int64)[:, None] * stride_b + o_h[None, :]
    return tl.load(p, mask=mask, other=0.0).to(ACC)


@triton.jit
def load_weights(p_weight_hh, i_g, o_row, o_column, H: tl.constexpr):
    """The four (H, H) matrices i, f, g, o of group ``i_g`` of weight_hh (G, 4H, H).

    The ranges are shaped by who calls: [:, None] and [None, :] as it lies, the other way round
    for the transpose. Padding up to a power of two is zero.
    """
    p = p_weight_hh + i_g * (4 * H * H) + o_row * H + o_column
    mask = (o_row < H) & (o_column < H)
    w_i = tl.load(p, mask=mask, other=0.0)
    w_f = tl.load(p + H * H, mask=mask, other=0.0)
    w_g = tl.load(p + 2 * H * H, mask=mask, other=0.0)
    w_o = tl.load(p + 3 * H * H, mask=mask, other=0.0)
    return w_i, w_f, w_g, w_o
