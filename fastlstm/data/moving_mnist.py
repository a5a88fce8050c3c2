"""Moving MNIST: endless videos of digits bouncing in a box, each a pure function of its index."""

from collections.abc import Sequence
from functools import lru_cache
from operator import index as as_index

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

_BLOCK = 4096  # sequences that share one seeded draw of starts; changing it changes every video
_STARTS, _ORDERS = 0, 1  # the two independent random streams


class MovingMNIST(Dataset[NDArray[np.uint8]]):
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
        if digits.dtype != np.uint8 or digits.ndim != 3 or digits.shape[1] != digits.shape[2]:
            raise ValueError(
                f"digits: expected (N, D, D) uint8, got {digits.shape} of {digits.dtype}"
            )
        if len(digits) == 0:
            raise ValueError("digits: expected at least 1 image, got 0")
        if size < digits.shape[1]:
            raise ValueError(f"size: expected at least the digits' {digits.shape[1]}, got {size}")
        for name, value in (("num_frames", num_frames), ("num_digits", num_digits)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 <= step <= 1:
            raise ValueError(f"step: expected a fraction in [0, 1], got {step}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if not 0 <= length <= 2**62 // num_digits:
            raise ValueError(f"length: expected 0 .. {2**62 // num_digits}, got {length}")
        self.digits = digits
        self.num_frames = num_frames
        self.num_digits = num_digits
        self.size = size
        self.step = step
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.__getitems__([as_index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        wanted = self._checked(indices)
        corners = self._corners(wanted)
        chosen = self._digits_of(wanted)

        videos, frames, side = len(wanted), self.num_frames, self.digits.shape[1]
        canvas = np.zeros((frames * videos, self.size, self.size), np.uint8)
        # windows[n, y, x] is the (side, side) patch of frame n whose corner is (y, x)
        windows = sliding_window_view(canvas, (side, side), axis=(1, 2), writeable=True)
        frame = np.arange(frames * videos)
        for d in range(self.num_digits):
            place = (frame, corners[:, :, d, 0].ravel(), corners[:, :, d, 1].ravel())
            ink = np.broadcast_to(self.digits[chosen[:, d]], (frames, videos, side, side))
            windows[place] = np.maximum(windows[place], ink.reshape(-1, side, side))
        return canvas.reshape(frames, videos, self.size, self.size).swapaxes(0, 1)

    def _checked(self, indices: ArrayLike) -> NDArray[np.int64]:
        wanted = np.asarray(indices, np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= self.length)]
        if len(outside):
            raise IndexError(f"index: expected 0 .. {self.length - 1}, got {outside[0]}")
        return wanted

    def _corners(self, wanted: NDArray[np.int64]) -> NDArray[np.intp]:
        """(T, B, num_digits, 2) pixel rows and columns of the digits' upper left corners."""
        starts = np.empty((len(wanted), self.num_digits, 3))
        for block in np.unique(wanted // _BLOCK):
            rows = wanted // _BLOCK == block
            starts[rows] = _starts(self.seed, int(block), self.num_digits)[wanted[rows] % _BLOCK]
        position = starts[..., :2].copy()
        angle = 2 * np.pi * starts[..., 2]
        velocity = self.step * np.stack((np.sin(angle), np.cos(angle)), -1)

        path = np.empty((self.num_frames, *position.shape))
        for t in range(self.num_frames):
            position += velocity
            velocity[(position <= 0) | (position >= 1)] *= -1
            np.clip(position, 0, 1, out=position)
            path[t] = position
        return ((self.size - self.digits.shape[1]) * path).astype(np.intp)

    def _digits_of(self, wanted: NDArray[np.int64]) -> NDArray[np.intp]:
        """(B, num_digits) which image each digit is: slot q of an endless series of deals."""
        slots = wanted[:, None] * self.num_digits + np.arange(self.num_digits)
        deals, places = np.divmod(slots, len(self.digits))
        chosen = np.empty(slots.shape, np.intp)
        for deal in np.unique(deals):
            rows = deals == deal
            chosen[rows] = _order(self.seed, int(deal), len(self.digits))[places[rows]]
        return chosen


# Cached: neighbours in index share their draw. Module level, so that no dataset is kept alive.
@lru_cache(maxsize=32)
def _starts(seed: int, block: int, num_digits: int) -> NDArray[np.float64]:
    """(4096, num_digits, 3) uniforms: row, column, direction."""
    return np.random.default_rng((seed, _STARTS, block)).random((_BLOCK, num_digits, 3))


@lru_cache(maxsize=32)
def _order(seed: int, deal: int, count: int) -> NDArray[np.intp]:
    return np.random.default_rng((seed, _ORDERS, deal)).permutation(count)
