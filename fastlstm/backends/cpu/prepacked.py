"""The weights in the order in which the CPU kernels read them, kept from call to call."""

from __future__ import annotations

from fastlstm import _C
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
        self._kept = _C.PrepackedWeights()

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
    ) -> _C.PrepackedMemory:
        """The packed weights.

        Args:
            sizes: dtype, G, H, I, P as the kernels take them.
            parameters: what :func:`pointers.group_pointers` made of the weights.
            num_threads, isa: of the call.
        """
        dtype, G, H, I, P = sizes
        return self._kept.of(
            dtype=dtype,
            G=G,
            H=H,
            I=I,
            P=P,
            weight_ih=parameters["weight_ih"],
            weight_hh=parameters["weight_hh"],
            num_threads=num_threads,
            isa=isa,
        )


PackedWeights = PrepackedWeights
"""The name of the class in version 0.1."""
