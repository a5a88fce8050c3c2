"""Base class of videos of moving digits: chooses the digits of a video and draws them."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from fastlstm.data.shuffled_rounds import shuffled_rounds

BLOCK = 4096
"""Number of videos whose start positions are drawn at once; another number gives other videos."""
STARTS, ORDERS, RANDOM_WALKS = 0, 1, 2
"""Numbers that, with the seed, give independent random streams."""


class MovingDigits:
    """Base class of data sets of digit images that move in a box.

    Video i depends on the arguments and i alone. Digits come from an infinite stream that uses each
    image once per epoch. Where digits overlap, the brighter pixel is drawn. A subclass computes
    their positions.

    Args:
        digits: (N, D, D) uint8 images, N at least 1 and D at most ``size``.
        num_frames: number of frames in a video.
        num_digits: number of digits in a video.
        size: height and width of a frame in pixels.
        seed: non-negative seed.
        length: number of videos in the data set.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        digits: NDArray[np.uint8],
        num_frames: int,
        num_digits: int,
        size: int,
        seed: int,
        length: int,
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
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if not 0 <= length <= 2**62 // num_digits:
            raise ValueError(f"length: expected 0 .. {2**62 // num_digits}, got {length}")
        self.digits = digits
        self.num_frames = num_frames
        self.num_digits = num_digits
        self.size = size
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def _check_indices(self, indices: ArrayLike) -> NDArray[np.int64]:
        wanted = np.asarray(indices, np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= self.length)]
        if len(outside):
            raise IndexError(f"index: expected 0 .. {self.length - 1}, got {outside[0]}")
        return wanted

    def _draw(self, wanted: NDArray[np.int64], positions: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Draw videos.

        Args:
            wanted: (B,) indices of the videos.
            positions: (T, B, num_digits, 2) rows and columns in [0, 1], as fractions of the free
                span ``size - D``. They are truncated to whole pixels.

        Returns:
            (B, T, size, size) uint8, whose memory is laid out time first.
        """
        corners = ((self.size - self.digits.shape[1]) * positions).astype(np.intp)
        numbers = wanted[:, None] * self.num_digits + np.arange(self.num_digits)
        chosen = shuffled_rounds(numbers, len(self.digits), (self.seed, ORDERS))

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
