"""Stop a run whose loss is NaN or infinite."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class StopOnNonFinite(Callback):
    """Stop training at a loss that is NaN or infinite, and save a checkpoint.

    The loss is checked before the backward pass, so that the weights are still those that gave the
    loss. A run that resumes from ``nonfinite_step_N.ckpt`` begins with the same batch. With several
    processes, of which only one may have such a loss, no checkpoint is saved. If the data module
    has a method ``describe_batch(number)``, its text is part of the error.

    Args:
        folder: where the checkpoint is written.

    Raises (in training):
        FloatingPointError: the loss is not finite; names the step, the batch and the checkpoint.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import StopOnNonFinite
        >>> stop = StopOnNonFinite("folder of the checkpoint")
        >>> trainer = lightning.pytorch.Trainer(callbacks=[stop], logger=False)
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._step = -1
        self._batches = 0  # batches before this one in the same step (gradient accumulation)

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
        weights = "the last checkpoint has the weights of an earlier step"
        if trainer.world_size == 1:
            path = self.folder / f"nonfinite_step_{self._step}.ckpt"
            trainer.save_checkpoint(path)
            weights = f"the weights that gave it are in {path}"
        number = self._step * trainer.accumulate_grad_batches + self._batches
        data = getattr(trainer, "datamodule", None)
        describe = getattr(data, "describe_batch", lambda number: "")
        raise FloatingPointError(
            f"loss: expected a finite number, got {loss.detach().cpu().numpy()} at step"
            f" {self._step}, batch {number}{describe(number)}; {weights}"
        )
