"""Videos that are decoded and scaled once, and memory-mapped from then on."""

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from fastlstm.data.caching import cache_name
from fastlstm.data.video_files import VideoFrames
from fastlstm.files import written_whole

_CHUNK = 64  # frames decoded at a time
# A hard cut: a difference between frames above this many grey levels (shots of fast traffic reached
# 20, cuts began at 47) and above this multiple of the differences before and after it.
_CUT_LEVELS = 25.0
_CUT_FACTOR = 2.0


class DecodedVideo(NamedTuple):
    """The frames of a video on disk, and how much each one differs from the one before.

    Attributes:
        frames: a ``.npy`` file, (N, height, width, channels) uint8; :func:`mapped` reads it.
        shape: shape of that array.
        steps: (N - 1,) float32, mean absolute difference of frames n and n + 1, in grey levels of
            0 .. 255.
    """

    frames: Path
    shape: tuple[int, int, int, int]
    steps: NDArray[np.float32]

    def shots(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Split frames ``start`` to ``stop`` at hard cuts.

        A cut is a difference between two frames of more than 25 grey levels that is also more than
        twice the difference before it and after it. Fades are not found.

        Returns:
            (first frame, one past the last frame) of every shot.
        """
        padded = np.pad(self.steps, 1)
        before, after = padded[:-2], padded[2:]
        is_cut = (self.steps > _CUT_LEVELS) & (self.steps > _CUT_FACTOR * np.maximum(before, after))
        cuts = np.flatnonzero(is_cut) + 1
        inside = cuts[(cuts > start) & (cuts < stop)].tolist()
        return list(zip([start, *inside], [*inside, stop], strict=True))


def decode(path: Path, height: int, color: Literal["gray", "rgb"], cache: Path) -> DecodedVideo:
    """Decode a video, scaled to a height, unless the cache has its frames already.

    Args:
        path: a video file in any format that PyAV reads.
        height: height of the frames in pixels; the width is scaled in proportion.
        color: "gray" for one channel, "rgb" for three.
        cache: an existing folder. Two files are written for each video, about N * height * width *
            channels bytes.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: as in :class:`fastlstm.data.VideoFrames`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a video file, {path} is absent")
    name = cache_name(path, height=height, color=color)
    frames, steps = cache / f"{name}.frames.npy", cache / f"{name}.steps.npy"
    if not (frames.exists() and steps.exists()):
        _write(path, height, color, frames, steps)
    N, h, w, channels = mapped(frames).shape
    return DecodedVideo(frames, (N, h, w, channels), np.load(steps))


@lru_cache(maxsize=64)  # each map keeps a file open, and a process may open about 1,000
def mapped(path: Path) -> NDArray[Any]:
    """Memory-map the array of a ``.npy`` file."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write(path: Path, height: int, color: Literal["gray", "rgb"], out: Path, steps: Path) -> None:
    native = VideoFrames(path)
    native_height, native_width = native[0:1].shape[1:3]
    width = max(1, round(native_width * height / native_height))
    video = VideoFrames(path, (height, width), color)
    shape = (len(video), height, width, 3 if color == "rgb" else 1)
    differences = np.empty(max(0, len(video) - 1), np.float32)
    with written_whole(out) as frames_file, written_whole(steps) as steps_file:
        frames = open_memmap(frames_file, "w+", np.uint8, shape)
        for start in range(0, len(video), _CHUNK):
            stop = min(start + _CHUNK, len(video))
            frames[start:stop] = video[start:stop].reshape(-1, *shape[1:])
            for n in range(max(1, start), stop):
                differences[n - 1] = abs(frames[n].astype(np.int16) - frames[n - 1]).mean()
        frames.flush()
        open_memmap(steps_file, "w+", np.float32, differences.shape)[:] = differences
