"""Features of video frames from an image network, computed once for each video."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor, nn

from fastlstm.data.caching import cache_folder, cache_name
from fastlstm.data.decoded_video import mapped
from fastlstm.data.video_files import VideoFrames
from fastlstm.files import written_whole


class FrameFeatures:
    """Features of the frames of videos, computed by an image network and kept in files.

    ``features(video)`` is (T, D) float32 for a video of T frames. Srivastava et al. (2015) call
    such features percepts: theirs are the 4,096 outputs of layer fc6 of a VGG network.

    A frame is scaled so that its shorter side is ``size`` pixels, cropped to the square in its
    middle, scaled to [0, 1] and standardised by ``mean`` and ``std``. The features of a video are
    computed when they are first asked for, and memory-mapped from their file after that. The name
    of the file depends on the ``repr`` and the weights of the backbone, the arguments below but
    ``batch_size``, and the path, size and time of the video, so a change of any of them computes
    the features anew. An interrupted computation leaves no file.

    Args:
        backbone: a module from (N, 3, size, size) floats to (N, D). It runs in evaluation mode, on
            the device and in the dtype of its parameters.
        size: height and width in pixels of what the backbone reads. Default: 224.
        mean: mean of each of the three colour channels, of values in [0, 1]. Default: that of
            ImageNet, with which torchvision's networks were trained.
        std: standard deviation of each channel. Default: that of ImageNet.
        description: any text; distinguishes backbones with the same ``repr`` and weights.
        batch_size: number of frames that the backbone reads at once. Default: 32.
        cache: a folder for the files. Default: ``fastlstm/percepts`` in ``$XDG_CACHE_HOME`` or
            ``~/.cache``.

    Raises:
        ValueError: a ``size`` or ``batch_size`` below 1, or not three values of ``mean`` or
            ``std``.

    Example:
        >>> import tempfile
        >>> from fastlstm.data import real_video_files
        >>> network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())  # torchvision's, or your own
        >>> features = FrameFeatures(network, size=16, cache=tempfile.mkdtemp())
        >>> features(real_video_files()[2]).shape  # 120 frames; 2 * 2 averages of three channels
        (120, 12)
    """

    def __init__(
        self,
        backbone: nn.Module,
        size: int = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        description: str = "",
        batch_size: int = 32,
        cache: str | Path | None = None,
    ) -> None:
        for name, value in (("size", size), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != 3:
                raise ValueError(f"{name}: expected 3 numbers, got {len(values)}")
        self.backbone = backbone
        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.batch_size = batch_size
        self.folder = cache_folder(cache, "percepts")  # as in version 0.1, whose files stay valid
        self._made = {
            "backbone": _fingerprint(backbone),
            "description": description,
            "size": size,
            "mean": self.mean,
            "std": self.std,
        }

    def __call__(self, video: str | Path) -> NDArray[np.float32]:
        """Return the features of a video, (T, D) float32, memory-mapped.

        Raises:
            FileNotFoundError: the video does not exist.
            ValueError: the video cannot be read, or the backbone does not return (N, D) floats.
        """
        return mapped(self.file(video))

    def file(self, video: str | Path) -> Path:
        """Return the path of the ``.npy`` file of a video's features, computed if it is absent.

        Raises:
            FileNotFoundError: the video does not exist.
            ValueError: the video cannot be read, or the backbone does not return (N, D) floats.
        """
        if not Path(video).is_file():
            raise FileNotFoundError(f"video: expected a video file, {video} is absent")
        path = self.folder / f"{cache_name(video, **self._made)}.npy"
        if not path.exists():
            self._write(Path(video), path)
        return path

    def _write(self, video: Path, path: Path) -> None:
        height, width = VideoFrames(video)[0:1].shape[1:3]
        scale = self.size / min(height, width)
        scaled = (max(self.size, round(height * scale)), max(self.size, round(width * scale)))
        frames = VideoFrames(video, scaled, "rgb")
        top, left = ((side - self.size) // 2 for side in scaled)
        written = None
        with written_whole(path) as unfinished:
            for start in range(0, len(frames), self.batch_size):
                stop = min(start + self.batch_size, len(frames))
                square = frames[start:stop][:, top : top + self.size, left : left + self.size]
                features = self._features(square)
                if written is None:
                    shape = (len(frames), features.shape[1])
                    written = open_memmap(unfinished, "w+", np.float32, shape)
                written[start:stop] = features.float().cpu().numpy()
            assert written is not None  # a video without frames cannot be opened
            written.flush()

    @torch.inference_mode()
    def _features(self, frames: NDArray[np.uint8]) -> Tensor:
        """Compute features (n, D) of frames (n, size, size, 3)."""
        parameter = next(self.backbone.parameters(), torch.empty(0))
        images = torch.from_numpy(frames).permute(0, 3, 1, 2).to(parameter) / 255
        mean, std = (images.new_tensor(each)[:, None, None] for each in (self.mean, self.std))
        was_training = self.backbone.training
        try:
            features = self.backbone.eval()((images - mean) / std)
        finally:
            self.backbone.train(was_training)
        if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(frames):
            got = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"backbone: expected features ({len(frames)}, D), got {got}")
        return features


Percepts = FrameFeatures  # the name in version 0.1


def _fingerprint(module: nn.Module) -> str:
    """Return a checksum of a module's layers and weights."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
