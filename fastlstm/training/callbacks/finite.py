"""A loss that is no number stops the run before it reaches the weights."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class StopOnNonFinite(Callback):
    """Stops at a loss of NaN or infinity, and saves the weights that gave it.

    Checked before backward: no parameter has seen the loss, and `nonfinite_step_N.ckpt` resumes
    with the very batch. The datamodule may say what is in it, by a method `describe_batch(number)`
    of the batch's number on this process.

    Args:
        folder: of the checkpoint.

    Raises (in training):
        FloatingPointError: the loss, the step, the batch and the file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._step = -1
        self._batches = 0  # of this step so far: more than one where gradients are accumulated

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches = self._batches + 1 if trainer.global_step == self._step else 0
        self._step = trainer.global_step

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        if torch.isfinite(loss).all():
            return
        path = self.folder / f"nonfinite_step_{self._step}.ckpt"
        trainer.save_checkpoint(path)
        number = self._step * trainer.accumulate_grad_batches + self._batches
        data = getattr(trainer, "datamodule", None)
        describe = getattr(data, "describe_batch", lambda number: "")
        raise FloatingPointError(
            f"loss: expected a finite number, got {loss.detach().cpu().numpy()} at step"
            f" {self._step}, batch {number}{describe(number)}; the weights that gave it are in"
            f" {path}"
        )
