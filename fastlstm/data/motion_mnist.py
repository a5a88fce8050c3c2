"""Videos of digits whose motion is their label, told by no single frame: actions to recognise."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import index as as_index
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from fastlstm.data.moving_digits import BLOCK, STARTS, WANDERINGS, MovingDigits

Array = NDArray[np.float64]
_VARIED = 8  # uniforms of a digit: row, column, direction, speed, and four of `_vary`
_SPEED = (0.04, 0.12)  # mean distance a frame, of the free span: 1.4 to 4.3 of 36 px


class _Draws(NamedTuple):
    """What a motion may vary by, drawn at random: (B, num_digits, T - 1) each."""

    ramp: Array
    """Rises evenly from -a to a; 0.7 <= a <= 0.95."""
    turned: Array
    """Radians turned so far at an even rate, to either side."""
    switch: Array
    """0 or 1, changing every 3 to 6 steps."""
    wander: Array
    """Uniform in [0, 1), anew at every step."""


# What a motion is: its speed at each step, as a multiple of the mean, and its heading in radians.
_Motion = Callable[[_Draws], tuple[Array | float, Array | float]]
_MOTIONS: dict[str, _Motion] = {
    "straight": lambda d: (1.0, 0.0),
    "accelerating": lambda d: (1 + d.ramp, 0.0),
    "decelerating": lambda d: (1 - d.ramp, 0.0),
    "stop-and-go": lambda d: (2 * d.switch, 0.0),
    "circle": lambda d: (1.0, d.turned),
    "spiral out": lambda d: (1 + d.ramp, d.turned),
    "spiral in": lambda d: (1 - d.ramp, d.turned),
    "zigzag": lambda d: (1.0, np.pi / 2 * d.switch),
    "back-and-forth": lambda d: (1.0, np.pi * d.switch),
    "random walk": lambda d: (1.0, 2 * np.pi * d.wander),
}

MOTIONS = tuple(_MOTIONS)
"""The classes of :class:`MotionMNIST`, in the order of their labels."""


class MotionMNIST(MovingDigits, Dataset[tuple[NDArray[np.uint8], int]]):
    """Videos of `num_digits` digits that all move in one of ten ways, which is the label.

    No frame tells anything of the label. Along each axis a digit is at fold(u + d(t)): d is the
    way it has gone, which depends on the label; fold, the triangle wave of period 2, has walls
    throw it back; u is uniform in [0, 2). So at any time its position is uniform in the box
    whatever the label, and independent along the two axes. Which digit it is, the direction it
    sets out in, and its mean speed (0.04 to 0.12 of the free span a frame, uniform) are independent
    of the label too. "accelerating" and "decelerating", "spiral out" and "spiral in" are each
    other run backwards, so that nothing but the order of frames tells them apart.

    Sample i depends on the arguments and i alone. Its label is i % 10: any 10 samples in a row
    have every class once.

    Args:
        digits: (N, D, D) uint8 images, N at least 1 and D at most `size`.
        num_frames: frames of a video, T.
        num_digits: digits in a video.
        size: height and width of a frame in pixels.
        seed: non-negative seed.
        length: videos in the dataset; the default is more than any training run draws.

    `dataset[i]` is the video, (T, size, size) uint8, and its label; `dataset.__getitems__(indices)`
    is a whole batch, (B, T, size, size) uint8, whose memory is laid out time first, and (B,) int64.

    Raises:
        ValueError: an argument out of range.
        IndexError: an index outside [0, length).
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
        wanted = self._checked(indices)
        return self._drawn(wanted, self.positions(wanted)), wanted % len(MOTIONS)

    def positions(self, indices: ArrayLike) -> Array:
        """Where the digits of videos are, (T, B, num_digits, 2) in [0, 1]: row and column."""
        wanted = self._checked(indices)
        starts = np.empty((len(wanted), self.num_digits, _VARIED))
        wander = np.empty((len(wanted), self.num_digits, self.num_frames - 1))
        for block in np.unique(wanted // BLOCK):
            rows = wanted // BLOCK == block
            drawn = _uniforms(self.seed, int(block), self.num_digits, self.num_frames - 1)
            starts[rows], wander[rows] = (uniforms[wanted[rows] % BLOCK] for uniforms in drawn)

        direction, speed = 2 * np.pi * starts[..., 2:3], np.interp(starts[..., 3:4], (0, 1), _SPEED)
        draws = _vary(starts[..., 4:], wander)
        step, heading = np.empty(wander.shape), np.empty(wander.shape)
        for label, motion in enumerate(_MOTIONS.values()):
            rows = wanted % len(MOTIONS) == label
            step[rows], heading[rows] = motion(_Draws(*(draw[rows] for draw in draws)))
        heading += direction
        steps = (
            speed[..., None] * step[..., None] * np.stack((np.sin(heading), np.cos(heading)), -1)
        )

        path = np.zeros((self.num_frames, *starts.shape[:2], 2))
        np.cumsum(np.moveaxis(steps, 2, 0), axis=0, out=path[1:])
        return 1 - abs((2 * starts[..., :2] + path) % 2 - 1)


def _vary(uniforms: Array, wander: Array) -> _Draws:
    """(B, num_digits, 4) and (B, num_digits, T - 1) uniforms in [0, 1) as a motion needs them."""
    strength, turn, pace, phase = (uniforms[..., n : n + 1] for n in range(4))
    steps = wander.shape[-1]
    time = np.arange(steps)
    strength = np.interp(strength, (0, 1), (0.7, 0.95))
    ramp = strength * (2 * time - steps + 1) / max(1, steps - 1)
    side = np.where(turn < 0.5, -1, 1)
    turned = side * np.interp(2 * turn % 1, (0, 1), (0.35, 0.7)) * time  # a circle in 9 to 18 steps
    switch = np.floor(time / np.interp(pace, (0, 1), (3, 6)) + 2 * phase) % 2
    return _Draws(ramp, turned, switch, wander)


# Cached: neighbours in index share their draw. Module level, so that no dataset is kept alive.
@lru_cache(maxsize=8)
def _uniforms(seed: int, block: int, num_digits: int, steps: int) -> tuple[Array, Array]:
    """(4096, num_digits, 8) of the start and (4096, num_digits, steps) of the way."""
    starts = np.random.default_rng((seed, STARTS, block)).random((BLOCK, num_digits, _VARIED))
    wander = np.random.default_rng((seed, WANDERINGS, block)).random((BLOCK, num_digits, steps))
    return starts, wander
