"""The task that trains a video model."""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from fastlstm.models.decoding import check_feedback
from fastlstm.models.video import VideoLSTM
from fastlstm.training.batches import VideoBatch
from fastlstm.training.schedule import Ramp, Schedule, parse_probability
from fastlstm.training.tasks.base import FrameTask


class VideoTask(FrameTask):
    """Train a ``VideoLSTM`` on batches of ``VideoBatch``.

    Logs losses per frame, averaged over videos, in nats (cross-entropy, for binary frames) or half
    squared errors (for real-valued frames):

    - ``train/``, ``val/`` and ``test/``: ``reconstruction``, ``future`` and their sum ``total``.
      In ``val/`` and ``test/`` a conditional decoder reads the true previous frame here (teacher
      forcing), in ``train/`` as ``sampling`` says.
    - ``train/sampling``, the probability of that step, where it is not 0 all along.
    - ``val/`` and ``test/``: ``future_closed_loop``, where a conditional decoder reads the frame
      that it predicted itself (closed loop), as in use. For an unconditional decoder it equals
      ``future``.
    - ``val/`` and ``test/``: ``error``, which is reconstruction + future_closed_loop. The best
      checkpoint has the lowest ``val/error``.

    Args:
        model: the model to train.
        optimizer: a function of parameters (or parameter groups) that returns a torch optimiser.
            Default: Adam with a learning rate of 1e-3.
        schedule: the learning rate after the warm-up: "constant"; "linear" or "cosine", which
            reach 0 at the run's last step; "staircase", multiplied by 0.9 every 10,000 steps.
            Default: "linear".
        warmup_steps: steps over which the learning rate rises linearly to its full value.
            Default: 0.
        input_lr_scale: factor on the learning rate of the weights that read frames. A frame has
            hundreds of lit pixels, and Adam changes each of their weights by as much as any other
            weight; a factor below 1 prevents saturated gates. Default: 1.
        readout_lr_scale: factor on the learning rate of the weights of the read-outs, not of their
            biases. Logits need large weights: they go from -8 to 8, and the values of h are below
            1. Default: 1.
        sampling: probability, in training, that a conditional decoder reads its own previous frame
            instead of the true one (scheduled sampling, Bengio et al. 2015). A number, or a
            schedule in words, such as "0 to 1 over the first half": the value changes linearly with
            the step, and then stays. Other lengths are "third", "quarter", "40%" (of the run) and
            "2000 steps". A run that resumes goes on where the schedule was. Default: 0.
        feedback_gradient: factor, from 0 to 1, on the gradient that goes back through each frame
            which a decoder emitted and then read; see :meth:`fastlstm.VideoLSTM.forward`.
            Default: 0.

    Raises:
        ValueError: an argument is out of range, or a checkpoint is of another model configuration.

    Example:
        >>> import functools, fastlstm, lightning.pytorch, torch
        >>> from fastlstm.training import MovingMNISTData, VideoTask
        >>> adam = functools.partial(torch.optim.Adam, lr=3e-3)
        >>> task = VideoTask(fastlstm.CompositeLSTM(32 * 32, 8), adam, schedule="cosine")
        >>> data = MovingMNISTData(batch_size=2, size=32, val_size=2, test_size=2)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = lightning.pytorch.Trainer(
        ...     max_steps=2, max_epochs=-1, enable_checkpointing=False, accelerator="cpu", **quiet
        ... )
        >>> trainer.fit(task, data)
        >>> sorted(trainer.test(task, data, verbose=False)[0])[:3]
        ['test/error', 'test/future', 'test/future_closed_loop']
    """

    model: VideoLSTM

    def __init__(
        self,
        model: VideoLSTM,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
        input_lr_scale: float = 1.0,
        sampling: float | str = 0.0,
        feedback_gradient: float = 0.0,
        readout_lr_scale: float = 1.0,
    ) -> None:
        super().__init__(model, optimizer, schedule, warmup_steps, input_lr_scale)
        if not readout_lr_scale > 0:
            raise ValueError(f"readout_lr_scale: expected a number above 0, got {readout_lr_scale}")
        self.readout_lr_scale = readout_lr_scale
        self.sampling = parse_probability("sampling", sampling)
        check_feedback(0.0, feedback_gradient)
        self.feedback_gradient = feedback_gradient

    def lr_scales(self) -> dict[str, float]:
        scales = super().lr_scales()
        if self.readout_lr_scale != 1:  # a group of its own; checkpoints without one resume
            scales["readout.weight"] = self.readout_lr_scale
        return scales

    def training_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        sampling = self.sampling
        if isinstance(sampling, Ramp):
            sampling = sampling.at(self.global_step, self.trainer.estimated_stepping_batches)
        loss = self.model.loss(
            *map(self.floats, batch), sampling=sampling, feedback_gradient=self.feedback_gradient
        )
        self._log("train", loss._asdict(), batch, prog_bar=True)
        if self.sampling != 0:
            self.log("train/sampling", sampling)
        return loss.total

    def validation_step(self, batch: VideoBatch, batch_idx: int) -> None:
        self._log("val", self._errors(batch), batch, prog_bar=True)

    def test_step(self, batch: VideoBatch, batch_idx: int) -> None:
        self._log("test", self._errors(batch), batch)

    def predict_step(self, batch: VideoBatch, batch_idx: int) -> Tensor:
        """Return the future frames that the model predicts in closed loop, (T_out, B, I)."""
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
                    sync_dist=stage != "train",
                )
