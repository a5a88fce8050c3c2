"""UCF-101 and HMDB-51 for Lightning, as percepts: labelled windows, and videos to be continued."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastlstm.data.decoded_video import mapped
from fastlstm.data.frame_features import Percepts
from fastlstm.data.shuffled_rounds import dealt
from fastlstm.data.splits import Split
from fastlstm.data.ucf_hmdb import ActionSet, Clip, load_actions
from fastlstm.training.batches import LabelledBatch
from fastlstm.training.datamodules.base import InfiniteDataModule, check_positive
from fastlstm.training.datamodules.moving_mnist import VideoData, time_first

_CLIPS, _STARTS, _CHOICE = 110, 111, 112  # random streams of their own
_Windows = tuple[NDArray[np.float32], NDArray[np.int64]]


class PerceptWindows(Dataset[tuple[NDArray[np.float32], int]]):
    """Windows of clips' percepts, each a pure function of its number.

    Clips are dealt in shuffled rounds; a window lies anywhere in its clip. A clip that is shorter
    goes on with its last frame.

    Args:
        files: `.npy` files of (T, D) percepts, at least one.
        labels: of each.
        num_frames: frames of a window.
        seed: non-negative.
        length: windows in the dataset.

    `windows.__getitems__(numbers)` is (B, num_frames, D) float32 and (B,) int64.
    """

    def __init__(
        self,
        files: Sequence[Path],
        labels: Sequence[int],
        num_frames: int,
        seed: int,
        length: int = 2**40,
    ) -> None:
        self.files = list(files)
        self.labels = np.asarray(labels, np.int64)
        self.num_frames = num_frames
        self.seed = seed
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, numbers: ArrayLike) -> _Windows:
        slots = np.asarray(numbers, np.int64)
        chosen = dealt(slots, len(self.files), (self.seed, _CLIPS))
        pairs = zip(slots.tolist(), chosen.tolist(), strict=True)
        return np.stack([self._window(*pair) for pair in pairs]), self.labels[chosen]

    def _window(self, number: int, clip: int) -> NDArray[np.float32]:
        percepts = mapped(self.files[clip])
        starts = max(1, len(percepts) - self.num_frames + 1)
        start = int(np.random.default_rng((self.seed, _STARTS, number)).integers(starts))
        window = percepts[start : start + self.num_frames]
        return np.pad(window, ((0, self.num_frames - len(window)), (0, 0)), "edge")


class ActionVideoData(InfiniteDataModule):
    """Windows of labelled clips as `LabelledBatch`es; val and test read all windows of every clip.

    In training a window lies anywhere in its clip, and every clip comes up once before one comes up
    again. Val and test batches are one clip each, in windows that start every `stride` frames and
    count as one video; a clip shorter than a window is one window. The percepts of clips that have
    none yet are computed before training, which may take hours.

    Args:
        dataset: "ucf101" or "hmdb51".
        folder: where its archives were unpacked, as `load_actions` says.
        percepts: what is read of the frames.
        fold: which of the three official splits.
        batch_size: windows in a training batch, per device.
        window: frames in a window; the paper's are 16.
        stride: frames from one window to the next in val and test; the paper's are 8.
        labels_per_class: clips of each class trained on, chosen by `seed`; None for all.
        num_workers: processes that read windows; 0 reads them in the training process.
        seed: of the training windows.

    Raises:
        ValueError: an argument out of range, or classes with fewer clips than `labels_per_class`.
        FileNotFoundError: as `load_actions` does.
    """

    def __init__(
        self,
        dataset: ActionSet,
        folder: str,
        percepts: Percepts,
        fold: int = 1,
        batch_size: int = 64,
        window: int = 16,
        stride: int = 8,
        labels_per_class: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        check_positive(window=window, stride=stride)
        if labels_per_class is not None:
            check_positive(labels_per_class=labels_per_class)
        self.dataset = dataset
        self.folder = folder
        self.percepts = percepts
        self.fold = fold
        self.window = window
        self.stride = stride
        self.labels_per_class = labels_per_class

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        return load_actions(self.dataset, self.folder, "train", self.fold).classes

    def clips(self, split: Split) -> list[Clip]:
        """The clips of a split; of "train", those whose labels are used."""
        clips, classes = load_actions(self.dataset, self.folder, split, self.fold)
        if split != "train" or self.labels_per_class is None:
            return clips
        random = np.random.default_rng((self.seed, _CHOICE))
        chosen: list[Clip] = []
        for label, name in enumerate(classes):
            its = [clip for clip in clips if clip.label == label]
            if len(its) < self.labels_per_class:
                raise ValueError(
                    f"labels_per_class: expected at most the {len(its)} training clips of {name},"
                    f" got {self.labels_per_class}"
                )
            chosen += [its[n] for n in random.permutation(len(its))[: self.labels_per_class]]
        return chosen

    def prepare_data(self) -> None:
        for split in get_args(Split):
            for clip in self.clips(split):
                self.percepts.file(clip.path)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._whole_clips("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._whole_clips("test")

    def _training_videos(self) -> PerceptWindows:
        clips = self.clips("train")
        return PerceptWindows(
            [self.percepts.file(clip.path) for clip in clips],
            [clip.label for clip in clips],
            self.window,
            self.seed,
        )

    def _batch(self, windows: _Windows) -> LabelledBatch:
        return LabelledBatch(time_first(windows[0]), torch.from_numpy(windows[1]))

    def _whole_clips(self, split: Split) -> DataLoader[Any]:
        clips = [(self.percepts.file(clip.path), clip.label) for clip in self.clips(split)]
        return DataLoader(
            clips,  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=self._all_windows,
            num_workers=self.num_workers,
        )

    def _all_windows(self, clip: Any) -> LabelledBatch:
        file, label = clip
        percepts = torch.from_numpy(np.array(mapped(file)))
        windows = percepts.unfold(0, min(self.window, len(percepts)), self.stride)  # (W, D, window)
        counts = torch.tensor([len(windows)])
        return LabelledBatch(windows.permute(2, 0, 1), torch.tensor([label]), counts)


class ActionFutureData(VideoData):
    """The clips of `ActionVideoData` without labels, in batches of `VideoBatch`.

    For training a video model, with `frames="real"`, whose encoder a classifier starts from. A
    window lies anywhere in its clip, and every clip comes up once before one comes up again.

    Args:
        dataset, folder, percepts, fold: of `ActionVideoData`.
        batch_size: windows in a batch, per device.
        input_frames: frames the model reads (T_in); the paper's are 16.
        future_frames: frames it predicts (T_out); the paper's are 13.
        num_workers: processes that read windows; 0 reads them in the training process.
        seed: of the training windows.
        val_size, test_size: windows in the validation and the test set.

    Raises:
        ValueError: an argument out of range.
        FileNotFoundError: as `load_actions` does.
    """

    def __init__(
        self,
        dataset: ActionSet,
        folder: str,
        percepts: Percepts,
        fold: int = 1,
        batch_size: int = 64,
        input_frames: int = 16,
        future_frames: int = 13,
        num_workers: int = 0,
        seed: int = 0,
        val_size: int = 512,
        test_size: int = 2048,
    ) -> None:
        sizes = (val_size, test_size, input_frames, future_frames)
        super().__init__(batch_size, num_workers, seed, *sizes)
        self.dataset = dataset
        self.folder = folder
        self.percepts = percepts
        self.fold = fold

    def prepare_data(self) -> None:
        for split in get_args(Split):
            self._videos(split, 0)

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> PerceptWindows:
        clips = load_actions(self.dataset, self.folder, split, self.fold).clips
        files = [self.percepts.file(clip.path) for clip in clips]
        return PerceptWindows(files, [clip.label for clip in clips], self.num_frames, seed, length)

    def _frames(self, videos: _Windows) -> Tensor:
        return time_first(videos[0])
