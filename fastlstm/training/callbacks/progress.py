"""A progress bar over all steps of a run, the training throughput, and the wait for data."""

import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.profilers import PassThroughProfiler

_FETCH = "[_TrainingEpochLoop].train_dataloader_next"


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


class FetchTimer(PassThroughProfiler):
    """Lightning's default profiler, which also adds up the time of fetching training batches."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._since = 0.0

    def start(self, action_name: str) -> None:
        if action_name == _FETCH:
            self._since = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name == _FETCH:
            self.seconds += time.perf_counter() - self._since


class Throughput(Callback):
    """Log the number of training items per second, and the share of the time that data take.

    ``train/UNIT_per_second`` is the number of items per second of the run so far.
    ``train/data_wait`` is the share of that time, in 0 .. 1, in which this process waited for the
    next batch: near 0 where workers read ahead fast enough. The time includes loading the data and
    excludes validation and the first step, which warms up. ``per_second`` and ``data_wait`` are the
    last values; None before the second step.

    The wait is timed by the trainer's profiler. With a profiler of your own
    (``--trainer.profiler simple``) ``data_wait`` is not logged; the profiler's report has it as
    ``[_TrainingEpochLoop].train_dataloader_next``.

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
        self.data_wait: float | None = None
        self._counted = 0
        self._seconds = 0.0
        self._waited = 0.0
        self._timer: FetchTimer | None = None
        self._since: tuple[float, float] | None = None  # time, and seconds waited until then

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        owner: Any = trainer  # its profiler is no attribute of the class
        if type(owner.profiler) is PassThroughProfiler:
            owner.profiler = FetchTimer()
        self._timer = owner.profiler if isinstance(owner.profiler, FetchTimer) else None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        timer = self._timer
        now, waited = time.perf_counter(), timer.seconds if timer else 0.0
        if self._since is not None:
            self._seconds += now - self._since[0]
            self._waited += waited - self._since[1]
            self._counted += self.count(batch) * trainer.world_size
            self.per_second = self._counted / self._seconds
            pl_module.log(f"train/{self.unit}_per_second", self.per_second)
            if timer:
                self.data_wait = self._waited / self._seconds
                pl_module.log("train/data_wait", self.data_wait, prog_bar=True)
        self._since = now, waited

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the time from here to the end of the next step is not counted
        self._since = None

    def summary(self) -> str:
        """Return ", 900 training videos/s, 3% of the time waiting for data", or "" before."""
        if self.per_second is None:
            return ""
        wait = (
            "" if self.data_wait is None else f", {self.data_wait:.0%} of the time waiting for data"
        )
        return f", {self.per_second:,.0f} training {self.unit}/s{wait}"
