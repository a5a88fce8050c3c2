"""Pictures of what a model sees and says: a PNG strip and an animated GIF at every validation."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastlstm.training.datamodules.moving_mnist import VideoBatch
from fastlstm.training.tasks.video import VideoTask

_SHADE = 0.35  # of the lines between frames


@dataclass
class VideoPictures:
    """Frames to draw, floats in [0, 1]; None for what a model has no decoder for.

    frames, reconstruction: (T_in, B, h, w) or (T_in, B, h, w, 3), both in the order of the input.
    future, prediction: (T_out, B, h, w) or (T_out, B, h, w, 3).
    """

    frames: NDArray[np.float32]
    reconstruction: NDArray[np.float32] | None
    future: NDArray[np.float32]
    prediction: NDArray[np.float32] | None

    @classmethod
    @torch.no_grad()
    def of(
        cls, module: VideoTask, batch: VideoBatch, samples: int, data: Any = None
    ) -> "VideoPictures":
        """The first `samples` videos of a batch and what the module's model makes of them.

        Args:
            data: the datamodule, whose `images` makes pictures of frames; without that they are
                taken for square ones of one channel.

        Raises:
            ValueError: frames that are not, though no `images` says what they are.
        """
        frames, future = (module.floats(part[:, :samples]) for part in batch)
        model = module.model
        as_images = getattr(data, "images", _square)

        def images(values: Tensor) -> NDArray[np.float32]:
            pixels: NDArray[np.float32] = as_images(values.float().cpu()).numpy()
            return pixels

        has_reconstruction = model.reconstruction_decoder is not None
        has_future = model.future_decoder is not None
        return cls(
            images(frames),
            # the decoder emits the last frame first
            images(model.reconstruct(frames).flip(0)) if has_reconstruction else None,
            images(future),
            images(model.predict(frames, len(future))) if has_future else None,
        )

    def rows(self) -> list[tuple[str, NDArray[np.float32]]]:
        """Label and (T, B, h, w) images of each row that there is, top to bottom."""
        labels = ("input", "reconstruction", "true future", "predicted")
        values = (getattr(self, field.name) for field in fields(self))
        return [(label, v) for label, v in zip(labels, values, strict=True) if v is not None]


def has_pictures(trainer: Trainer) -> bool:
    """Whether the datamodule's frames can be drawn: percepts, for one, cannot."""
    return getattr(trainer.datamodule, "frame_shape", ()) is not None  # type: ignore[attr-defined]


def _square(values: Tensor) -> Tensor:
    """(..., I) to (..., side, side)."""
    side = round(values.shape[-1] ** 0.5)
    if side * side != values.shape[-1]:
        raise ValueError(f"frames: expected square one-channel images, got I={values.shape[-1]}")
    return values.clamp(0, 1).unflatten(-1, (side, side))


def prediction_strip(pictures: VideoPictures, title: str) -> Figure:
    """A figure with one block of labelled rows for each video, time from left to right."""
    rows = pictures.rows()
    samples, height, width, *colors = rows[0][1].shape[1:]
    steps = max(len(row) for _, row in rows)
    size = (0.62 * steps + 1.5, 0.62 * len(rows) * samples + 0.6 + 0.2 * samples)
    figure = Figure(size, layout="compressed")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(samples, 1, squeeze=False)[:, 0]
    for sample, ax in enumerate(axes):
        canvas = np.ones((len(rows) * height, steps * width, *colors), np.float32)
        for r, (_, images) in enumerate(rows):
            strip = np.concatenate(list(images[:, sample]), axis=1)
            canvas[r * height : (r + 1) * height, : strip.shape[1]] = strip
        ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for x in range(1, steps):
            ax.axvline(x * width - 0.5, color=str(_SHADE), linewidth=0.6)
        for y in range(1, len(rows)):
            ax.axhline(y * height - 0.5, color=str(_SHADE), linewidth=0.6)
        ax.set_yticks([(r + 0.5) * height for r in range(len(rows))], [label for label, _ in rows])
        ax.set_xticks([(s + 0.5) * width for s in range(steps)], [str(s) for s in range(steps)])
        ax.tick_params(length=0, labelsize=8)
        if sample < samples - 1:
            ax.set_xticks([])
    axes[-1].set_xlabel("frame (of the input, and of the future)", fontsize=8)
    return figure


def save_gif(pictures: VideoPictures, path: Path, zoom: int = 2, milliseconds: int = 160) -> None:
    """An animated GIF of T_in + T_out frames: truth above, the model's below, a video a column.

    While the input plays, the model's row is its reconstruction, then its prediction.
    """
    halves = (
        ("input", pictures.frames, "reconstruction", pictures.reconstruction),
        ("true future", pictures.future, "predicted", pictures.prediction),
    )
    steps: list[Image.Image] = []
    for upper, truth, lower, model in halves:
        for t in range(len(truth)):
            says = model[t] if model is not None else None
            caption = f"frame {len(steps)}"
            steps.append(_gif_frame(caption, upper, truth[t], lower, says, zoom))
    path.parent.mkdir(parents=True, exist_ok=True)
    steps[0].save(
        path, save_all=True, append_images=steps[1:], duration=milliseconds, loop=0, disposal=1
    )


def _gif_frame(
    caption: str,
    upper: str,
    truth: NDArray[np.float32],
    lower: str,
    says: NDArray[np.float32] | None,
    zoom: int,
) -> Image.Image:
    """One time step: (B, h, w) or (B, h, w, 3) images in two rows, labels at the left."""
    samples, height, width, *colors = truth.shape
    left, top, gap = 104, 22, 4
    wide, high = width * zoom + gap, height * zoom + gap
    image = Image.new("RGB" if colors else "L", (left + samples * wide, top + 2 * high), "white")
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=13)
    draw.text((6, 4), caption, fill=0, font=font)
    for row, (label, pixels) in enumerate(((upper, truth), (lower, says))):
        y = top + row * high
        draw.text((6, y + high // 2 - 8), label if pixels is not None else "", fill=0, font=font)
        for sample in range(samples if pixels is not None else 0):
            tile = Image.fromarray((pixels[sample] * 255).round().astype(np.uint8))  # type: ignore[index]
            size = (width * zoom, height * zoom)
            image.paste(tile.resize(size, Image.Resampling.NEAREST), (left + sample * wide, y))
    return image


class PredictionFigure(Callback):
    """At every validation, a PNG strip and a GIF of its first videos, and the strip in TensorBoard.

    Nothing is drawn of data whose frames are no pictures.

    Args:
        folder: where `step_000500.png` and `.gif` go. Default: `figures` in the run's folder
            (the trainer's default_root_dir).
        samples: videos in a picture.

    `latest` holds the path of the last PNG written, None before the first.
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
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not has_pictures(trainer):
            return
        pictures = VideoPictures.of(
            pl_module,
            batch,
            self.samples,
            trainer.datamodule,  # type: ignore[attr-defined]
        )
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
