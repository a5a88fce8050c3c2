"""Videos of digits whose label is their kind of motion, which no single frame shows."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import index as as_index
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from fastlstm.data.moving_digits import BLOCK, RANDOM_WALKS, STARTS, MovingDigits

Array = NDArray[np.float64]
_DRAWS = 8  # random numbers of a digit: row, column, direction, speed, and four for `_variations`
_SPEED = (0.04, 0.12)  # mean distance a frame, as a fraction of the free span: 1.4 to 4.3 of 36 px


class _Variations(NamedTuple):
    """Random functions of time that motions are made of, (B, num_digits, T - 1) each."""

    ramp: Array
    """Rises linearly from -a to a; a is uniform in [0.7, 0.95]."""
    turn: Array
    """Angle in radians that grows linearly, to the left or to the right."""
    switch: Array
    """0 or 1, changing every 3 to 6 steps."""
    noise: Array
    """Uniform in [0, 1), independent at every step."""


# A motion: the speed at each step, as a multiple of the mean speed, and the heading in radians.
_Motion = Callable[[_Variations], tuple[Array | float, Array | float]]
_MOTIONS: dict[str, _Motion] = {
    "straight": lambda v: (1.0, 0.0),
    "accelerating": lambda v: (1 + v.ramp, 0.0),
    "decelerating": lambda v: (1 - v.ramp, 0.0),
    "stop-and-go": lambda v: (2 * v.switch, 0.0),
    "circle": lambda v: (1.0, v.turn),
    "spiral out": lambda v: (1 + v.ramp, v.turn),
    "spiral in": lambda v: (1 - v.ramp, v.turn),
    "zigzag": lambda v: (1.0, np.pi / 2 * v.switch),
    "back-and-forth": lambda v: (1.0, np.pi * v.switch),
    "random walk": lambda v: (1.0, 2 * np.pi * v.noise),
}

MOTIONS = tuple(_MOTIONS)
"""The classes of :class:`MotionMNIST`, in the order of their labels."""


class MotionMNIST(MovingDigits, Dataset[tuple[NDArray[np.uint8], int]]):
    """Videos of digits that move in one of the ten ways of :data:`MOTIONS`; the way is the label.

    A single frame is independent of the label. Along each axis a digit is at fold(u + d(t)). The
    displacement d depends on the label; fold, the triangle wave of period 2, reflects the digit at
    the walls; u is uniform in [0, 2). The position is therefore uniform in the box at any time,
    whatever the label, and independent along the two axes. The image of the digit, its first
    direction and its mean speed (uniform in 0.04 to 0.12 of the free span a frame) are independent
    of the label too. "accelerating" reversed in time is "decelerating", and "spiral out" reversed
    is "spiral in", so only the order of the frames distinguishes them.

    Video i depends on the arguments and i alone. Its label is i % 10, so any 10 videos in a row
    have each class once.

    ``dataset[i]`` is the video, (num_frames, size, size) uint8, and its label.
    ``dataset.__getitems__(indices)`` is a batch: videos (B, num_frames, size, size) uint8, whose
    memory is laid out time first, and labels (B,) int64.

    Args:
        digits: (N, D, D) uint8 images, N at least 1 and D at most ``size``.
        num_frames: number of frames in a video, T. Default: 20.
        num_digits: number of digits in a video. Default: 1.
        size: height and width of a frame in pixels. Default: 64.
        seed: non-negative seed. Default: 0.
        length: number of videos in the data set. Default: 2**40, more than any training run reads.

    Raises:
        ValueError: an argument out of range.
        IndexError: an index outside [0, length).

    Example:
        >>> digits = np.full((10, 28, 28), 255, np.uint8)  # or load_digits()
        >>> videos = MotionMNIST(digits, num_frames=5)
        >>> video, label = videos[14]
        >>> video.shape, MOTIONS[label]
        ((5, 64, 64), 'circle')
        >>> videos.__getitems__([14, 15, 16])[1]
        array([4, 5, 6])
    """

    def __init__(
        self,
        digits: NDArray[np.uint8],
        *,
        num_frames: int = 20,
        num_digits: int = 1,
        size: int = 64,
        seed: int = 0,
        length: int = 2**40,
    ) -> None:
        super().__init__(digits, num_frames, num_digits, size, seed, length)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        videos, labels = self.__getitems__([as_index(index)])
        return videos[0], int(labels[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        wanted = self._check_indices(indices)
        return self._draw(wanted, self.positions(wanted)), wanted % len(MOTIONS)

    def positions(self, indices: ArrayLike) -> Array:
        """Return the positions of the digits of videos.

        Args:
            indices: B indices of videos.

        Returns:
            (T, B, num_digits, 2), rows and columns in [0, 1], as fractions of the free span.

        Raises:
            IndexError: an index outside [0, length).
        """
        wanted = self._check_indices(indices)
        starts = np.empty((len(wanted), self.num_digits, _DRAWS))
        noise = np.empty((len(wanted), self.num_digits, self.num_frames - 1))
        for block in np.unique(wanted // BLOCK):
            rows = wanted // BLOCK == block
            drawn = _uniforms(self.seed, int(block), self.num_digits, self.num_frames - 1)
            starts[rows], noise[rows] = (uniforms[wanted[rows] % BLOCK] for uniforms in drawn)

        direction, speed = 2 * np.pi * starts[..., 2:3], np.interp(starts[..., 3:4], (0, 1), _SPEED)
        variations = _variations(starts[..., 4:], noise)
        step, heading = np.empty(noise.shape), np.empty(noise.shape)
        for label, motion in enumerate(_MOTIONS.values()):
            rows = wanted % len(MOTIONS) == label
            step[rows], heading[rows] = motion(_Variations(*(v[rows] for v in variations)))
        heading += direction
        steps = (
            speed[..., None] * step[..., None] * np.stack((np.sin(heading), np.cos(heading)), -1)
        )

        path = np.zeros((self.num_frames, *starts.shape[:2], 2))
        np.cumsum(np.moveaxis(steps, 2, 0), axis=0, out=path[1:])
        return 1 - abs((2 * starts[..., :2] + path) % 2 - 1)


def _variations(uniforms: Array, noise: Array) -> _Variations:
    """Compute the functions of time from random numbers in [0, 1).

    Args:
        uniforms: (B, num_digits, 4).
        noise: (B, num_digits, T - 1).
    """
    strength, turn, pace, phase = (uniforms[..., n : n + 1] for n in range(4))
    steps = noise.shape[-1]
    time = np.arange(steps)
    strength = np.interp(strength, (0, 1), (0.7, 0.95))
    ramp = strength * (2 * time - steps + 1) / max(1, steps - 1)
    side = np.where(turn < 0.5, -1, 1)
    rate = np.interp(2 * turn % 1, (0, 1), (0.35, 0.7))  # radians a step: a circle in 9 to 18 steps
    switch = np.floor(time / np.interp(pace, (0, 1), (3, 6)) + 2 * phase) % 2
    return _Variations(ramp, side * rate * time, switch, noise)


# Cached, because neighbouring indices share a block. As a method it would keep data sets alive.
@lru_cache(maxsize=8)
def _uniforms(seed: int, block: int, num_digits: int, steps: int) -> tuple[Array, Array]:
    """Draw (4096, num_digits, 8) numbers for the start, (4096, num_digits, steps) for the steps."""
    starts = np.random.default_rng((seed, STARTS, block)).random((BLOCK, num_digits, _DRAWS))
    noise = np.random.default_rng((seed, RANDOM_WALKS, block)).random((BLOCK, num_digits, steps))
    return starts, noise
