"""Learning rate schedules."""

import math
from collections.abc import Callable
from typing import Literal, get_args

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fastlstm.training.precision import prepare

Schedule = Literal["constant", "linear", "cosine", "staircase"]

_STAIR, _FALL = 10_000, 0.9  # as in Srivastava et al.'s released code


def check_schedule(schedule: Schedule, warmup_steps: int) -> None:
    """Raise ValueError for an unknown schedule or a negative number of steps."""
    if schedule not in get_args(Schedule):
        raise ValueError(f"schedule: expected one of {get_args(Schedule)}, got {schedule!r}")
    if warmup_steps < 0:
        raise ValueError(f"warmup_steps: expected at least 0, got {warmup_steps}")


def scheduled(
    optimizer: Optimizer, schedule: Schedule, warmup_steps: int, trainer: Trainer
) -> OptimizerLRScheduler:
    """Return the value for ``configure_optimizers``; the schedule ends at the trainer's last step.

    Raises:
        ValueError: the trainer has no last step; and as ``precision.prepare`` does.
    """
    prepare(optimizer)
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError(
            "trainer.max_steps: expected a number of steps, training data have no end; got"
            f" {trainer.max_steps}"
        )
    scheduler = LambdaLR(optimizer, learning_rate_factor(schedule, warmup_steps, int(steps)))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def learning_rate_factor(schedule: Schedule, warmup: int, steps: int) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step, from 0 on.

    Args:
        schedule: "constant"; "linear" or "cosine", which reach 0 at step ``steps``; "staircase",
            multiplied by 0.9 every 10,000 steps.
        warmup: steps over which the factor rises linearly from 1 / (warmup + 1) to 1.
        steps: of the run.
    """

    def factor(step: int) -> float:
        rise = min(1.0, (step + 1) / (warmup + 1))
        done = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
        if schedule == "linear":
            return rise * (1 - done)
        if schedule == "cosine":
            return rise * (1 + math.cos(math.pi * done)) / 2
        if schedule == "staircase":
            return rise * _FALL ** (step // _STAIR)
        return rise

    return factor
