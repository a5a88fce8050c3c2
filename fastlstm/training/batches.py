"""The types of the batches that data modules yield and tasks read."""

from typing import NamedTuple

from torch import Tensor


class VideoBatch(NamedTuple):
    """Videos cut into a past and a future, time first.

    Args:
        frames: (T_in, B, I), what the model reads and reconstructs. uint8 in 0 .. 255, which tasks
            scale to [0, 1] on the model's device, or floats, which they take as they are.
        future: (T_out, B, I), the frames that follow, of the same dtype.

    Example:
        >>> import torch
        >>> batch = VideoBatch(frames=torch.rand(10, 32, 4096), future=torch.rand(5, 32, 4096))
        >>> len(batch.future)
        5
    """

    frames: Tensor
    future: Tensor


class LabelledBatch(NamedTuple):
    """Videos and their classes, time first.

    Args:
        frames: (T, B, I), uint8 or floats as in ``VideoBatch``.
        labels: (V,) int64, the class of each of V videos, from 0 on.
        windows: (V,) int64, for videos that are cut into windows: how many of the B columns belong
            to each video. They stand side by side, and a video's class is the one with the highest
            probability averaged over its windows. Default (None): every column is a video, V = B.

    Example:
        Two videos in one window each, then one video in two windows:

        >>> import torch
        >>> frames = torch.rand(16, 2, 1024)
        >>> two = LabelledBatch(frames, torch.tensor([3, 0]))
        >>> one = LabelledBatch(frames, torch.tensor([3]), windows=torch.tensor([2]))
    """

    frames: Tensor
    labels: Tensor
    windows: Tensor | None = None
