"""What a run on many processes takes from torchrun, and shares among the processes."""

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from lightning.pytorch import LightningDataModule, Trainer


def counts_of_torchrun(trainer: Mapping[str, Any]) -> dict[str, int]:
    """Return the trainer's ``num_nodes`` and ``devices`` as torchrun counts them in this start.

    Args:
        trainer: the trainer's arguments. Those that are given stay as they are.

    Returns:
        What replaces Lightning's defaults; nothing if torchrun did not start this process.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return {}
    found = {}
    if trainer["num_nodes"] == 1:
        found["num_nodes"] = int(os.environ["GROUP_WORLD_SIZE"])
    if trainer["devices"] == "auto":
        found["devices"] = int(os.environ["LOCAL_WORLD_SIZE"])
    return found


def share_batch(rows: int | None, data: LightningDataModule, trainer: Trainer) -> None:
    """Set a data module's ``batch_size`` to this process's share of the rows of all processes.

    Args:
        rows: of all processes; None: ``batch_size`` stays.
        data, trainer: of the run.

    Raises:
        ValueError: the rows cannot be shared evenly, or the data module has no ``batch_size``.
    """
    if rows is None:
        return
    processes = trainer.world_size
    if rows < 1 or rows % processes:
        raise ValueError(
            f"global_batch_size: expected a multiple of the number of processes, {processes}, got"
            f" {rows}"
        )
    if not hasattr(data, "batch_size"):
        raise ValueError(
            f"global_batch_size: expected a data module with batch_size, got {type(data).__name__}"
        )
    data.batch_size = rows // processes
