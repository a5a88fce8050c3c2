"""Infinite random streams that visit every item once in each epoch."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray


def shuffled_rounds(positions: ArrayLike, count: int, seed: Sequence[int]) -> NDArray[np.intp]:
    """Return items of an infinite stream that visits 0 .. count - 1 in a new order each epoch.

    Item n belongs to epoch ``n // count`` and depends on n, ``count`` and ``seed`` alone, so a
    worker process or a resumed run can start anywhere in the stream.

    Args:
        positions: the numbers n of the items, non-negative integers of any shape.
        count: number of items, at least 1.
        seed: non-negative integers; streams of different seeds are independent.

    Returns:
        Integers in 0 .. ``count`` - 1, in the shape of ``positions``.

    Example:
        >>> epochs = shuffled_rounds(np.arange(6).reshape(2, 3), 3, seed=(0, 1))
        >>> np.sort(epochs)  # a row is an epoch
        array([[0, 1, 2],
               [0, 1, 2]])
    """
    epochs, places = np.divmod(np.asarray(positions, np.int64), count)
    items = np.empty(epochs.shape, np.intp)
    for epoch in np.unique(epochs):
        rows = epochs == epoch
        items[rows] = _order((*seed, int(epoch)), count)[places[rows]]
    return items


dealt = shuffled_rounds  # the name in version 0.1


@lru_cache(maxsize=32)  # neighbouring positions are in the same epoch
def _order(seed: tuple[int, ...], count: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).permutation(count)
