"""Pictures of input and predicted videos, drawn at every validation."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastlstm.training.batches import VideoBatch
from fastlstm.training.callbacks.frame_rows import FrameRow, Images, draw_frame_rows
from fastlstm.training.tasks.video import VideoTask


@dataclass
class VideoPictures:
    """Images of a batch and of a model's output: floats in [0, 1], (T, B, h, w) or (T, B, h, w, 3).

    Args:
        frames: the T_in input frames.
        reconstruction: the same frames as the model reconstructs them, in the order of the input;
            None if the model has no decoder for them.
        future: the T_out frames that follow.
        prediction: the same frames as the model predicts them; None as above.
    """

    frames: Images
    reconstruction: Images | None
    future: Images
    prediction: Images | None

    @classmethod
    @torch.no_grad()
    def of(
        cls, module: VideoTask, batch: VideoBatch, samples: int, data: Any = None
    ) -> "VideoPictures":
        """Return pictures of the first ``samples`` videos of a batch.

        Args:
            module: the task, with its model.
            batch: the videos.
            samples: videos to draw.
            data: the data module, whose method ``images`` turns frames into images. Default: frames
                are square images of one channel.

        Raises:
            ValueError: frames are not square images of one channel, and ``data`` has no ``images``.
        """
        frames, future = (module.floats(part[:, :samples]) for part in batch)
        model = module.model
        as_images = getattr(data, "images", _square)

        def images(values: Tensor) -> Images:
            pixels: Images = as_images(values.float().cpu()).numpy()
            return pixels

        has_reconstruction = model.reconstruction_decoder is not None
        has_future = model.future_decoder is not None
        return cls(
            images(frames),
            # flipped, because the decoder emits the last frame first
            images(model.reconstruct(frames).flip(0)) if has_reconstruction else None,
            images(future),
            images(model.predict(frames, len(future))) if has_future else None,
        )

    def rows(self) -> list[tuple[str, Images]]:
        """Return label and images of each row that has images, from top to bottom."""
        labels = ("input", "reconstruction", "true future", "predicted")
        values = (getattr(self, field.name) for field in fields(self))
        return [(label, v) for label, v in zip(labels, values, strict=True) if v is not None]


def has_pictures(trainer: Trainer) -> bool:
    """Return whether the data module's frames are images; features of frames, say, are not."""
    return getattr(trainer.datamodule, "frame_shape", ()) is not None  # type: ignore[attr-defined]


def _square(values: Tensor) -> Tensor:
    """Return (..., I) as (..., side, side)."""
    side = round(values.shape[-1] ** 0.5)
    if side * side != values.shape[-1]:
        raise ValueError(f"frames: expected square one-channel images, got I={values.shape[-1]}")
    return values.clamp(0, 1).unflatten(-1, (side, side))


def prediction_strip(pictures: VideoPictures, title: str) -> Figure:
    """Return a figure with a block of labelled rows for each video."""
    rows = [FrameRow(label, images) for label, images in pictures.rows()]
    return draw_frame_rows(rows, title, "frame (of the input, and of the future)")


def save_gif(pictures: VideoPictures, path: Path, zoom: int = 2, milliseconds: int = 160) -> None:
    """Save an animated GIF of T_in + T_out frames, a column for each video.

    The upper row shows the true video. The lower row shows the reconstruction during the input and
    then the prediction.

    Args:
        pictures: what to draw.
        path: the file to write; its folder is created.
        zoom: screen pixels per pixel. Default: 2.
        milliseconds: duration of a frame. Default: 160.
    """
    halves = (
        ("input", pictures.frames, "reconstruction", pictures.reconstruction),
        ("true future", pictures.future, "predicted", pictures.prediction),
    )
    steps: list[Image.Image] = []
    for upper, truth, lower, output in halves:
        for t in range(len(truth)):
            predicted = output[t] if output is not None else None
            rows = ((upper, truth[t]), (lower, predicted))
            steps.append(_gif_frame(f"frame {len(steps)}", rows, zoom))
    path.parent.mkdir(parents=True, exist_ok=True)
    steps[0].save(
        path, save_all=True, append_images=steps[1:], duration=milliseconds, loop=0, disposal=1
    )


def _gif_frame(
    caption: str, rows: tuple[tuple[str, Images], tuple[str, Images | None]], zoom: int
) -> Image.Image:
    """Draw one time step: two rows of (B, h, w) or (B, h, w, 3) images with labels at the left."""
    samples, height, width, *colors = rows[0][1].shape
    left, top, gap = 104, 22, 4
    wide, high = width * zoom + gap, height * zoom + gap
    image = Image.new("RGB" if colors else "L", (left + samples * wide, top + 2 * high), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    draw.text((6, 4), caption, fill=0, font=font)
    for row, (label, pixels) in enumerate(rows):
        if pixels is None:
            continue
        y = top + row * high
        draw.text((6, y + high // 2 - 8), label, fill=0, font=font)
        for sample in range(samples):
            tile = Image.fromarray((pixels[sample] * 255).round().astype(np.uint8))
            size = (width * zoom, height * zoom)
            image.paste(tile.resize(size, Image.Resampling.NEAREST), (left + sample * wide, y))
    return image


class PredictionFigure(Callback):
    """Draw the first videos of the validation set at every validation.

    Writes a PNG of rows of frames and an animated GIF, and adds the rows to TensorBoard. Nothing is
    drawn for data modules whose frames are not images. ``latest`` is the path of the last PNG; None
    before the first.

    Args:
        folder: where ``step_000500.png`` and ``step_000500.gif`` are written. Default: ``figures``
            in the run's folder (the trainer's default_root_dir).
        samples: videos in a picture. Default: 4.

    Raises:
        ValueError: ``samples`` is below 1.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import PredictionFigure
        >>> figure = PredictionFigure("figures", samples=2)
        >>> trainer = lightning.pytorch.Trainer(callbacks=[figure], logger=False)
    """

    def __init__(self, folder: str | None = None, samples: int = 4) -> None:
        if samples < 1:
            raise ValueError(f"samples: expected at least 1, got {samples}")
        self.folder = folder
        self.samples = samples
        self.latest: Path | None = None

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: VideoBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if trainer.fast_dev_run or not has_pictures(trainer):  # type: ignore[attr-defined]
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        pictures = VideoPictures.of(pl_module, batch, self.samples, data)
        folder = Path(self.folder or Path(trainer.default_root_dir) / "figures")
        step = trainer.global_step
        self.latest = folder / f"step_{step:06d}.png"
        figure = prediction_strip(pictures, f"{type(pl_module.model).__name__}, step {step}")
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.latest, dpi=100)
        save_gif(pictures, self.latest.with_suffix(".gif"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("predictions", figure, step, close=False)
