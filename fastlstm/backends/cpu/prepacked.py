"""Packed weights that the cpu backend keeps from call to call, and never stale ones."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlstm import _C
from fastlstm.backends.pointers import allocate

_Weight = tuple[int, int]  # group 0's address, and the elements to the next group's


class PackedWeights:
    """A layer's weights in the order in which ``cpu.forward`` reads them; empty at first.

    Every call that reads them sums the live weights up (``csrc/cpu/checksum.h``), and packs them
    anew where the sum is not the one of those that were packed. So no write goes unseen, whoever
    made it: an optimiser, ``.data``, numpy. The sum reads at the speed of memory; packing takes
    several times as long.

    Copies and pickles are empty again.
    """

    def __init__(self) -> None:
        # One tuple, replaced as a whole: another thread may be reading the memory of the old one.
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    def __reduce__(self) -> tuple[type[PackedWeights], tuple[()]]:
        return PackedWeights, ()

    def of(
        self,
        dtype: str,
        sizes: tuple[int, int, int, int],
        weight_ih: _Weight,
        weight_hh: _Weight,
        num_threads: int,
        isa: str,
    ) -> Tensor:
        """These weights, packed, as bytes; ``sizes`` are G, H, I, P, the rest as ``_C`` has it."""
        G, H, I, P = sizes
        weights: dict[str, Any] = {
            "dtype": dtype,
            "G": G,
            "H": H,
            "I": I,
            "P": P,
            "weight_ih": weight_ih,
            "weight_hh": weight_hh,
            "num_threads": num_threads,
            "isa": isa,
        }
        key = (dtype, sizes, isa, _C.lstm_checksum(**weights))
        kept = self._kept
        if kept is None or kept[0] != key:
            size = _C.lstm_forward_packed(dtype, *sizes, isa)
            memory = allocate(size)
            _C.lstm_pack(**weights, packed=memory.data_ptr())
            self._kept = kept = key, memory
        return kept[1]
