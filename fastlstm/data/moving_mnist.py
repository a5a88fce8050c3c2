"""Moving MNIST: endless videos of digits bouncing in a box, each a pure function of its index."""

from collections.abc import Sequence
from functools import lru_cache
from operator import index as as_index

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fastlstm.data.moving_digits import BLOCK, STARTS, MovingDigits


class MovingMNIST(MovingDigits, Dataset[NDArray[np.uint8]]):
    """Videos of `num_digits` digits moving at constant speed, as in Srivastava et al. (2015).

    A digit starts uniformly in the box of its possible positions, in a uniform direction, and
    moves `step` of the box a frame, before the first frame too. At a wall it stops and the
    velocity flips. Positions truncate to whole pixels; where digits overlap the brighter pixel
    shows. Digits are dealt in shuffled rounds: all are used once before one is used again.

    Sample i depends on the arguments and i alone, so that any order, any worker and any resumed
    run sees the same video.

    Args:
        digits: (N, D, D) uint8 images, N at least 1 and D at most `size`.
        num_frames: frames of a video.
        num_digits: digits in a video.
        size: height and width of a frame in pixels.
        step: distance moved in a frame, as a fraction of the free span `size - D`
            (0.1 of 36 px: 3.6 px).
        seed: non-negative seed.
        length: videos in the dataset; the default is more than any training run draws.

    `dataset[i]` is (num_frames, size, size) uint8; `dataset.__getitems__(indices)` is a whole
    batch (len(indices), num_frames, size, size) at many times the speed, whose memory is laid
    out time first.

    Raises:
        ValueError: an argument out of range.
        IndexError: an index outside [0, length).
    """

    def __init__(
        self,
        digits: NDArray[np.uint8],
        *,
        num_frames: int = 20,
        num_digits: int = 2,
        size: int = 64,
        step: float = 0.1,
        seed: int = 0,
        length: int = 2**40,
    ) -> None:
        super().__init__(digits, num_frames, num_digits, size, seed, length)
        if not 0 <= step <= 1:
            raise ValueError(f"step: expected a fraction in [0, 1], got {step}")
        self.step = step

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.__getitems__([as_index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        wanted = self._checked(indices)
        return self._drawn(wanted, self._positions(wanted))

    def _positions(self, wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        """(T, B, num_digits, 2) in the unit box."""
        starts = np.empty((len(wanted), self.num_digits, 3))
        for block in np.unique(wanted // BLOCK):
            rows = wanted // BLOCK == block
            starts[rows] = _starts(self.seed, int(block), self.num_digits)[wanted[rows] % BLOCK]
        position = starts[..., :2].copy()
        angle = 2 * np.pi * starts[..., 2]
        velocity = self.step * np.stack((np.sin(angle), np.cos(angle)), -1)

        path = np.empty((self.num_frames, *position.shape))
        for t in range(self.num_frames):
            position += velocity
            velocity[(position <= 0) | (position >= 1)] *= -1
            np.clip(position, 0, 1, out=position)
            path[t] = position
        return path


# Cached: neighbours in index share their draw. Module level, so that no dataset is kept alive.
@lru_cache(maxsize=32)
def _starts(seed: int, block: int, num_digits: int) -> NDArray[np.float64]:
    """(4096, num_digits, 3) uniforms: row, column, direction."""
    return np.random.default_rng((seed, STARTS, block)).random((BLOCK, num_digits, 3))
