"""Schedules of the learning rate, and of a probability."""

import math
import re
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

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


class Ramp(NamedTuple):
    """A number that changes linearly from ``start`` to ``end``, and stays there."""

    start: float
    end: float
    length: float
    """of the change: in steps, or as a fraction of the run"""
    is_fraction: bool

    def at(self, step: int, steps: float) -> float:
        """Return the value at a step, from 0 on, of a run of ``steps`` steps."""
        length = self.length * steps if self.is_fraction else self.length
        return self.start + (self.end - self.start) * min(1.0, step / length)


_FRACTIONS = {"half": 1 / 2, "third": 1 / 3, "quarter": 1 / 4}
_RAMP = re.compile(
    r"(?P<start>\S+) to (?P<end>\S+) over (?:the first )?"
    r"(?:(?P<word>half|third|quarter)|(?P<percent>\d+(?:\.\d+)?) ?%|(?P<steps>\d+) steps?)"
)


def parse_probability(name: str, value: float | str) -> float | Ramp:
    """Return a probability, or the schedule of one.

    Args:
        name: the argument's, for the error.
        value: a number, which may be written as a string, or a schedule in words, such as "0 to 1
            over the first half", "... third", "... quarter", "... 40%" or "... 2000 steps".

    Raises:
        ValueError: it is neither, or a number is outside [0, 1].

    Example:
        >>> from fastlstm.training.schedule import parse_probability
        >>> parse_probability("sampling", "0 to 1 over the first half").at(25, steps=100)
        0.5
    """
    if isinstance(value, str):
        number = _number(value)
        if number is None:
            return _parse_ramp(name, value)
        value = number
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability in [0, 1], got {value}")
    return float(value)


def _parse_ramp(name: str, text: str) -> Ramp:
    match = _RAMP.fullmatch(" ".join(text.split()))
    if match is not None:
        start, end = _number(match["start"]), _number(match["end"])
        if match["steps"]:
            length = float(match["steps"])
        elif match["percent"]:
            length = float(match["percent"]) / 100
        else:
            length = _FRACTIONS[match["word"]]
        fits = 0 < length <= (math.inf if match["steps"] else 1)
        if start is not None and end is not None and fits and 0 <= start <= 1 and 0 <= end <= 1:
            return Ramp(start, end, length, is_fraction=not match["steps"])
    raise ValueError(
        f"{name}: expected a probability in [0, 1], or two and a length as in '0 to 1 over the"
        f" first half' (or third, quarter, 40%, 2000 steps), got {text!r}"
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
