"""Base classes of data modules whose training data are infinite and resume exactly."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from fastlstm.data.shuffled_rounds import shuffled_rounds
from fastlstm.data.splits import Split

# Fixed, so that runs with different training seeds are evaluated on the same videos.
_EVALUATION_SEEDS = {"val": 10_001, "test": 10_002}
_ROUNDS = 100  # number of a random stream that no data set uses
_NOT_OF_TRAINING = ("num_workers", "cache", "val_size", "test_size")


class InfiniteBatchSampler(Sampler[list[int]]):
    """Yield batches of indices without end, from batch number ``start()`` on.

    Args:
        batch_size: indices in a batch.
        start: returns the number of the next batch; called whenever iteration begins.
        rank, world_size: this process and the number of processes. Batch n of this process is batch
            n * world_size + rank of all. Default: one process.
        count: number of items to draw from, in shuffled rounds: each item comes up once before any
            comes up again. Default (None): indices are consecutive and never repeat.
        seed: of the rounds' orders. Default: 0.
    """

    def __init__(
        self,
        batch_size: int,
        start: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
        count: int | None = None,
        seed: int = 0,
    ) -> None:
        self.batch_size = batch_size
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self.count = count
        self.seed = seed

    def batch(self, number: int) -> list[int]:
        """Return the indices of one batch of this process."""
        first = (number * self.world_size + self.rank) * self.batch_size
        slots = range(first, first + self.batch_size)
        if self.count is None:
            return list(slots)
        return shuffled_rounds(slots, self.count, (self.seed, _ROUNDS)).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start()
        while True:
            yield self.batch(number)
            number += 1


class InfiniteDataModule(LightningDataModule, ABC):
    """Base class of data modules with infinite training data that a resumed run continues exactly.

    The training batch of a step is a function of the seed and the step's number. A run that resumes
    from a checkpoint, also from one within an epoch, reads the batches that the uninterrupted run
    would have read. Give the Trainer ``max_steps``, because the training data never end.

    Derived classes implement ``_training_videos`` and ``_batch``.

    Args:
        batch_size: videos in a batch, per device.
        num_workers: processes that make batches; 0: the training process makes them.
        seed: of the training videos.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        check_positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    @abstractmethod
    def _training_videos(self) -> Dataset[Any]:
        """Return the training data; batches are read by its method ``__getitems__(indices)``."""

    @abstractmethod
    def _batch(self, videos: Any) -> Any:
        """Return the batch for the model, given what ``__getitems__`` returned."""

    def _training_count(self) -> int | None:
        """Return the number of training videos, which then repeat. None: videos never repeat."""
        return None

    def training_options(self) -> dict[str, Any]:
        """Return the arguments that training batches depend on.

        A run that resumes compares them with those in its checkpoint. Arguments that are plain
        values are included; they are read from the attributes of the same names.
        """
        names = inspect.signature(type(self)).parameters.keys() - set(_NOT_OF_TRAINING)
        values = {name: getattr(self, name, None) for name in sorted(names)}
        plain = (bool, int, float, str, list)
        return {name: v for name, v in values.items() if v is None or isinstance(v, plain)}

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            self._training_videos(),
            batch_sampler=self._training_batches(),
            collate_fn=self._batch,
            num_workers=self.num_workers,
        )

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def describe_batch(self, number: int) -> str:
        """Return " (videos ...)", the videos of a training batch, for error messages."""
        indices = self._training_batches().batch(number)
        if self._training_count() is None:
            return f" (videos {indices[0]} to {indices[-1]})"
        return f" (videos {', '.join(map(str, indices))})"

    def _training_batches(self) -> InfiniteBatchSampler:
        rank, world_size = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        count = self._training_count()
        return InfiniteBatchSampler(
            self.batch_size, partial(next_batch, self), rank, world_size, count, self.seed
        )


class SeededDataModule(InfiniteDataModule):
    """``InfiniteDataModule`` for videos that are generated from a seed.

    The validation and the test set are the first videos of two other, fixed seeds, so that they are
    the same whatever the training seed. Derived classes implement ``_videos`` and ``_batch``.

    Args:
        batch_size, num_workers, seed: as in ``InfiniteDataModule``.
        val_size, test_size: videos in the validation and the test set.

    Raises:
        ValueError: a size is below 1.
    """

    def __init__(
        self, batch_size: int, num_workers: int, seed: int, val_size: int, test_size: int
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        check_positive(val_size=val_size, test_size=test_size)
        self.val_size = val_size
        self.test_size = test_size

    @abstractmethod
    def _videos(self, split: Split, seed: int, length: int = 2**40) -> Dataset[Any]:
        """Return ``length`` videos of a split, generated from ``seed``."""

    def _training_videos(self) -> Dataset[Any]:
        return self._videos("train", self.seed)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val", self.val_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test", self.test_size)

    def _evaluation(self, split: Split, length: int) -> DataLoader[Any]:
        return DataLoader(
            self._videos(split, _EVALUATION_SEEDS[split], length),
            batch_size=self.batch_size,
            collate_fn=self._batch,
            num_workers=self.num_workers,
        )


def next_batch(data: LightningDataModule) -> int:
    """Return the number of the training batch that a data module's trainer needs next.

    It is computed from the number of optimiser steps done, because a checkpoint has no partly
    accumulated gradients: batches that were loaded ahead, or that belong to a step that was
    interrupted, are loaded again.
    """
    trainer = data.trainer
    return trainer.global_step * trainer.accumulate_grad_batches if trainer else 0


def check_positive(**values: int) -> None:
    """Raise ValueError for the first argument that is below 1, with its name."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
