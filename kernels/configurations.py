"""How every kernel is divided into programs, by architecture; nothing is tuned at run time.

These numbers have not been measured on a GPU. They follow from what a kernel must hold:

* BLOCK_B = 16 rows is the height of the tensor cores' tile; a larger batch makes more programs.
* A warp takes 8 columns of each gate, the width of that tile, up to 8 warps: more of them would
  wait for each other more often.
* W_hh lies in shared memory: 128 KiB for 128 units in 16 bits and, as two halves of TF32 each,
  for 64 in float32; 32 for 32 in float64. Twice the units would be four times that, and no block
  may have more than 227 KiB.
* What a step reads is copied to shared memory two steps ahead (3 stages), since a load takes about
  as long as a step's product. Beside the largest W_hh that makes 184 KiB in the backward kernel
  (196 by Triton 3.7): too much for the 163 of sm_80, which has one stage there: plain loads.
* Float64, which is for checking gradients, has no registers to spare for more than one stage, nor
  has float32 in the two warps of up to 16 units.
* Other GPUs have 99 KiB, and so only the smaller sizes.

``python -m benchmarks.triton_resources`` compiles all of it and prints registers, spills and shared
memory. A GPU for which other numbers were measured to be better gets its own table here.
"""

from __future__ import annotations

from typing import NamedTuple


class Configuration(NamedTuple):
    """How one kernel is divided into programs."""

    block_b: int
    """rows of the batch in a program"""
    block_h: int
    """units in a program; all of them in the kernels of a whole sequence"""
    num_warps: int
    num_stages: int = 1
    """steps in flight, the present one included"""


# 64 units of a row are one line of 128 bytes in 16 bits; 8 rows share the loaded peepholes, and one
# row of partial sums in backward.
CELL = Configuration(block_b=8, block_h=64, num_warps=4)


def normalized_cell(H: int) -> Configuration:
    """Return the configuration of the cell with layer norm, of which a program has whole rows.

    A thread has 4 units up to 2048 of them, so that about 25 tiles of a program fit in registers.
    """
    block_h = max(16, 1 << (H - 1).bit_length())
    block_b = max(1, min(CELL.block_b, 512 // block_h))
    return Configuration(block_b, block_h, num_warps=min(16, max(1, block_b * block_h // 128)))


# For the kernels of a whole sequence: by bytes of an element and block_h, (warps, stages).
_Table = dict[int, dict[int, tuple[int, int]]]

_SM_90: _Table = {
    2: {16: (2, 3), 32: (4, 3), 64: (8, 3), 128: (8, 3)},
    4: {16: (2, 1), 32: (4, 3), 64: (8, 3)},
    8: {16: (2, 1), 32: (4, 1)},
}
_SM_80: _Table = {
    2: {16: (2, 3), 32: (4, 3), 64: (8, 3), 128: (8, 1)},
    4: {16: (2, 1), 32: (4, 3), 64: (8, 1)},
    8: {16: (2, 1), 32: (4, 1)},
}
_OTHERS: _Table = {
    2: {16: (2, 3), 32: (4, 3), 64: (8, 3)},
    4: {16: (2, 1), 32: (4, 3)},
    8: {16: (2, 1)},
}
_TABLES: dict[tuple[int, int], _Table] = {(8, 0): _SM_80, (9, 0): _SM_90, (10, 0): _SM_90}


def single_launch(capability: tuple[int, int], element_size: int, H: int) -> Configuration | None:
    """Return the configuration for a whole sequence in one launch, or None if H is too large.

    Args:
        capability: the GPU's compute capability, (9, 0) for sm_90.
        element_size: bytes of one element of the tensors.
        H: hidden units.
    """
    for block_h, (num_warps, num_stages) in _TABLES.get(capability, _OTHERS)[element_size].items():
        if block_h >= H:
            return Configuration(16, block_h, num_warps, num_stages)
    return None
