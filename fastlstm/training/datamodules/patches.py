"""The data module of patches of real videos, with zero mean and unit variance."""

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlstm.data import VideoPatches
from fastlstm.data.splits import Split
from fastlstm.training.datamodules.moving_mnist import VideoData, time_first

# Fixed, so that runs with different training seeds have the same unit of error.
_STATISTICS_SEED, _STATISTICS_SIZE = 10_000, 2000


class PatchData(VideoData):
    """Patches of real videos in batches of ``VideoBatch``, float32, for models of real-valued
    frames.

    The patches are those of ``VideoPatches``, standardised: each colour channel has mean 0 and
    variance 1 over the training patches; validation and test are scaled by the same two numbers.
    An error is half the squared error in units of a channel's variance, summed over the size * size
    * channels values of a frame. The mean frame has an error of about half that number, 1,536 for
    the default patches. Training patches never repeat, but come from the same few seconds if the
    videos are short. Training data are infinite and resume exactly, see ``InfiniteDataModule``:
    give the Trainer ``max_steps``.

    The default clips are too few for claims about prediction: ten seconds of training in five
    shots, with other shots in test. On them, a ridge regression (100 principal components a frame,
    8,000 patches) predicts 13 frames after 16 with an error of 820 on training patches, 1,035 on
    validation and 572 on test. The last frame, blended with the mean as well as possible, has 985,
    910 and 588. Without augmentation, the regression is worse on test too, 633 to 560.

    Args:
        source: a folder of videos, or video files. Default (None): the clips of
            ``real_video_files``.
        batch_size: patches in a batch, per device. Default: 64.
        input_frames: frames that the model reads (T_in). Default: 16, as in the paper.
        future_frames: frames that the model predicts (T_out). Default: 13, as in the paper.
        size: height and width of a patch in pixels; the model's input_size is size * size *
            channels. Default: 32.
        color: "rgb", three channels, or "gray", one. Default: "rgb".
        height: height in pixels that whole frames are scaled to first. Default: 128.
        min_motion: patches with less motion are left out, in all splits; see ``VideoPatches``.
            Default: 4.
        augment: whether training patches are mirrored, rotated and reversed. Default: True.
        cache: folder for decoded frames. Default (None): the user's cache folder.
        num_workers: processes that cut patches; 0: the training process cuts them. Default: 0.
        seed: of the training patches. Default: 0.
        val_size, test_size: patches in the validation and the test set. Default: 512 and 2,048.

    Raises:
        ValueError: an argument is out of range; and as ``VideoPatches`` does.

    Example:
        >>> from fastlstm.training import PatchData
        >>> data = PatchData("folder of videos", size=16, color="gray", input_frames=8)
        >>> data.input_frames, data.future_frames
        (8, 13)
    """

    def __init__(
        self,
        source: str | list[str] | None = None,
        batch_size: int = 64,
        input_frames: int = 16,
        future_frames: int = 13,
        size: int = 32,
        color: Literal["rgb", "gray"] = "rgb",
        height: int = 128,
        min_motion: float = 4.0,
        augment: bool = True,
        cache: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_size: int = 512,
        test_size: int = 2048,
    ) -> None:
        sizes = (val_size, test_size, input_frames, future_frames)
        super().__init__(batch_size, num_workers, seed, *sizes)
        self.source = source
        self.size = size
        self.color = color
        self.height = height
        self.min_motion = min_motion
        self.augment = augment
        self.frame_shape = (size, size, 3) if color == "rgb" else (size, size)
        self.cache = cache

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel, (channels,) float32 each, in 0 .. 255.

        Computed from 2,000 training patches that are the same for every seed.
        """
        patches = self._videos("train", _STATISTICS_SEED).__getitems__(range(_STATISTICS_SIZE))
        values = patches.reshape(-1, 3 if self.color == "rgb" else 1)
        mean, deviation = values.mean(0, np.float64), values.std(0, np.float64)
        # a constant channel would be divided by 0
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).clamp(min=1).float()

    def images(self, values: Tensor) -> Tensor:
        """Return standardised frames (..., I) as images in [0, 1], (..., size, size[, 3])."""
        mean, deviation = (statistic.to(values) for statistic in self.statistics)
        return ((values.unflatten(-1, self.frame_shape) * deviation + mean) / 255).clamp(0, 1)

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> VideoPatches:
        return VideoPatches(
            self.source,
            split,
            num_frames=self.num_frames,
            size=self.size,
            color=self.color,
            height=self.height,
            min_motion=self.min_motion,
            augment=self.augment and split == "train",
            seed=seed,
            length=length,
            cache=self.cache,
        )

    def _frames(self, videos: NDArray[np.uint8]) -> Tensor:
        mean, deviation = self.statistics
        pixels = self.size * self.size
        return time_first(videos).float().sub_(mean.repeat(pixels)).div_(deviation.repeat(pixels))
