"""What a model of the future has to beat: the mean frame and the last frame seen."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from fastlstm.models.losses import frame_error
from fastlstm.training.batches import VideoBatch
from fastlstm.training.tasks.base import floats

if TYPE_CHECKING:
    from fastlstm.training.tasks.video import VideoTask

Frames = Literal["binary", "real"]


@dataclass
class BaselineErrors:
    """Two predictors without a model, fitted on training videos.

    mean_frame: (I,) every pixel's mean over the training frames: the best constant frame.
    copy_weight: w of the copy-last predictor (1 - w) * mean_frame + w * last frame. Unblended
        copying has infinite cross-entropy at the first pixel that changes; w is the best one.
    kind: "binary" or "real", as in `frame_error`.
    """

    mean_frame: Tensor
    copy_weight: float
    kind: Frames

    @classmethod
    def fit(cls, frames: Tensor, future: Tensor, kind: Frames) -> "BaselineErrors":
        """From training videos `frames` (T_in, B, I) and `future` (T_out, B, I), floats."""
        mean = torch.cat((frames, future)).mean((0, 1))
        if kind == "binary":
            # a pixel without ink in this sample may have some in the next video
            mean = mean.clamp(1e-5, 1 - 1e-5)
        few = slice(0, 128)  # one number is fitted: more videos do not move it
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
        """Error per frame of predicting the mean frame at all steps of `future` (T, B, I)."""
        return frame_error(self.mean_frame, future, self.kind)

    def copy_last_error(self, frames: Tensor, future: Tensor) -> Tensor:
        """Error per frame of predicting the blended last of `frames` at all steps of `future`."""
        last = torch.lerp(self.mean_frame, frames[-1], self.copy_weight)
        return frame_error(last, future, self.kind)


def _lowest(error: Callable[[float], float], low: float = 0.0, high: float = 0.999) -> float:
    """Where a convex function is lowest, to 0.001 (both errors are convex in the weight)."""
    while high - low > 1e-3:
        third = (high - low) / 3
        if error(low + third) < error(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


class Baselines(Callback):
    """Logs `mean_frame` and `copy_last` beside a model's future errors in validation and test.

    Fitted once, on the first `sample` training videos of the datamodule (`training_sample`), and
    evaluated on the very batches that the model is evaluated on.
    """

    def __init__(self, sample: int = 1024) -> None:
        if sample < 1:
            raise ValueError(f"sample: expected at least 1, got {sample}")
        self.sample = sample
        self.errors: BaselineErrors | None = None

    def _fit(self, trainer: Trainer, module: "VideoTask") -> None:
        if self.errors is None and module.model.future_decoder is not None:
            batch = trainer.datamodule.training_sample(self.sample)  # type: ignore[attr-defined]
            frames, future = (floats(part.to(module.device)) for part in batch)
            self.errors = BaselineErrors.fit(frames, future, module.model.frames)

    def _log(self, module: "VideoTask", batch: VideoBatch, stage: str) -> None:
        if self.errors is None:
            return
        frames, future = map(floats, batch)
        for name, error in (
            ("mean_frame", self.errors.mean_frame_error(future)),
            ("copy_last", self.errors.copy_last_error(frames, future)),
        ):
            module.log(f"{stage}/{name}", error, batch_size=frames.shape[1], on_epoch=True)

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
