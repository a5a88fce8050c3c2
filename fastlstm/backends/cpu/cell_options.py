"""The options of a call's cells as the kernels for CPUs take them."""

from __future__ import annotations

from collections.abc import Sequence

from fastlstm import _C
from fastlstm.backends import pointers
from fastlstm.call import Call


def arguments(call: Call, forward: bool) -> tuple[int, Sequence[object]]:
    """The address of the options, and the owners of the memory."""
    options = call.options
    assert options is not None
    is_packed = call.layout.batch_sizes is not None
    mask, keep_h, keep_c = options.hidden_mask, options.keep_h, options.keep_c
    mask = None if mask is None else mask.contiguous()
    masked_hx = mask * call.hx if forward and mask is not None else None
    keep_h = None if keep_h is None else pointers.unit_stride(keep_h)
    keep_c = None if keep_c is None else pointers.unit_stride(keep_c)
    struct = _C.LstmCellOptions(
        hidden_mask=pointers.address(mask),
        masked_hx=pointers.address(masked_hx),
        keep_h=pointers.address(keep_h),
        keep_h_stride=pointers.outer_strides(keep_h, is_packed),
        keep_c=pointers.address(keep_c),
        keep_c_stride=pointers.outer_strides(keep_c, is_packed),
        cell_clip=options.cell_clip,
    )
    return struct.address, (struct, mask, masked_hx, keep_h, keep_c)
