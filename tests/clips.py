"""Small video files for tests, and a small image network."""

import av
import numpy as np
import torch
from torch import nn

from fastlstm.data import FrameFeatures


def write_clip(path, frames, rate=25):
    """Write (N, h, w, 3) uint8 frames as a video in which levels change by a few."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=rate)
        stream.bit_rate = 8_000_000
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())
    return path


def noise(count, height=32, width=48, seed=0):
    """Frames of coarse coloured noise, each moved a pixel to the right of the one before."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    image = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    return np.stack([np.roll(image, step, axis=1) for step in range(count)])


class Means(nn.Module):
    """A backbone: the weighted mean of each colour, and a number that is always 1."""

    def __init__(self, weight=2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), weight))
        self.dropout = nn.Dropout(0.5)
        self.seen = 0

    def forward(self, images):
        self.seen += len(images)
        means = self.dropout(images.mean((2, 3))) * self.weight
        return torch.cat((means, torch.ones(len(images), 1)), 1)


PLAIN = {"size": 16, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "batch_size": 8}


def frame_features(folder, weight=2.0, **options):
    return FrameFeatures(Means(weight), **{**PLAIN, "cache": folder, **options})
