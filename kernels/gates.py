"""One step of the LSTM cell, forward and backward, as every kernel here computes it.

Nothing in this file accesses memory: tiles are in registers, in float32 (float64 for float64
tensors). The equations are those of ``fastlstm/backends/reference.py``; peepholes see c'
at the gates i and f, and the new c at o. ``csrc/cell.h`` is the same for the CPU. CLIP is the
largest magnitude of the new c, 0 for none.
"""

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)); exactly 0 and 1 where exp overflows or vanishes."""
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """tanh(x), in float32 with an error of a few units in the last place, near zero too.

    (1 - e) / (1 + e) with e = exp(-2 |x|) loses digits to cancellation where |x| is small; there
    the odd polynomial of degree 7 takes over, whose next term is below 6e-8 of x at 0.2. In
    float64 the error is a rounding of 1, not of the result.
    """
    e = tl.exp(-2.0 * tl.abs(x))
    y = (1.0 - e) / (1.0 + e)
    y = tl.where(x < 0, -y, y)
    if x.dtype == tl.float32:
        s = x * x
        near_zero = x + x * s * (-1.0 / 3 + s * (2.0 / 15 - s * (17.0 / 315)))
        y = tl.where(tl.abs(x) < 0.2, near_zero, y)
    return y


@triton.jit
def new_cell(i, f, g, c, CLIP: tl.constexpr):
    """Return the new c from the activations i, f, g and c'. A NaN is not clipped, as in torch."""
    c = f * c + i * g
    if CLIP > 0:
        limit = tl.full([1, 1], CLIP, c.dtype)
        c = tl.where(c > limit, limit, tl.where(c < -limit, -limit, c))
    return c


@triton.jit
def mix(before, after, keep):
    """Return a state after zoneout: the share ``keep`` of it is that of the step before."""
    return keep * before + (1.0 - keep) * after


@triton.jit
def cell_forward(i, f, g, o, c, w_ci, w_cf, w_co, PEEPHOLE: tl.constexpr, CLIP: tl.constexpr):
    """Return the activations i, f, g, o, the new c, and h, from pre-activations and c'."""
    if PEEPHOLE:
        i += w_ci * c
        f += w_cf * c
    i, f, g = sigmoid(i), sigmoid(f), tanh(g)
    c = new_cell(i, f, g, c, CLIP)
    if PEEPHOLE:
        o += w_co * c
    o = sigmoid(o)
    return i, f, g, o, c, o * tanh(c)


@triton.jit
def cell_output_backward(o, c, dh):
    """Return the gradients of the pre-activation of o and of c, from that of h = o * tanh(c)."""
    tanh_c = tanh(c)
    return dh * tanh_c * o * (1.0 - o), dh * o * (1.0 - tanh_c * tanh_c)


@triton.jit
def next_cell_backward(
    i, f, g, c_prev, d_o, dc, w_ci, w_cf, w_co, PEEPHOLE: tl.constexpr, CLIP: tl.constexpr
):
    """Return the gradients of the pre-activations i, f, g and of c'.

    ``d_o`` is that of the pre-activation o, and ``dc`` that of the new c before zoneout.
    """
    if PEEPHOLE:
        dc += w_co * d_o
    if CLIP > 0:
        limit = tl.full([1, 1], CLIP, c_prev.dtype)
        dc = tl.where(tl.abs(f * c_prev + i * g) <= limit, dc, 0.0)
    d_i = dc * g * i * (1.0 - i)
    d_f = dc * c_prev * f * (1.0 - f)
    d_g = dc * i * (1.0 - g * g)
    dc = dc * f
    if PEEPHOLE:
        dc += w_ci * d_i + w_cf * d_f
    return d_i, d_f, d_g, dc


@triton.jit
def cell_backward(
    i, f, g, o, c_prev, c, dh, dc, w_ci, w_cf, w_co, PEEPHOLE: tl.constexpr, CLIP: tl.constexpr
):
    """Return the gradients of the pre-activations i, f, g, o and of c'.

    ``c`` is the new c before zoneout, and ``dc`` its gradient without this step's part.
    """
    d_o, dc_of_h = cell_output_backward(o, c, dh)
    d_i, d_f, d_g, dc = next_cell_backward(
        i, f, g, c_prev, d_o, dc + dc_of_h, w_ci, w_cf, w_co, PEEPHOLE, CLIP
    )
    return d_i, d_f, d_g, d_o, dc
