"""Small videos that tests make: frames in, a file out."""

import av
import numpy as np


def write_clip(path, frames, rate=25):
    """A video of (N, h, w, 3) uint8 frames, compressed so little that levels move by a few."""
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
    """Frames of coarse coloured noise that moves a pixel to the right in each."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3))
    image = coarse.repeat(8, 0).repeat(8, 1).astype(np.uint8)
    return np.stack([np.roll(image, step, axis=1) for step in range(count)])
