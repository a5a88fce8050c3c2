"""Endless training data for Lightning, which a resumed run continues exactly."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from fastlstm.data.shuffled_rounds import dealt
from fastlstm.data.splits import Split

# Fixed, whatever the training seed: errors of different runs are over the same videos.
_EVALUATION_SEEDS = {"val": 10_001, "test": 10_002}
_ROUNDS = 100  # a random stream that no data set draws from
_NOT_OF_TRAINING = ("num_workers", "cache", "val_size", "test_size")


class EndlessBatches(Sampler[list[int]]):
    """Batches of indices, without end, from where `start()` says.

    Args:
        batch_size: indices in a batch.
        start: the number of the next batch, asked whenever iteration begins.
        rank, world_size: this process's share: batch n of it is batch n * world_size + rank.
        count: of the indices, which then come up in shuffled rounds, each once before one comes
            up again. Default: they are consecutive and new in every batch.
        seed: of the rounds.
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
        """The indices of this process's batch of that number."""
        first = (number * self.world_size + self.rank) * self.batch_size
        slots = range(first, first + self.batch_size)
        if self.count is None:
            return list(slots)
        return dealt(slots, self.count, (self.seed, _ROUNDS)).tolist()

    def __iter__(self) -> Iterator[list[int]]:
        number = self.start()
        while True:
            yield self.batch(number)
            number += 1


class EndlessTraining(LightningDataModule, ABC):
    """Training videos without end; derived classes say which videos, and what a batch is.

    The training batch of step s is a function of the seed and s, so a run resumed from a
    checkpoint, within an epoch too, sees what the uninterrupted run would have seen. Training has
    no end of its own: give the Trainer `max_steps`.

    Args:
        batch_size: videos in a batch, per device.
        num_workers: processes that make videos; 0 makes them in the training process.
        seed: of the training videos.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, batch_size: int, num_workers: int, seed: int) -> None:
        super().__init__()
        check_positive(batch_size=batch_size)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    @abstractmethod
    def _training_videos(self) -> Dataset[Any]:
        """What is trained on, read by `__getitems__`."""

    @abstractmethod
    def _batch(self, videos: Any) -> Any:
        """What the model is given of what `__getitems__` returned."""

    def _training_count(self) -> int | None:
        """How many videos are trained on, again and again. Default (None): no end of them."""
        return None

    def training_options(self) -> dict[str, Any]:
        """The arguments that training batches depend on, for a run to compare when it resumes.

        Those that are plain values, read from the attributes of the same names.
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
        """What a training batch has, in words that go on after its number."""
        indices = self._training_batches().batch(number)
        if self._training_count() is None:
            return f" (videos {indices[0]} to {indices[-1]})"
        return f" (videos {', '.join(map(str, indices))})"

    def _training_batches(self) -> EndlessBatches:
        rank, world_size = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        return EndlessBatches(
            self.batch_size, self._next_batch, rank, world_size, self._training_count(), self.seed
        )

    def _next_batch(self) -> int:
        # Counted in optimiser steps, which are what a checkpoint keeps of the gradients: a batch
        # drawn ahead of time, or of a step that was interrupted, is drawn again.
        trainer = self.trainer
        return trainer.global_step * trainer.accumulate_grad_batches if trainer else 0


class EndlessData(EndlessTraining):
    """`EndlessTraining` on videos that a seed makes; val and test are the first of seeds of theirs.

    So they are the same videos whatever the training seed.

    Args:
        batch_size, num_workers, seed: of `EndlessTraining`.
        val_size, test_size: videos in the validation and the test set.

    Raises:
        ValueError: a size below 1.
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
        """The first `length` videos of a split, drawn by `seed`; read by `__getitems__`."""

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


def check_positive(**values: int) -> None:
    """ValueError that names the first argument below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
