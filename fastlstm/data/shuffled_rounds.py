"""Endless series in which everything comes up once before anything comes up again."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray


def dealt(slots: ArrayLike, count: int, seed: Sequence[int]) -> NDArray[np.intp]:
    """What lies in the slots of an endless series of shuffled rounds of 0 .. `count` - 1.

    A slot's content depends on `count`, `seed` and the slot alone.

    Args:
        slots: non-negative integers of any shape.
        count: what a round has, at least 1.
        seed: non-negative integers that tell this series from others.

    Returns:
        Integers in the shape of `slots`.
    """
    rounds, places = np.divmod(np.asarray(slots, np.int64), count)
    chosen = np.empty(rounds.shape, np.intp)
    for number in np.unique(rounds):
        rows = rounds == number
        chosen[rows] = _order((*seed, int(number)), count)[places[rows]]
    return chosen


@lru_cache(maxsize=32)  # neighbours are of one round
def _order(seed: tuple[int, ...], count: int) -> NDArray[np.intp]:
    return np.random.default_rng(seed).permutation(count)
