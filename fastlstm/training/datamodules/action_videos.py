"""Data modules of UCF-101 and HMDB-51, as features of frames (the paper's percepts)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastlstm.data.decoded_video import mapped
from fastlstm.data.frame_features import FrameFeatures
from fastlstm.data.shuffled_rounds import shuffled_rounds
from fastlstm.data.splits import Split
from fastlstm.data.ucf_hmdb import ActionSet, Clip, load_actions
from fastlstm.training.batches import LabelledBatch
from fastlstm.training.datamodules.base import InfiniteDataModule, check_positive
from fastlstm.training.datamodules.moving_mnist import VideoData, time_first

_CLIPS, _STARTS, _CHOICE = 110, 111, 112  # numbers of random streams that no data set uses
_Windows = tuple[NDArray[np.float32], NDArray[np.int64]]


class FeatureWindows(Dataset[tuple[NDArray[np.float32], int]]):
    """Windows of clips' frame features; window n is a function of n and the seed.

    Clips come up in shuffled rounds, each once before any comes up again. A window begins at a
    random frame of its clip. A clip shorter than a window is padded with its last frame.

    Args:
        files: ``.npy`` files of (T, D) features, at least one.
        labels: the class of each file.
        num_frames: frames of a window.
        seed: at least 0.
        length: windows in the dataset. Default: more than any training run reads.

    ``windows.__getitems__(numbers)`` returns (B, num_frames, D) float32 and (B,) int64.
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
        chosen = shuffled_rounds(slots, len(self.files), (self.seed, _CLIPS))
        pairs = zip(slots.tolist(), chosen.tolist(), strict=True)
        return np.stack([self._window(*pair) for pair in pairs]), self.labels[chosen]

    def _window(self, number: int, clip: int) -> NDArray[np.float32]:
        features = mapped(self.files[clip])
        starts = max(1, len(features) - self.num_frames + 1)
        start = int(np.random.default_rng((self.seed, _STARTS, number)).integers(starts))
        window = features[start : start + self.num_frames]
        return np.pad(window, ((0, self.num_frames - len(window)), (0, 0)), "edge")


class ActionVideoData(InfiniteDataModule):
    """Windows of labelled clips of UCF-101 or HMDB-51, in batches of ``LabelledBatch``.

    In training, a window begins at a random frame of its clip, and clips come up in shuffled
    rounds. A validation or test batch is one clip, cut into windows that begin every ``stride``
    frames and count as one video; a clip shorter than a window is one window. Frame features that
    are not on disk yet are computed before training, which may take hours. Training data are
    infinite and resume exactly, see ``InfiniteDataModule``: give the Trainer ``max_steps``.

    Args:
        dataset: "ucf101" or "hmdb51".
        folder: where the data set's archives were unpacked, as ``load_actions`` says.
        percepts: how the features of frames are computed.
        fold: which of the three official splits, 1 to 3. Default: 1.
        batch_size: windows in a training batch, per device. Default: 64.
        window: frames in a window. Default: 16, as in the paper.
        stride: frames from one window to the next in validation and test. Default: 8, as in the
            paper.
        labels_per_class: training clips of each class, chosen by ``seed``. Default (None): all.
        num_workers: processes that read windows; 0: the training process reads them. Default: 0.
        seed: of the training windows. Default: 0.

    Raises:
        ValueError: an argument is out of range; or, when clips are read, a class has fewer training
            clips than ``labels_per_class``.
        FileNotFoundError: as ``load_actions`` does, when clips are read.

    Example:
        >>> from fastlstm.data import FrameFeatures
        >>> from fastlstm.training import ActionVideoData
        >>> backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> features = FrameFeatures(backbone, size=16)
        >>> data = ActionVideoData("ucf101", "folder of the archives", features, stride=4)
        >>> data.window, data.stride
        (16, 4)
    """

    def __init__(
        self,
        dataset: ActionSet,
        folder: str,
        percepts: FrameFeatures,
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
        """Names of the classes, by label."""
        return load_actions(self.dataset, self.folder, "train", self.fold).classes

    def clips(self, split: Split) -> list[Clip]:
        """Return the clips of a split; in training ``labels_per_class`` of them a class."""
        clips, classes = load_actions(self.dataset, self.folder, split, self.fold)
        if split != "train" or self.labels_per_class is None:
            return clips
        random = np.random.default_rng((self.seed, _CHOICE))
        chosen: list[Clip] = []
        for label, name in enumerate(classes):
            of_class = [clip for clip in clips if clip.label == label]
            if len(of_class) < self.labels_per_class:
                raise ValueError(
                    f"labels_per_class: expected at most the {len(of_class)} training clips of"
                    f" {name}, got {self.labels_per_class}"
                )
            order = random.permutation(len(of_class))
            chosen += [of_class[n] for n in order[: self.labels_per_class]]
        return chosen

    def prepare_data(self) -> None:
        for split in get_args(Split):
            for clip in self.clips(split):
                self.percepts.file(clip.path)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._whole_clips("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._whole_clips("test")

    def _training_videos(self) -> FeatureWindows:
        clips = self.clips("train")
        return FeatureWindows(
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
        features = torch.from_numpy(np.array(mapped(file)))
        windows = features.unfold(0, min(self.window, len(features)), self.stride)  # (W, D, window)
        counts = torch.tensor([len(windows)])
        return LabelledBatch(windows.permute(2, 0, 1), torch.tensor([label]), counts)


class ActionFutureData(VideoData):
    """Windows of clips of UCF-101 or HMDB-51 without labels, in batches of ``VideoBatch``.

    To train a video model of real-valued frames whose encoder a classifier starts from. A window
    begins at a random frame of its clip, and clips come up in shuffled rounds.

    Args:
        dataset, folder, percepts, fold: as in ``ActionVideoData``.
        batch_size: windows in a batch, per device. Default: 64.
        input_frames: frames that the model reads (T_in). Default: 16, as in the paper.
        future_frames: frames that the model predicts (T_out). Default: 13, as in the paper.
        num_workers: processes that read windows; 0: the training process reads them. Default: 0.
        seed: of the training windows. Default: 0.
        val_size, test_size: windows in the validation and the test set. Default: 512 and 2,048.

    Raises:
        ValueError: an argument is out of range.
        FileNotFoundError: as ``load_actions`` does, when clips are read.

    Example:
        >>> from fastlstm.data import FrameFeatures
        >>> from fastlstm.training import ActionFutureData
        >>> backbone = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        >>> data = ActionFutureData("ucf101", "folder of the archives", FrameFeatures(backbone))
        >>> data.input_frames, data.future_frames
        (16, 13)
    """

    def __init__(
        self,
        dataset: ActionSet,
        folder: str,
        percepts: FrameFeatures,
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

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> FeatureWindows:
        clips = load_actions(self.dataset, self.folder, split, self.fold).clips
        files = [self.percepts.file(clip.path) for clip in clips]
        return FeatureWindows(files, [clip.label for clip in clips], self.num_frames, seed, length)

    def _frames(self, videos: _Windows) -> Tensor:
        return time_first(videos[0])
