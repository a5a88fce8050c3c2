"""Layer norms of tiles, and how the kernels of cells with layer norm are launched.

Tiles are in registers, (rows, units) in float32 (float64 for float64 tensors), with all units of
their rows and zeros outside of the mask. A mean is a sum over the threads of a program, through
shared memory. The variance is a sum of squared differences from the mean, whose digits do not
cancel.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from fastlstm.kernels.configurations import normalized_cell
from fastlstm.options import EPSILON

_EPSILON = tl.constexpr(EPSILON)


@triton.jit
def _scale(squares, n):
    """1 / the standard deviation, from the sum of squares (rows,) of n differences from a mean."""
    variance = squares / n + tl.full([1], _EPSILON, squares.dtype)
    return (1.0 / tl.sqrt(variance))[:, None]


@triton.jit
def normalise(x, mask, H):
    """Return x normalised over the H units of each row, and its scale; zero outside of the mask."""
    x = tl.where(mask, x - (tl.sum(x, 1) / H)[:, None], 0.0)
    scale = _scale(tl.sum(x * x, 1), H)
    return x * scale, scale


@triton.jit
def normalise_gates(i, f, g, o, mask, H):
    """Return the four tiles normalised over the 4H numbers of each row, and their scale."""
    mean = (tl.sum(i + f + g + o, 1) / (4 * H))[:, None]
    i, f = tl.where(mask, i - mean, 0.0), tl.where(mask, f - mean, 0.0)
    g, o = tl.where(mask, g - mean, 0.0), tl.where(mask, o - mean, 0.0)
    scale = _scale(tl.sum(i * i + f * f + (g * g + o * o), 1), 4 * H)
    return i * scale, f * scale, g * scale, o * scale, scale


def grid(B: int, G: int, H: int) -> tuple[int, int]:
    """Rows are along x: a grid has 2^31 - 1 programs there, and 65,535 along y."""
    return triton.cdiv(B, normalized_cell(H).block_b), G


def constants(H: int) -> dict[str, Any]:
    """The constants and options of both kernels."""
    how = normalized_cell(H)
    blocks = {"BLOCK_B": how.block_b, "BLOCK_H": how.block_h}
    return {**blocks, "num_warps": how.num_warps, "enable_fp_fusion": True}
