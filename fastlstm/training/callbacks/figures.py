"""Pictures of input and predicted videos, drawn at every validation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from fastlstm.models.losses import loss_by_frame, readout_to_frames
from fastlstm.models.video import VideoLSTM
from fastlstm.training.batches import VideoBatch
from fastlstm.training.callbacks.frame_rows import (
    BACKGROUND,
    FrameRow,
    Images,
    Panel,
    draw_panels,
    least_zoom,
)

CAPTIONS = ("input, read by the encoder", "future, never seen")


class Output(NamedTuple):
    """What a decoder emits for B videos: images, and the error of each, (T, B)."""

    images: Images
    errors: Images


@dataclass
class VideoPictures:
    """Images of a batch and of a model's output: floats in [0, 1], (T, B, h, w) or (T, B, h, w, 3).

    Args:
        frames: the T_in input frames.
        reconstruction: the same frames as the model reconstructs them, in the order of the input;
            None if the model has no decoder for them.
        future: the T_out frames that follow.
        prediction: the same frames as the model predicts them in closed loop; None as above.
        unit: of the errors.
    """

    frames: Images
    reconstruction: Output | None
    future: Images
    prediction: Output | None
    unit: str

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: VideoLSTM,
        frames: Tensor,
        future: Tensor,
        as_images: Callable[[Tensor], Tensor] | None = None,
    ) -> "VideoPictures":
        """Return pictures of videos and of what a model, time first, makes of them.

        Args:
            model: the model; it runs without autocast.
            frames: (T_in, B, I) frames to read, in the dtype of the model's parameters.
            future: (T_out, B, I) the frames that follow.
            as_images: turns frames into images, as the method ``images`` of the data modules does.
                Default: frames are square images of one channel.

        Raises:
            ValueError: frames are not square images of one channel, and ``as_images`` is not given.
        """
        to_images = as_images or _square

        def images(values: Tensor) -> Images:
            pixels: Images = to_images(values.float().cpu()).numpy()
            return pixels

        def output(readout: Tensor | None, target: Tensor) -> Output | None:
            if readout is None:
                return None
            errors = loss_by_frame(readout, target, model.frame_type)
            emitted = readout_to_frames(readout.float(), model.frame_type)
            return Output(images(emitted), errors.float().cpu().numpy())

        with torch.autocast(frames.device.type, enabled=False):
            reconstruction, prediction, _ = model(frames, steps=len(future))
        if reconstruction is not None:
            reconstruction = reconstruction.flip(0)  # the decoder emits the last frame first
        return cls(
            images(frames),
            output(reconstruction, frames),
            images(future),
            output(prediction, future),
            "nats" if model.frame_type == "binary" else "half squared error",
        )

    def at_steps(self, steps: Sequence[int]) -> "VideoPictures":
        """Return the same pictures with only some of the future frames."""
        chosen = self.prediction and Output(*(part[steps] for part in self.prediction))
        return replace(self, future=self.future[steps], prediction=chosen)


def has_pictures(trainer: Trainer) -> bool:
    """Return whether the data module's frames are images; features of frames, say, are not."""
    return getattr(trainer.datamodule, "frame_shape", ()) is not None  # type: ignore[attr-defined]


def _square(values: Tensor) -> Tensor:
    """Return (..., I) as (..., side, side)."""
    side = round(values.shape[-1] ** 0.5)
    if side * side != values.shape[-1]:
        raise ValueError(f"frames: expected square one-channel images, got I={values.shape[-1]}")
    return values.clamp(0, 1).unflatten(-1, (side, side))


def of_batch(module: Any, batch: VideoBatch, samples: int, data: Any) -> VideoPictures:
    """Return pictures of the first ``samples`` videos of a batch.

    Args:
        module: the ``VideoTask``.
        batch: the videos.
        samples: videos to draw.
        data: the data module; its method ``images``, if it has one, turns frames into images.
    """
    frames, future = (module.floats(part[:, :samples]) for part in batch)
    return VideoPictures.of(module.model, frames, future, getattr(data, "images", None))


def prediction_strip(
    pictures: Mapping[str, VideoPictures],
    title: str = "",
    captions: tuple[str, str] = CAPTIONS,
) -> Image.Image:
    """Draw a strip of frames for each video: the input and its reconstructions, then the future.

    A model without a decoder has no row in the half of that decoder. Frames are at least 90 screen
    pixels wide; the number below each is its error.

    Args:
        pictures: of the same videos, by the name of a model, which labels its rows if there are
            several.
        title: text above. Default: none.
        captions: of the two halves. Default: ``CAPTIONS``.
    """
    first = next(iter(pictures.values()))
    halves = [FrameRow("input", first.frames)], [FrameRow("true future", first.future)]
    for name, shown in pictures.items():
        names = (name, name) if len(pictures) > 1 else ("reconstruction", "prediction")
        outputs = (shown.reconstruction, shown.prediction)
        for rows, label, output in zip(halves, names, outputs, strict=True):
            if output is not None:
                rows.append(FrameRow(label, *output, shown.unit))
    panels = [Panel(*half) for half in zip(captions, halves, strict=True)]
    if len(halves[1]) == 1:
        del panels[1]  # no model predicts the future
    return draw_panels(panels, title, zoom=least_zoom(first.frames, 90), text=20)


def save_gif(pictures: VideoPictures, path: Path, milliseconds: int = 250) -> None:
    """Save an animated GIF of T_in + T_out frames, a column for each video.

    The upper row shows the true video. The lower row shows the reconstruction during the input and
    then the prediction, with the error of each frame below; it is empty while the model has no
    decoder. Frames are at least 160 screen pixels wide.

    Args:
        pictures: what to draw.
        path: the file to write; its folder is created.
        milliseconds: duration of a frame. Default: 250.
    """
    halves = ((pictures.frames, pictures.reconstruction), (pictures.future, pictures.prediction))
    zoom, steps = least_zoom(pictures.frames, 160), list[Image.Image]()
    for caption, (truth, output) in zip(CAPTIONS, halves, strict=True):
        if output is None:
            output = Output(np.full_like(truth, BACKGROUND / 255), np.full(truth.shape[:2], np.nan))
        for t in range(len(truth)):
            # the videos take the place of time: a panel has one step of each
            images, errors = (part[t][:, None] for part in output)
            rows = [
                FrameRow("video", truth[t][:, None]),
                FrameRow("model", images, errors, pictures.unit),
            ]
            panel = Panel(f"{len(steps) + 1}: {caption}", rows)
            steps.append(draw_panels([panel], zoom=zoom, text=15))
    path.parent.mkdir(parents=True, exist_ok=True)
    steps[0].save(
        path, save_all=True, append_images=steps[1:], duration=milliseconds, loop=0, disposal=1
    )


class PredictionFigure(Callback):
    """Draw the first videos of the validation set at every validation.

    Writes a PNG of rows of frames and an animated GIF, and adds the rows to TensorBoard. Nothing is
    drawn for data modules whose frames are not images. ``latest`` is the path of the last PNG; None
    before the first.

    Args:
        folder: where ``step_000500.png`` and ``step_000500.gif`` are written. Default: ``figures``
            in the run's folder (the trainer's default_root_dir).
        samples: videos in a picture. Default: 2.

    Raises:
        ValueError: ``samples`` is below 1.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import PredictionFigure
        >>> figure = PredictionFigure("figures", samples=2)
        >>> trainer = lightning.pytorch.Trainer(callbacks=[figure], logger=False)
    """

    def __init__(self, folder: str | None = None, samples: int = 2) -> None:
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
        pictures = of_batch(pl_module, batch, self.samples, data)
        folder = Path(self.folder or Path(trainer.default_root_dir) / "figures")
        step = trainer.global_step
        self.latest = folder / f"step_{step:06d}.png"
        name = type(pl_module.model).__name__
        strip = prediction_strip({name: pictures}, f"{name}, step {step}")
        folder.mkdir(parents=True, exist_ok=True)
        strip.save(self.latest)
        save_gif(pictures, self.latest.with_suffix(".gif"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(strip.convert("RGB"))
                logger.experiment.add_image("predictions", pixels, step, dataformats="HWC")
