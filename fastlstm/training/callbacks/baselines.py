"""Baselines for the prediction of future frames: the mean frame, and the last input frame."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fastlstm.models.losses import frame_error
from fastlstm.training.batches import VideoBatch
from fastlstm.training.tasks.base import floats
from fastlstm.training.tasks.video import VideoTask

Frames = Literal["binary", "real"]


@dataclass
class BaselineErrors:
    """Two predictors without a model, fitted to training videos by ``BaselineErrors.fit``.

    Args:
        mean_frame: (I,), the mean of each pixel over the training frames: the best constant frame.
        copy_weight: w of the copy-last predictor, (1 - w) * mean_frame + w * last input frame, with
            the lowest error. Copying alone (w = 1) would have infinite cross-entropy as soon as one
            pixel changes.
        kind: "binary" or "real", as in ``frame_error``.

    Example:
        >>> import torch
        >>> frames, future = torch.rand(5, 8, 16).round(), torch.rand(3, 8, 16).round()
        >>> baselines = BaselineErrors.fit(frames, future, "binary")
        >>> float(baselines.mean_frame_error(future)) < 16  # nats per frame of 16 random pixels
        True
    """

    mean_frame: Tensor
    copy_weight: float
    kind: Frames

    @classmethod
    def fit(cls, frames: Tensor, future: Tensor, kind: Frames) -> "BaselineErrors":
        """Fit to training videos ``frames`` (T_in, B, I) and ``future`` (T_out, B, I), floats."""
        mean = torch.cat((frames, future)).mean((0, 1))
        if kind == "binary":
            # a pixel that is 0 in this sample may be 1 in another video
            mean = mean.clamp(1e-5, 1 - 1e-5)
        few = slice(0, 128)  # enough videos to fit one number
        return cls(
            mean,
            _lowest(
                lambda w: float(
                    frame_error(torch.lerp(mean, frames[-1, few], w), future[:, few], kind)
                )
            ),
            kind,
        )

    def mean_frame_error(self, future: Tensor) -> Tensor:
        """Return the error per frame if all frames of ``future`` (T, B, I) are the mean frame."""
        return frame_error(self.mean_frame, future, self.kind)

    def copy_last_error(self, frames: Tensor, future: Tensor) -> Tensor:
        """Return the error per frame of the copy-last predictor, see ``copy_weight``."""
        last = torch.lerp(self.mean_frame, frames[-1], self.copy_weight)
        return frame_error(last, future, self.kind)


def _lowest(error: Callable[[float], float], low: float = 0.0, high: float = 0.999) -> float:
    """Return the minimum of a convex function to 0.001; both errors are convex in the weight."""
    while high - low > 1e-3:
        third = (high - low) / 3
        if error(low + third) < error(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


class Baselines(Callback):
    """Log the errors of two predictors without a model, in validation and test.

    ``val/mean_frame`` and ``val/copy_last`` (``test/...``) are in the unit of the model's
    ``future`` error and are computed on the same batches; see ``BaselineErrors``. The predictors
    are fitted once. They are not logged if the model has no future decoder.

    Args:
        sample: training videos that the predictors are fitted to. Default: 1,024.

    Raises:
        ValueError: ``sample`` is below 1.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import Baselines
        >>> trainer = lightning.pytorch.Trainer(callbacks=[Baselines(sample=64)], logger=False)
    """

    def __init__(self, sample: int = 1024) -> None:
        if sample < 1:
            raise ValueError(f"sample: expected at least 1, got {sample}")
        self.sample = sample
        self.errors: BaselineErrors | None = None

    def _fit(self, trainer: Trainer, module: VideoTask) -> None:
        if self.errors is None and module.model.future_decoder is not None:
            batch = trainer.datamodule.training_sample(self.sample)  # type: ignore[attr-defined]
            frames, future = (floats(part.to(module.device)) for part in batch)
            self.errors = BaselineErrors.fit(frames, future, module.model.frame_type)

    def _log(self, module: VideoTask, batch: VideoBatch, stage: str) -> None:
        if self.errors is None:
            return
        frames, future = map(floats, batch)
        for name, error in (
            ("mean_frame", self.errors.mean_frame_error(future)),
            ("copy_last", self.errors.copy_last_error(frames, future)),
        ):
            videos = frames.shape[1]
            module.log(f"{stage}/{name}", error, batch_size=videos, on_epoch=True, sync_dist=True)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._fit(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._fit(trainer, pl_module)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: VideoBatch, *_: Any
    ) -> None:
        self._log(pl_module, batch, "val")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: VideoBatch, *_: Any
    ) -> None:
        self._log(pl_module, batch, "test")
