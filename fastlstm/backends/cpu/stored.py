"""Weights that inference stores in bfloat16 or int8: rounded, and packed for the kernels of steps.

``LSTM.freeze(dtype=...)`` has every inference call compute with :class:`RoundedWeights`. On a CPU
a few rows take the kernels of ``csrc/cpu/stream.cpp``, which read the narrow weights; every other
call is run as always, on the rounded weights in the module's own dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.backends.cpu.prepacked import PrepackedWeights
from fastlstm.backends.pointers import is_there
from fastlstm.call import Call, LSTMWeights, Results, Wanted

# The types and their numbers in csrc/stream.h.
WEIGHT_TYPES = {"float32": 0, "bfloat16": 1, "int8": 2}

# The rows for which narrow weights are faster. Reading W_hh bounds the speed of a few rows, the
# arithmetic that of many.
MOST_ROWS = 4
_HAS_KERNELS = bool(_C.isas())


class StoredWeights(PrepackedWeights):
    """A layer's weights in narrow types, one stream a direction; also a cache of prepacked ones."""

    def __init__(self, streams: tuple[_C.Stream, ...] = ()) -> None:
        super().__init__()
        self._streams = streams

    def run(self, call: Call, wanted: Wanted) -> Results | None:
        """Run a call of inference; None if the other kernels are to run it."""
        input, weights, hx, cx, layout, _ = call
        (G, B, P), H = hx.shape, cx.shape[2]
        runs = (
            len(self._streams) == G
            and weights.weight_ih
            and input.dim() == 3
            and layout[1:] == (None, None, None)
            and not (wanted.train or wanted.cells)
            and 0 < B <= MOST_ROWS
            and input.shape[0] > 0
            and input.dtype == hx.dtype == cx.dtype == torch.float32  # autocast changes it
        )
        if not runs:
            return None
        y = input.new_empty(input.shape[0], B, G, P)
        hx, cx, hy, cy = (
            hx.contiguous(),
            cx.contiguous(),
            hx.new_empty(G, B, P),
            cx.new_empty(G, B, H),
        )
        for group, stream in enumerate(self._streams):
            if not stream._run_layer(input, y, hx, cx, hy, cy, group, layout.reverse[group]):
                return None
        return Results(y, hy, cy, input.new_empty(0), input.new_empty(0))


class _Kept(NamedTuple):
    streams: list[_C.Stream]  # one for each of the rounded weights
    rounded: list[LSTMWeights]
    layers: list[StoredWeights]


class RoundedWeights:
    """The weights of an LSTM, rounded to bfloat16 or int8, kept as long as they do not change.

    Every call compares a checksum of the live weights with that of those that were rounded. Copies
    and pickles are empty.
    """

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        # Replaced as a whole: another thread may be running the old streams.
        self._kept: _Kept | None = None

    def __reduce__(self) -> tuple[type[RoundedWeights], tuple[str]]:
        return RoundedWeights, (self.dtype,)

    def of(
        self, weights: list[LSTMWeights], directions: int
    ) -> tuple[list[LSTMWeights], list[StoredWeights] | None]:
        """The rounded weights, and what the cpu backend keeps of each layer.

        Weights that other code computes or watches, as a compiler does, are rounded in every call.
        """
        if not _HAS_KERNELS or torch.compiler.is_compiling() or not all(map(_can_be_kept, weights)):
            return [rounded(own, self.dtype) for own in weights], None
        kept = self._kept
        plain = [tuple(w if w is None else w.detach() for w in own) for own in weights]
        if kept is None or not _are_current(kept, plain):
            streams = [_stream(own, self.dtype) for own in plain]
            for stream, own in zip(streams, plain, strict=True):
                stream._is_current(own)  # the first call notes what the weights are
            layers = [
                StoredWeights(tuple(streams[first : first + directions]))
                for first in range(0, len(streams), directions)
            ]
            with torch.no_grad():
                kept = _Kept(streams, [rounded(own, self.dtype) for own in weights], layers)
            self._kept = kept
        return kept.rounded, kept.layers


def rounded(weights: LSTMWeights, dtype: str) -> LSTMWeights:
    """The weights with matrices that are rounded as the streams do it."""
    narrow = _to_int8 if dtype == "int8" else _to_bfloat16
    w_hr = weights.weight_hr
    return weights._replace(
        weight_ih=narrow(weights.weight_ih),
        weight_hh=narrow(weights.weight_hh),
        weight_hr=w_hr if w_hr is None else narrow(w_hr),
    )


def _to_bfloat16(weight: Tensor) -> Tensor:
    return weight.detach().to(torch.bfloat16).to(weight.dtype)


def _to_int8(weight: Tensor) -> Tensor:
    """Integers from -127 to 127 times a scale for each row."""
    weight = weight.detach()
    if weight.numel() == 0:
        return weight
    scale = weight.abs().amax(1, keepdim=True) / 127
    integers = torch.where(scale > 0, (weight / scale).round(), torch.zeros_like(weight))
    return integers * scale


def _can_be_kept(weights: LSTMWeights) -> bool:
    """Whether the compiled functions can read these weights; they know no heads."""
    four_h, columns = weights.weight_hh.shape
    return (weights.weight_hr is not None or four_h == 4 * columns) and all(
        weight is None
        or (
            type(weight) in (Tensor, torch.nn.Parameter)
            and weight.dtype == torch.float32
            and weight.is_cpu
            and weight.layout == torch.strided
            and weight.is_contiguous()
            and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
            and (is_there(weight) or weight.numel() == 0)
            and not weight.is_neg()
        )
        for weight in weights
    )


def _are_current(kept: _Kept, weights: list[Any]) -> bool:
    """Whether the streams have these weights, which may have other sizes."""
    if len(kept.rounded) != len(weights):
        return False
    for own, stream, old in zip(weights, kept.streams, kept.rounded, strict=True):
        sizes = [None if w is None else w.shape for w in own]
        if sizes != [None if w is None else w.shape for w in old] or not stream._is_current(own):
            return False
    return True


def _stream(weights: tuple[Tensor | None, ...], dtype: str) -> _C.Stream:
    """A stream of one layer and direction, for :meth:`_C.Stream._run_layer`."""
    weight_ih, weight_hh, *_, weight_hr = weights
    assert weight_ih is not None and weight_hh is not None
    return _C.Stream(
        batch_size=MOST_ROWS,
        input_size=weight_ih.shape[1],
        hidden_size=weight_hh.shape[0] // 4,
        proj_size=0 if weight_hr is None else weight_hr.shape[0],
        layers=[weights],
        h_0=None,
        c_0=None,
        weight_type=WEIGHT_TYPES[dtype],
        output=None,
        buffer=bytearray(4 * MOST_ROWS * weight_hh.shape[1]),
        num_threads=torch.get_num_threads(),
        isa="auto",
    )
