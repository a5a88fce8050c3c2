"""Long sequences laid side by side: parallel streams, read window by window.

For truncated backpropagation through time. All sequences, in an order that each epoch shuffles,
stand end to end; that line is cut into as many equal streams as a batch has rows, and every window
reads on where the one before stopped. No step is padding, and a row's state goes on from window to
window, but not from one sequence to the next.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Piece(NamedTuple):
    """Steps `start` to `stop` of the sequence of number `sequence`."""

    sequence: int
    start: int
    stop: int


class WindowPlan(NamedTuple):
    """What one window reads.

    rows: the pieces of each row of the batch, in order of time; all rows have as many steps.
    reset: (T, B) bool, true where a row's step is the first of its sequence or of its stream.
    fresh: of the T steps the last ones, which no window before had as fresh: k1 of them, fewer in
        an epoch's last window. The others are read again, for gradients to reach back through.
    advance: steps from this window's first to the next one's.
    """

    rows: list[list[Piece]]
    reset: NDArray[np.bool_]
    fresh: int
    advance: int


class Streams:
    """The windows of many sequences, each a pure function of its number.

    So any process, worker or resumed run sees the same windows. Those of one epoch end where the
    streams do; the steps that equal streams leave over, fewer than there are streams, are dropped,
    other ones in each epoch. A sequence that a cut divides begins anew behind it.

    Args:
        lengths: steps of each sequence; those without any are passed over.
        batch_size: streams that this process reads, at least 1.
        k1: steps from window to window, at least 1.
        k2: steps through which gradients go back, at least `k1`. Default: `k1`.
        seed: non-negative, of the orders.
        shuffle: whether each epoch has an order of its own. Default: True.
        rank, world_size: this process's share: streams rank * batch_size and following of
            world_size * batch_size.

    `len(streams)` is the windows in an epoch; `streams.window(n)` is window n % len of epoch
    n // len.

    Raises:
        ValueError: an argument out of range, or fewer steps than streams.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        *,
        batch_size: int,
        k1: int,
        k2: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for name, value in (("batch_size", batch_size), ("k1", k1), ("world_size", world_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if k2 is not None and k2 < k1:
            raise ValueError(f"k2: expected at least k1={k1}, got {k2}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 .. {world_size - 1}, got {rank}")
        self.lengths = np.asarray(lengths, np.int64).reshape(-1)
        if (self.lengths < 0).any():
            raise ValueError(f"lengths: expected none below 0, got {self.lengths.min()}")
        self.steps = int(self.lengths.sum()) // (batch_size * world_size)
        if self.steps == 0:
            raise ValueError(
                f"lengths: expected at least {batch_size * world_size} steps in all, one for each"
                f" of the batch_size streams of every process, got {self.lengths.sum()}"
            )
        self.batch_size = batch_size
        self.k1 = k1
        self.k2 = k1 if k2 is None else k2
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self._line = lru_cache(maxsize=2)(self._line_of)  # a window at a seam needs one epoch

    def __len__(self) -> int:
        return -(-self.steps // self.k1)

    def window(self, number: int) -> WindowPlan:
        """The plan of a window, from 0 on without end.

        Raises:
            IndexError: a number below 0.
        """
        if number < 0:
            raise IndexError(f"number: expected at least 0, got {number}")
        epoch, place = divmod(number, len(self))
        start, stop = self._start(place), min((place + 1) * self.k1, self.steps)
        first_row = self.rank * self.batch_size
        rows = [self._pieces(epoch, first_row + b, start, stop) for b in range(self.batch_size)]
        reset = np.zeros((stop - start, self.batch_size), np.bool_)
        reset[0] = start == 0
        for b, pieces in enumerate(rows):
            t = 0
            for piece in pieces:
                reset[t, b] |= piece.start == 0
                t += piece.stop - piece.start
        is_last = place + 1 == len(self)
        advance = stop - start if is_last else self._start(place + 1) - start
        return WindowPlan(rows, reset, stop - place * self.k1, advance)

    def _start(self, place: int) -> int:
        return max(0, (place + 1) * self.k1 - self.k2)

    def _line_of(self, epoch: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """The order of the sequences, and where each ends on the line."""
        order = np.arange(len(self.lengths))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        return order, np.cumsum(self.lengths[order])

    def _pieces(self, epoch: int, stream: int, start: int, stop: int) -> list[Piece]:
        order, ends = self._line(epoch)
        at, end = stream * self.steps + start, stream * self.steps + stop
        place = int(np.searchsorted(ends, at, side="right"))
        pieces = []
        while at < end:
            begin = int(ends[place] - self.lengths[order[place]])
            until = min(int(ends[place]), end)
            if until > at:
                pieces.append(Piece(int(order[place]), at - begin, until - begin))
            at, place = until, place + 1
        return pieces
