"""Comparison of a run that resumes with its checkpoint."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from fastlstm.models.basis import PIXELS
from fastlstm.models.model_files import model_entry, read_model_entry

_NOT_OF_WEIGHTS = ("backend", "checkpoint_every", "dropout", "readout_bias")
_OF_ROWS = ("batch_size", "number of processes")


def trainer_options(trainer: Trainer) -> dict[str, Any]:
    """Return the trainer's options that decide which training batches a process reads."""
    return {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "number of processes": trainer.world_size,
    }


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return what differs, such as "batch_size was 4 and is 8, k1 was 16 and is 8", or "".

    Names that only one of the two has are ignored: checkpoints of older versions have fewer.
    Another batch_size and another number of processes are no change if their product is the same:
    the processes then share the same rows.
    """
    same = _rows(before) is not None and _rows(before) == _rows(now)
    return ", ".join(
        f"{name} was {before[name]} and is {value}"
        for name, value in now.items()
        if name in before and before[name] != value and not (same and name in _OF_ROWS)
    )


def _rows(options: Mapping[str, Any]) -> int | None:
    """Return the rows of a batch of all processes together; None if the options do not tell."""
    if any(name not in options for name in _OF_ROWS):
        return None
    return math.prod(options[name] for name in _OF_ROWS)


def check_model(module: LightningModule, model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Compare a task's model with that of a checkpoint, before the weights are loaded.

    Weights that do not fit would raise a long list of shapes. Arguments that older checkpoints do
    not have are not compared.

    Raises:
        ValueError: the class differs, or an argument on which the weights depend.
    """
    (expected,) = model_entry(model).values()
    # Checkpoints that are older than bases are of models that read and emit pixels.
    received = PIXELS | read_model_entry(checkpoint)
    for name, value in expected.items():
        got = received.get(name, None if name == "class" else value)
        if got != value and name not in _NOT_OF_WEIGHTS:
            raise ValueError(
                f"ckpt_path: expected a checkpoint of {name}={value!r} as configured, got"
                f" {name}={got!r} in {_checkpoint_name(module)}"
            )


def _checkpoint_name(module: LightningModule) -> str:
    """Return the path of the checkpoint that a module is being loaded from, for error messages."""
    trainer = module._trainer
    return str(trainer.ckpt_path) if trainer is not None else "a checkpoint"
