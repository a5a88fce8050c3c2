"""Videos decoded and scaled once, kept in files that are mapped into memory, not read into it."""

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
_CUT = 25.0  # grey levels; steps within shots of fast traffic reached 20, cuts began at 47
_STANDS_OUT = 2.0  # times the steps beside it


class DecodedVideo(NamedTuple):
    """Frames on disk, and how much each differs from the one before.

    frames: a `.npy` file, (N, height, width, channels) uint8; read it with :func:`mapped`.
    shape: of it.
    steps: (N - 1,) float32, mean absolute difference of frames n and n + 1 in levels of 255.
    """

    frames: Path
    shape: tuple[int, int, int, int]
    steps: NDArray[np.float32]

    def shots(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Frames `start` to `stop` in pieces without a hard cut: (first, one past the last) each.

        A cut is a step of more than 25 levels and more than twice the step before and after it. It
        is looked for in all of the video; fades are not found.
        """
        beside = np.pad(self.steps, 1)
        before, after = beside[:-2], beside[2:]
        is_cut = (self.steps > _CUT) & (self.steps > _STANDS_OUT * np.maximum(before, after))
        cuts = np.flatnonzero(is_cut) + 1
        inside = cuts[(cuts > start) & (cuts < stop)].tolist()
        return list(zip([start, *inside], [*inside, stop], strict=True))


def decode(path: Path, height: int, color: Literal["gray", "rgb"], cache: Path) -> DecodedVideo:
    """A video's frames, scaled to a height; decoded if the cache does not have them.

    Args:
        path: of the video, in any format that PyAV reads.
        height: in pixels; the width is in proportion.
        color: "gray", one channel, or "rgb", three.
        cache: a folder, for two files of each video: some N * height * width * channels bytes.

    Raises:
        FileNotFoundError, ValueError: as `VideoFrames` does.
    """
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a video file, {path} is absent")
    name = cache_name(path, height=height, color=color)
    frames, steps = cache / f"{name}.frames.npy", cache / f"{name}.steps.npy"
    if not (frames.exists() and steps.exists()):
        _write(path, height, color, frames, steps)
    N, h, w, channels = mapped(frames).shape
    return DecodedVideo(frames, (N, h, w, channels), np.load(steps))


@lru_cache(maxsize=64)  # a map holds a file open, of which a system allows some 1,000
def mapped(path: Path) -> NDArray[Any]:
    """The array of a `.npy` file, of which only what is used is read."""
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write(path: Path, height: int, color: Literal["gray", "rgb"], out: Path, steps: Path) -> None:
    native = VideoFrames(path)
    native_height, native_width = native[0:1].shape[1:3]
    width = max(1, round(native_width * height / native_height))
    video = VideoFrames(path, (height, width), color)
    shape = (len(video), height, width, 3 if color == "rgb" else 1)
    differences = np.empty(max(0, len(video) - 1), np.float32)
    with written_whole(out) as unfinished, written_whole(steps) as beside:
        frames = open_memmap(unfinished, "w+", np.uint8, shape)
        for start in range(0, len(video), _CHUNK):
            stop = min(start + _CHUNK, len(video))
            frames[start:stop] = video[start:stop].reshape(-1, *shape[1:])
            for n in range(max(1, start), stop):
                differences[n - 1] = abs(frames[n].astype(np.int16) - frames[n - 1]).mean()
        frames.flush()
        open_memmap(beside, "w+", np.float32, differences.shape)[:] = differences
