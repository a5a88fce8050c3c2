"""Data modules of videos to be predicted: their base class, and Moving MNIST."""

from abc import abstractmethod
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlstm.data import MotionMNIST, MovingMNIST, load_digits
from fastlstm.data.splits import Split
from fastlstm.training.batches import VideoBatch
from fastlstm.training.datamodules.base import SeededDataModule, check_positive

DigitVideos = Literal["moving_mnist", "motion_mnist"]


def time_first(videos: NDArray[Any]) -> Tensor:
    """Return videos (B, T, ...) as (T, B, I); without a copy if they lie time first in memory."""
    return torch.from_numpy(np.ascontiguousarray(videos.swapaxes(0, 1))).flatten(2)


class VideoData(SeededDataModule):
    """Base class of data modules that yield ``VideoBatch`` objects.

    Derived classes implement ``_videos`` and ``_frames``.

    Args:
        batch_size, num_workers, seed, val_size, test_size: as in ``SeededDataModule``.
        input_frames: frames that the model reads (T_in).
        future_frames: frames that the model predicts (T_out).

    Raises:
        ValueError: a size is below 1.
    """

    frame_shape: tuple[int, ...] | None = None
    """Shape of the I values of a frame, (h, w) or (h, w, 3); None if frames are not images."""

    def __init__(
        self,
        batch_size: int,
        num_workers: int,
        seed: int,
        val_size: int,
        test_size: int,
        input_frames: int,
        future_frames: int,
    ) -> None:
        super().__init__(batch_size, num_workers, seed, val_size, test_size)
        check_positive(input_frames=input_frames, future_frames=future_frames)
        self.input_frames = input_frames
        self.future_frames = future_frames

    @property
    def num_frames(self) -> int:
        """Frames of a video, T_in + T_out."""
        return self.input_frames + self.future_frames

    def training_sample(self, count: int) -> VideoBatch:
        """Return the first ``count`` training videos as one batch."""
        videos: Any = self._training_videos()
        return self._batch(videos.__getitems__(range(count)))

    def images(self, values: Tensor) -> Tensor:
        """Return frames (..., I), read or predicted, as images (..., h, w[, 3]) in [0, 1].

        Raises:
            ValueError: the frames are not images.
        """
        if self.frame_shape is None:
            raise ValueError(f"values: expected pictures, got the frames of {type(self).__name__}")
        return values.unflatten(-1, self.frame_shape).clamp(0, 1)

    @abstractmethod
    def _frames(self, videos: Any) -> Tensor:
        """Return (T, B, I), given what ``__getitems__`` returned."""

    def _batch(self, videos: Any) -> VideoBatch:
        frames = self._frames(videos)
        return VideoBatch(frames[: self.input_frames], frames[self.input_frames :])


class MovingMNISTData(VideoData):
    """Moving MNIST: videos of bouncing digits in batches of ``VideoBatch``.

    Training videos are generated while training and never repeat. Validation and test have digits
    of their own. Training data are infinite and resume exactly, see ``InfiniteDataModule``: give
    the Trainer ``max_steps``.

    Args:
        batch_size: videos in a batch, per device. Default: 64.
        input_frames: frames that the model reads (T_in). Default: 10.
        future_frames: frames that the model predicts (T_out), at least 1. Default: 10.
        num_digits: digits in a video. Default: 2.
        size: height and width of a frame in pixels; the model's input_size is size * size.
            Default: 64.
        digits: folder of MNIST's idx files. Default (None): 5,000 digits of this package, see
            ``load_digits``.
        num_workers: processes that make videos; 0: the training process makes them, about 10,000
            videos a second on one core, which is enough on a CPU. Default: 0.
        seed: of the training videos. Default: 0.
        val_size, test_size: videos in the validation and the test set. Default: 512 and 2,048.
        dataset: "moving_mnist", digits that move straight on and bounce off the walls, or
            "motion_mnist", digits that move in ten ways: the videos of ``MotionData`` without their
            labels, to train a video model whose encoder a classifier starts from. With the same
            seed and ``input_frames + future_frames`` equal to ``num_frames``, video i is video i of
            ``MotionData``. Default: "moving_mnist".

    Raises:
        ValueError: an argument is out of range; and as ``load_digits`` and the dataset do.

    Example:
        >>> data = MovingMNISTData(batch_size=4, input_frames=3, future_frames=2, size=32)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.frames.shape, batch.future.shape, batch.frames.dtype
        (torch.Size([3, 4, 1024]), torch.Size([2, 4, 1024]), torch.uint8)
        >>> data.images(batch.frames / 255).shape
        torch.Size([3, 4, 32, 32])
    """

    def __init__(
        self,
        batch_size: int = 64,
        input_frames: int = 10,
        future_frames: int = 10,
        num_digits: int = 2,
        size: int = 64,
        digits: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_size: int = 512,
        test_size: int = 2048,
        dataset: DigitVideos = "moving_mnist",
    ) -> None:
        sizes = (val_size, test_size, input_frames, future_frames)
        super().__init__(batch_size, num_workers, seed, *sizes)
        if dataset not in get_args(DigitVideos):
            raise ValueError(f"dataset: expected one of {get_args(DigitVideos)}, got {dataset!r}")
        self.num_digits = num_digits
        self.size = size
        self.digits = digits
        self.dataset = dataset
        self.frame_shape = (size, size)

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> MovingMNIST | MotionMNIST:
        kind = MovingMNIST if self.dataset == "moving_mnist" else MotionMNIST
        return kind(
            load_digits(self.digits, split),
            num_frames=self.num_frames,
            num_digits=self.num_digits,
            size=self.size,
            seed=seed,
            length=length,
        )

    def _frames(self, videos: Any) -> Tensor:
        return time_first(videos if self.dataset == "moving_mnist" else videos[0])


class MotionVideoData(MovingMNISTData):
    """``MovingMNISTData`` with ``dataset="motion_mnist"``, by its name and defaults of version 0.1.

    Example:
        >>> from fastlstm.training import MotionVideoData
        >>> batch = next(iter(MotionVideoData(batch_size=2, size=32).train_dataloader()))
        >>> batch.frames.shape, batch.future.shape
        (torch.Size([10, 2, 1024]), torch.Size([10, 2, 1024]))
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
        frames = (input_frames, future_frames)
        sizes = (num_workers, seed, val_size, test_size)
        super().__init__(batch_size, *frames, num_digits, size, digits, *sizes, "motion_mnist")
