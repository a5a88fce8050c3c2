"""Patches of real videos for Lightning, of zero mean and unit variance."""

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastlstm.data import VideoPatches
from fastlstm.data.splits import Split
from fastlstm.training.datamodules.moving_mnist import VideoData, time_first

# Fixed, as those of evaluation: errors of runs with different seeds are in the same unit.
_STATISTICS_SEED, _STATISTICS_SIZE = 10_000, 2000


class PatchData(VideoData):
    """`VideoPatches` in batches of `VideoBatch`, float32; for models with `frames="real"`.

    Values are standardised: each colour channel has mean 0 and variance 1 over the training
    patches, and val and test are scaled by the same two numbers. An error is then half the squared
    error in units of a channel's variance, summed over size * size * channels values: the mean
    frame's is around half of that, 1,536 for the default patches. Every training patch is new,
    though of the same few seconds if the videos are short.

    The default clips have ten seconds of training, of five shots, and other shots in test. There a
    ridge regression (100 principal components a frame, 8,000 patches) predicts 13 frames after 16
    with an error of 820 on training patches, 1,035 on val and 572 on test; the last frame, blended
    with the mean at its best, has 985, 910 and 588. Patches that are not augmented leave the
    regression behind on test too, 633 to 560. Claims about prediction want more videos.

    Args:
        source: a folder of videos, or video files. Default: the clips of `real_video_files`.
        batch_size: patches in a batch, per device.
        input_frames: frames the model reads (T_in); the paper's are 16.
        future_frames: frames it predicts (T_out); the paper's are 13.
        size: height and width of a patch; the model's input_size is size * size * channels.
        color: "rgb", three channels, or "gray", one.
        height: to which whole frames are scaled first.
        min_motion: patches that move less are passed over, in all splits; see `VideoPatches`.
        augment: mirror, turn and reverse the patches of training.
        cache: folder for decoded frames; None for one of the user's caches.
        num_workers: processes that cut patches; 0 cuts them in the training process.
        seed: of the training patches.
        val_size, test_size: patches in the validation and the test set.

    Raises:
        ValueError: an argument out of range; what `VideoPatches` raises.
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
        """Mean and standard deviation of each channel, (channels,) float32, in levels of 255.

        Over 2,000 training patches that are drawn whatever the seed.
        """
        patches = self._videos("train", _STATISTICS_SEED).__getitems__(range(_STATISTICS_SIZE))
        values = patches.reshape(-1, 3 if self.color == "rgb" else 1)
        mean, deviation = values.mean(0, np.float64), values.std(0, np.float64)
        # a channel that never changes would be divided by 0
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).clamp(min=1).float()

    def images(self, values: Tensor) -> Tensor:
        """Standardised frames (..., I) as pictures in [0, 1], (..., size, size, 3) if in colour."""
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
