"""Find missing validation and test data before the first training step."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils._pytree import tree_leaves


class FirstBatches(Callback):
    """Read the first validation and test batch before training, and discard them.

    Data that are missing or cannot be read then raise an error before training, and not hours
    later. Random number generators are left as they were.

    Raises (before training):
        ValueError: there are no test data, or a split has no batch; and as the data module does.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        limits = {"val": trainer.limit_val_batches, "test": trainer.limit_test_batches}
        for split, limit in limits.items():
            loader = f"{split}_dataloader"
            if limit == 0 or not (split == "test" or is_overridden(loader, data)):
                continue
            if not is_overridden(loader, data):
                raise ValueError(
                    f"data: expected a {loader}, which fit reads after training, in"
                    f" {type(data).__name__}; without a test give --trainer.limit_test_batches 0"
                )
            with isolate_rng():
                for each in tree_leaves(getattr(data, loader)()):
                    if next(iter(each), None) is None:
                        raise ValueError(f"data: expected batches of the {split} split, got none")
