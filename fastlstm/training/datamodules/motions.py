"""The data module of digits whose motion is their label."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from fastlstm.data import MOTIONS, MotionMNIST, load_digits
from fastlstm.data.splits import Split
from fastlstm.training.batches import LabelledBatch
from fastlstm.training.datamodules.base import SeededDataModule, check_positive
from fastlstm.training.datamodules.moving_mnist import MotionVideoData, time_first

__all__ = ["LabelledBatch", "MotionData", "MotionVideoData"]

_FRAME_ORDERS = 101  # number of a random stream that no data set uses
_Videos = tuple[NDArray[np.uint8], NDArray[np.int64]]


class MotionData(SeededDataModule):
    """Videos of moving digits, in ten classes of motion, in batches of ``LabelledBatch``.

    The videos are those of ``MotionMNIST``; validation and test have digits of their own. With
    ``labels_per_class`` = n, training repeats the first 10 n videos of the seed in shuffled rounds;
    without it, training videos never repeat. Training data are infinite and resume exactly, see
    ``InfiniteDataModule``: give the Trainer ``max_steps``.

    Args:
        batch_size: videos in a batch, per device. Default: 64.
        num_frames: frames of a video, T. Default: 20.
        labels_per_class: labelled training videos of each class. Default (None): without limit.
        shuffle_frames: put the frames of every video in a random order, in all splits. A baseline:
            a model can then use single frames, but not motion. Default: False.
        single_frame: use the middle frame of every video only, T = 1. A baseline: a single frame
            says nothing about the class. Default: False.
        num_digits: digits in a video. Default: 1.
        size: height and width of a frame in pixels; the model's input_size is size * size.
            Default: 64.
        digits: folder of MNIST's idx files. Default (None): 5,000 digits of this package, see
            ``load_digits``.
        num_workers: processes that make videos; 0: the training process makes them. Default: 0.
        seed: of the training videos. Default: 0.
        val_size, test_size: videos in the validation and the test set; the classes are balanced if
            10 divides the sizes. Default: 500 and 2,000.

    Raises:
        ValueError: an argument is out of range; both ``shuffle_frames`` and ``single_frame`` are
            given; and as ``load_digits`` and ``MotionMNIST`` do.

    Example:
        >>> data = MotionData(batch_size=4, num_frames=5, size=32)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.frames.shape
        torch.Size([5, 4, 1024])
        >>> [data.classes[label] for label in batch.labels]
        ['straight', 'accelerating', 'decelerating', 'stop-and-go']
    """

    classes = MOTIONS
    """Names of the classes, by label."""

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
        # labels repeat in order: the first 10 n videos have each label n times
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
    """Videos with shuffled frames; the order depends on the seed and the video's index only."""

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
