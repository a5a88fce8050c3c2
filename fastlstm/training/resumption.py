"""What a run that resumes finds changed since its checkpoint."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer


def of_trainer(trainer: Trainer) -> dict[str, Any]:
    """The options of a trainer on which the number and the share of a training batch depend."""
    return {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "number of processes": trainer.world_size,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """ "batch_size was 4 and is 8, k1 was 16 and is 8"; "" if nothing differs.

    What one of the two does not tell, as older checkpoints, is passed over.
    """
    return ", ".join(
        f"{name} was {before[name]} and is {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    )
