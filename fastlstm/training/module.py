"""The training of a video model: what is minimised, what is measured, how steps are taken."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fastlstm.training.baselines import frame_error
from fastlstm.training.datamodule import VideoBatch
from fastlstm.training.schedule import Schedule, check_schedule, scheduled
from fastlstm.video import VideoLSTM


class VideoTask(LightningModule):
    """Trains a `VideoLSTM` on batches of `VideoBatch`.

    Logged, per frame and averaged over videos, in nats ("binary" frames) or half squared errors
    ("real"): `total`, `reconstruction` and `future` under `train/`, `val/` and `test/`. In
    validation and test also `future_closed_loop`, the decoder fed its own previous frames (of an
    unconditioned decoder the same number as `future`), and `error` = reconstruction +
    future_closed_loop, what the model is worth in use; the best checkpoint has the lowest.

    Args:
        model: the model to train.
        optimizer: any torch optimiser, without its parameters. Default: Adam, lr 1e-3.
        schedule: of the learning rate after the warm-up. "linear" and "cosine" reach 0 at the
            run's last step, "staircase" is x0.9 every 10,000 steps, "constant" stays.
        warmup_steps: steps over which the learning rate rises linearly to its full value.
        input_lr_scale: learning rate of the weights that read frames, relative to the others'. A
            frame lights hundreds of pixels at once, and Adam moves the weights of all of them by
            as much as it moves any other: below 1 keeps the gates out of saturation.
        sampling: probability of feeding a conditional decoder its own previous frame in training
            (scheduled sampling, Bengio et al. 2015), 0 to 1.

    Raises:
        ValueError: an argument out of range, or a checkpoint of a model of another configuration.
    """

    def __init__(
        self,
        model: VideoLSTM,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
        input_lr_scale: float = 1.0,
        sampling: float = 0.0,
    ) -> None:
        super().__init__()
        check_schedule(schedule, warmup_steps)
        if not input_lr_scale > 0:
            raise ValueError(f"input_lr_scale: expected a number above 0, got {input_lr_scale}")
        if not 0 <= sampling <= 1:
            raise ValueError(f"sampling: expected a probability in [0, 1], got {sampling}")
        if model.batch_first:
            raise ValueError("model.batch_first: expected False, batches are time first, got True")
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.input_lr_scale = input_lr_scale
        self.sampling = sampling

    def floats(self, pixels: Tensor) -> Tensor:
        """Bytes scaled to [0, 1]; floats as they are. In the dtype of the parameters."""
        dtype = next(self.model.parameters()).dtype
        return pixels.to(dtype).div_(255) if pixels.dtype == torch.uint8 else pixels.to(dtype)

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        loss = self.model.loss(*map(self.floats, batch), sampling=self.sampling)
        self._log("train", loss._asdict(), batch, prog_bar=True)
        return loss.total

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        self._log("val", self._errors(batch), batch, prog_bar=True)

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:
        self._log("test", self._errors(batch), batch)

    def predict_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        """(T_out, B, I) future frames in closed loop, as many as the batch has."""
        return self.model.predict(self.floats(batch.frames), len(batch.future))

    def _errors(self, batch: VideoBatch) -> dict[str, Tensor | None]:
        frames, future = map(self.floats, batch)
        loss = self.model.loss(frames, future)
        errors: dict[str, Tensor | None] = loss._asdict()
        if loss.future is not None:
            # float32 whatever the precision of training: bfloat16 rounds a probability of 0.999 to
            # 1, and a grey pixel's cross-entropy with that is infinite
            with torch.autocast(self.device.type, enabled=False):
                closed = self.model.predict(frames, len(future))
            errors["future_closed_loop"] = frame_error(closed, future, self.model.frames)
        parts = (errors["reconstruction"], errors.get("future_closed_loop"))
        errors["error"] = torch.stack([part for part in parts if part is not None]).sum()
        return errors

    def _log(
        self,
        stage: str,
        values: dict[str, Tensor | None],
        batch: VideoBatch,
        prog_bar: bool = False,
    ) -> None:
        for name, value in values.items():
            if value is not None:
                self.log(
                    f"{stage}/{name}",
                    value,
                    batch_size=batch.frames.shape[1],
                    prog_bar=prog_bar and name in ("total", "error"),
                )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        reads_frames: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in self.named_parameters():
            reads_frames[name.endswith("weight_ih_l0")].append(parameter)
        optimizer = self.optimizer([{"params": reads_frames[k]} for k in (False, True)])
        optimizer.param_groups[1]["lr"] *= self.input_lr_scale
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["video_model"] = self._architecture()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Before the weights are loaded: one line that says what differs, not a list of shapes.
        received = checkpoint.get("video_model", {})
        for name, expected in self._architecture().items():
            if received.get(name) != expected:
                raise ValueError(
                    f"ckpt_path: expected a checkpoint of {name}={expected!r} as configured,"
                    f" got {name}={received.get(name)!r}"
                )

    def _architecture(self) -> dict[str, Any]:
        """What a model's weights depend on: how it runs and where it started is left out."""
        config = self.model.config.items()
        fixed = {name: value for name, value in config if name not in ("backend", "readout_bias")}
        return {"class": type(self.model).__name__, **fixed}
