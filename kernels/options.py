"""The arguments of the kernels for the options of a call: masks, zoneout and a limit of c.

An option that is off is None, or 0 for the limit. Triton compiles such an argument as a constant,
so that the kernels of calls without options contain nothing of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from fastlstm.options import CellOptions


def option_arguments(options: CellOptions | None) -> dict[str, Any]:
    """Return the arguments by name.

    hidden_mask (G, B, H) must be contiguous; keep_h and keep_c (T, B, G, H) may have any stride but
    in the last dimension. The limit of c is a constant of the compiled kernel: as an argument it
    would be rounded to float32, in a call of float64 too.
    """
    if options is None:
        return {"p_hidden_mask": None, "keep_h": None, "keep_c": None, "CLIP": 0.0}
    return {
        "p_hidden_mask": options.hidden_mask,
        "keep_h": _with_strides(options.keep_h),
        "keep_c": _with_strides(options.keep_c),
        "CLIP": float(options.cell_clip),
    }


def _with_strides(keep: Tensor | None) -> tuple[Tensor | int, ...] | None:
    """A tensor (T, B, G, H) and its strides of T, B and G."""
    return None if keep is None else (keep, *keep.stride()[:3])
