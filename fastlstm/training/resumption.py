"""Comparison of a run that resumes with its checkpoint."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer


def trainer_options(trainer: Trainer) -> dict[str, Any]:
    """Return the trainer's options that decide which training batches a process reads."""
    return {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "number of processes": trainer.world_size,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs, such as "batch_size was 4 and is 8, k1 was 16 and is 8", or "".

    Names that only one of the two has are ignored: checkpoints of older versions have fewer.
    """
    return ", ".join(
        f"{name} was {before[name]} and is {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    )


def checkpoint_name(module: LightningModule) -> str:
    """Return the path of the checkpoint that a module is being loaded from, for error messages."""
    trainer = module._trainer
    return str(trainer.ckpt_path) if trainer is not None else "a checkpoint"
