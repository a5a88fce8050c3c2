"""Parallel streams of long sequences, read in windows for truncated backpropagation through time.

In each epoch all sequences are concatenated in a new order, and the result is cut into as many
streams of equal length as a batch has rows. Each window continues where the window before it ended.
No step is padding. The state of a row is carried from window to window, and reset between
sequences.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Piece(NamedTuple):
    """Steps ``start`` to ``stop`` (excluded) of one sequence.

    Attributes:
        sequence: index of the sequence.
        start: first step.
        stop: one past the last step.

    Example:
        >>> piece = Piece(sequence=2, start=0, stop=5)
        >>> piece.stop - piece.start
        5
    """

    sequence: int
    start: int
    stop: int


class WindowPlan(NamedTuple):
    """Which steps one window reads.

    Attributes:
        rows: for each of the B rows of a batch its pieces, in order of time; every row has T steps.
        reset: (T, B) bool, True where the step is the first of its sequence or of its stream.
        fresh: number of new steps, at the end of the window: ``k1``, or fewer in the last window of
            an epoch. The T - ``fresh`` steps before them were read by earlier windows too, and are
            read again so that gradients can flow back through them.
        advance: number of steps from the start of this window to the start of the next.

    Example:
        >>> plan = Streams([6], batch_size=1, k1=2, k2=4).window(1)
        >>> plan.rows
        [[Piece(sequence=0, start=0, stop=4)]]
        >>> plan.fresh, plan.advance, plan.reset[:, 0].tolist()
        (2, 2, [True, False, False, False])
    """

    rows: list[list[Piece]]
    reset: NDArray[np.bool_]
    fresh: int
    advance: int


class Streams:
    """Plan the windows of truncated backpropagation through time over many sequences.

    ``streams.window(n)`` depends on the arguments and n alone, so worker processes and resumed runs
    read the same windows. ``len(streams)`` is the number of windows in an epoch; window n is window
    ``n % len(streams)`` of epoch ``n // len(streams)``.

    Streams have equal lengths, so each epoch drops fewer steps than there are streams, and with
    ``shuffle`` different ones. A sequence that is cut by the border of two streams starts in the
    second one with a reset. The steps ``k1`` and ``k2`` are those of Williams and Peng (1990) and
    Sutskever (2013).

    Args:
        lengths: number of steps of each sequence; 0 is allowed.
        batch_size: number of streams that this process reads, at least 1.
        k1: number of steps from one window to the next, at least 1.
        k2: number of steps through which gradients flow back, at least ``k1``. Default: ``k1``.
        seed: non-negative seed of the orders. Default: 0.
        shuffle: whether to order the sequences anew in each epoch. Default: True.
        rank: number of this process, which reads ``batch_size`` streams from stream
            ``rank * batch_size`` on. Default: 0.
        world_size: number of processes. Default: 1.

    Raises:
        ValueError: an argument out of range, or fewer steps than streams.

    Example:
        >>> streams = Streams([5, 3], batch_size=2, k1=3, shuffle=False)
        >>> len(streams)  # two streams of four steps, in windows of three
        2
        >>> streams.window(0).rows[1]
        [Piece(sequence=0, start=4, stop=5), Piece(sequence=1, start=0, stop=2)]
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
        self._order = lru_cache(maxsize=2)(self._order_of)

    def __len__(self) -> int:
        return -(-self.steps // self.k1)

    def window(self, number: int) -> WindowPlan:
        """Return the plan of a window.

        Args:
            number: non-negative, without an upper limit.

        Raises:
            IndexError: a negative number.
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

    def _order_of(self, epoch: int) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """Return the order of the sequences in an epoch, and the end of each in their sum."""
        order = np.arange(len(self.lengths))
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(order)
        return order, np.cumsum(self.lengths[order])

    def _pieces(self, epoch: int, stream: int, start: int, stop: int) -> list[Piece]:
        order, ends = self._order(epoch)
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
