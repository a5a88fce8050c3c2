"""A progress bar over all steps of a run, and the training throughput."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgressBar(TQDMProgressBar):
    """Lightning's progress bar, counting up to ``max_steps`` although training data are infinite.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import StepProgressBar
        >>> trainer = lightning.pytorch.Trainer(callbacks=[StepProgressBar()], logger=False)
    """

    @property
    def total_train_batches(self) -> int | float:
        total = super().total_train_batches
        if total == float("inf") and self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return total

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)  # the loggers' version number, which says nothing here
        return metrics


class Throughput(Callback):
    """Log ``train/UNIT_per_second``, the number of training items per second of the run so far.

    The time includes loading the data and excludes validation and the first step, which warms up.
    ``per_second`` is the last value; None before the second step.

    Args:
        unit: name of the items, in the plural.
        count: returns the number of items in a batch.

    Example:
        >>> videos = Throughput("videos", count=lambda batch: batch.frames.shape[1])
    """

    def __init__(self, unit: str, count: Callable[[Any], int]) -> None:
        self.unit = unit
        self.count = count
        self.per_second: float | None = None
        self._counted = 0
        self._seconds = 0.0
        self._since: float | None = None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self._seconds += now - self._since
            self._counted += self.count(batch) * trainer.world_size
            self.per_second = self._counted / self._seconds
            pl_module.log(f"train/{self.unit}_per_second", self.per_second)
        self._since = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the time from here to the end of the next step is not counted
        self._since = None
