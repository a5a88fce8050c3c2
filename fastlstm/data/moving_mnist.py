"""Moving MNIST: videos of digits that bounce in a box."""

from collections.abc import Sequence
from functools import lru_cache
from operator import index as as_index

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fastlstm.data.moving_digits import BLOCK, STARTS, MovingDigits


class MovingMNIST(MovingDigits, Dataset[NDArray[np.uint8]]):
    """Moving MNIST (Srivastava et al., 2015): digits that move at constant speed in a box.

    A digit starts at a uniformly random position and moves in a uniformly random direction, a
    distance of ``step`` a frame, from before the first frame on. At a wall it stops and the
    velocity perpendicular to the wall changes its sign. Positions are truncated to whole pixels.
    Where digits overlap, the brighter pixel is drawn. Every image is used once before one is used
    again.

    Video i depends on the arguments and i alone. Workers and resumed runs therefore see the same
    videos in whatever order they read them.

    ``dataset[i]`` is (num_frames, size, size) uint8. ``dataset.__getitems__(indices)`` is a batch
    (B, num_frames, size, size), whose memory is laid out time first; it takes much less time than
    B single videos.

    Args:
        digits: (N, D, D) uint8 images, N at least 1 and D at most ``size``.
        num_frames: number of frames in a video. Default: 20.
        num_digits: number of digits in a video. Default: 2.
        size: height and width of a frame in pixels. Default: 64.
        step: distance moved in a frame, as a fraction of the free span ``size - D``. Default: 0.1,
            which is 3.6 pixels for D = 28.
        seed: non-negative seed. Default: 0.
        length: number of videos in the data set. Default: 2**40, more than any training run reads.

    Raises:
        ValueError: an argument out of range.
        IndexError: an index outside [0, length).

    Example:
        >>> digits = np.full((10, 28, 28), 255, np.uint8)  # or load_digits()
        >>> videos = MovingMNIST(digits, num_frames=5)
        >>> videos[7].shape
        (5, 64, 64)
        >>> videos.__getitems__([7, 8, 9]).shape
        (3, 5, 64, 64)
        >>> bool((videos[7] == MovingMNIST(digits, num_frames=5)[7]).all())
        True
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
        wanted = self._check_indices(indices)
        return self._draw(wanted, self._positions(wanted))

    def _positions(self, wanted: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the digits' rows and columns, (T, B, num_digits, 2) in [0, 1]."""
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


# Cached, because neighbouring indices share a block. As a method it would keep data sets alive.
@lru_cache(maxsize=32)
def _starts(seed: int, block: int, num_digits: int) -> NDArray[np.float64]:
    """Draw (4096, num_digits, 3) uniform numbers in [0, 1): row, column, direction."""
    return np.random.default_rng((seed, STARTS, block)).random((BLOCK, num_digits, 3))
