"""Inference from weights that are kept in another layout: ``freeze``, ``unfreeze``, ``stream``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastlstm.backends.cpu.prepacked import PrepackedWeights
from fastlstm.backends.cpu.stored import RoundedWeights
from fastlstm.nn.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Self


class Freezable:
    """What ``LSTM`` has for inference."""

    num_layers: int
    # The cache of freeze(); the name is that in pickles of version 0.1.
    _packed: list[PrepackedWeights] | RoundedWeights | None = None

    def freeze(self, dtype: str | None = None) -> Self:
        """Cache the weights in the CPU kernels' layout between calls in inference; return self.

        Without the cache every call packs the weights into that layout again, which costs time
        where T * B is between some 16 and 200. With it a call computes a checksum of the weights
        and packs them only if they have changed, so that results are always those of the current
        weights. The cache takes as much memory as the weights. Copies and pickles of the module
        are frozen too, with caches of their own. Other backends, calls that record gradients and
        compiled calls do not use it.

        With ``dtype`` every call that records no gradients, on any backend, computes with matrices
        that are rounded to that type; sums and biases are as without. On the CPU calls of up to 4
        rows then read the narrow weights, which bound the speed there: see docs/streaming.md. The
        cache takes 1.5 or 1.25 times the memory of the weights more. ``state_dict``, the parameters
        and training are as without.

        Args:
            dtype: "bfloat16", or "int8" with a scale for each row of each matrix. Relative error
                of 50 steps: 2e-3 and 5e-3. Default: None, the weights are not rounded.

        Raises:
            ValueError: another dtype.

        Example:
            >>> lstm = fastlstm.LSTM(8, 16).eval().freeze()
            >>> with torch.no_grad():
            ...     output, state = lstm(torch.randn(50, 2, 8))
            >>> output.shape
            torch.Size([50, 2, 16])
        """
        if dtype not in (None, "bfloat16", "int8"):
            raise ValueError(f"dtype: expected bfloat16, int8 or None, got {dtype!r}")
        if dtype is None:
            self._packed = [PrepackedWeights() for _ in range(self.num_layers)]
        else:
            self._packed = RoundedWeights(dtype)
        return self

    def unfreeze(self) -> Self:
        """Drop the cache of :meth:`freeze`; return self."""
        self._packed = None
        return self

    def stream(self, batch_size: int, dtype_of_weights: str = "float32") -> Stream:
        """Make an object that runs this LSTM step by step on the CPU and keeps its state.

        It is for inference on data that arrives over time, and packs a snapshot of the weights.
        Sizes, errors and an example are in :class:`fastlstm.Stream`.

        Args:
            batch_size: B, the number of rows.
            dtype_of_weights: "float32", "bfloat16" or "int8", the type in which the stream stores
                weights. Default: "float32".

        Example:
            >>> stream = fastlstm.LSTM(8, 16).stream(2, dtype_of_weights="int8")
            >>> stream.step(torch.randn(2, 8)).shape
            torch.Size([2, 16])
        """
        return Stream(self, batch_size, dtype_of_weights)
