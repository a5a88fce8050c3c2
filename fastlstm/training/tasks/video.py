"""The training of a video model: what is minimised, what is measured, how steps are taken."""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from fastlstm.models.video import VideoLSTM
from fastlstm.training.batches import VideoBatch
from fastlstm.training.schedule import Schedule
from fastlstm.training.tasks.base import FrameTask


class VideoTask(FrameTask):
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

    model: VideoLSTM

    def __init__(
        self,
        model: VideoLSTM,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
        input_lr_scale: float = 1.0,
        sampling: float = 0.0,
    ) -> None:
        super().__init__(model, optimizer, schedule, warmup_steps, input_lr_scale)
        if not 0 <= sampling <= 1:
            raise ValueError(f"sampling: expected a probability in [0, 1], got {sampling}")
        self.sampling = sampling

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
            errors["future_closed_loop"] = self.model.closed_loop_loss(frames, future)
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
