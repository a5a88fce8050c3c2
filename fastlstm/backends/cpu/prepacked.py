"""The weights in the order in which the CPU kernels read them, kept from call to call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastlstm import _C
from fastlstm.backends.pointers import allocate
from fastlstm.call import Call, Results, Wanted


class PrepackedWeights:
    """A cache of one layer's prepacked weights for ``lstm`` and ``lstm_sequence``; empty at first.

    Prepacked weights are a copy in the order in which the CPU kernels read them. Every call
    computes a checksum of the live weights (``csrc/cpu/checksum.cpp``), and copies them again if it
    differs from that of the weights that were copied. So every write is detected: by an
    optimiser, through ``.data``, by numpy. A checksum reads at the speed of memory; packing takes
    several times as long.

    Copies and pickles of the cache are empty.

    Example:
        >>> weights = fastlstm.LSTMWeights(torch.randn(64, 8), torch.randn(64, 16))
        >>> cache = fastlstm.PrepackedWeights()
        >>> with torch.no_grad():
        ...     y, state = fastlstm.lstm(torch.randn(50, 2, 8), None, [weights], prepacked=[cache])
        >>> y.shape
        torch.Size([50, 2, 16])
    """

    def __init__(self) -> None:
        # One tuple, replaced as a whole: another thread may be reading the memory of the old one.
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    def __reduce__(self) -> tuple[type[PrepackedWeights], tuple[()]]:
        return PrepackedWeights, ()

    def run(self, call: Call, wanted: Wanted) -> Results | None:
        """Run a call by other kernels than ``lstm_forward``; None, as these weights have none."""
        return None

    def of(
        self,
        sizes: tuple[str, int, int, int, int],
        parameters: dict[str, tuple[int, int]],
        num_threads: int,
        isa: str,
    ) -> Tensor:
        """The packed weights, as bytes.

        Args:
            sizes: dtype, G, H, I, P as the kernels take them.
            parameters: what :func:`pointers.group_pointers` made of the weights.
            num_threads, isa: of the call.
        """
        weights: dict[str, Any] = dict(zip(("dtype", "G", "H", "I", "P"), sizes, strict=True))
        weights |= {"num_threads": num_threads, "isa": isa}
        weights |= {name: parameters[name] for name in ("weight_ih", "weight_hh")}
        key = (sizes, isa, _C.lstm_checksum(**weights))
        kept = self._kept
        if kept is None or kept[0] != key:
            memory = allocate(_C.lstm_forward_prepacked(*sizes, isa))
            _C.lstm_prepack(**weights, prepacked=memory.data_ptr())
            self._kept = kept = key, memory
        return kept[1]


PackedWeights = PrepackedWeights
"""The name of the class in version 0.1."""
