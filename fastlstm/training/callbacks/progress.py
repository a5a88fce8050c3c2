"""How far and how fast training goes: a progress bar over all steps, throughput."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar


class StepProgressBar(TQDMProgressBar):
    """Lightning's bar, with an end to it although the training data have none."""

    @property
    def total_train_batches(self) -> int | float:
        total = super().total_train_batches
        if total == float("inf") and self.trainer.max_steps > 0:
            return self.trainer.max_steps * self.trainer.accumulate_grad_batches
        return total

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)  # the loggers' version: the run's folder says more
        return metrics


class Throughput(Callback):
    """Counts what is trained on a second, making it included, validation excluded.

    Logs `train/UNIT_per_second`; `per_second` holds the value so far (None before the second step:
    the first one warms up).

    Args:
        unit: what is counted, in the plural.
        count: how many of them a batch has.
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
        # a step that validation interrupts is not timed
        self._since = None
