"""Windows of long sequences for Lightning, which a resumed run continues exactly."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from fastlstm.data import LongSequence, load_text, open_sequences
from fastlstm.data.splits import Split
from fastlstm.training.tbptt import Window, Windows


class SequenceData(LightningDataModule, ABC):
    """What data of long sequences share; `sequences` says what they are.

    The window of a training step is a function of the seed, the process and the step. Training has
    no end of its own: give the Trainer `max_steps`. Validation and test read every sequence once,
    in order.

    Args:
        batch_size: streams read side by side, per device.
        k1: steps from window to window.
        k2: steps that gradients go back through. Default: `k1`.
        num_workers: processes that read; 0 reads in the training process.
        seed: of the order of the sequences.

    Raises:
        ValueError: an argument out of range, fewer steps than streams in a split, or splits whose
            steps are of different dtypes or shapes.
    """

    def __init__(
        self,
        batch_size: int = 32,
        k1: int = 64,
        k2: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.k1 = k1
        self.k2 = k2
        self.num_workers = num_workers
        self.seed = seed
        self._kinds: Any = None  # of the steps of the split that was read first

    @abstractmethod
    def sequences(
        self, split: Split
    ) -> tuple[Sequence[LongSequence], Sequence[LongSequence] | None]:
        """Those of one split, and their targets; None: the next step is a step's target."""

    def windows(self, split: Split) -> Windows:
        """The windows of this process."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "k1": self.k1}
        if split == "train":
            options |= {"k2": self.k2, "seed": self.seed}
        else:
            options["shuffle"] = False
        if self.trainer:
            options |= {"rank": self.trainer.global_rank, "world_size": self.trainer.world_size}
        sequences, targets = self.sequences(split)
        try:
            windows = Windows(sequences, targets, **options)
        except ValueError as error:
            raise ValueError(
                f"data: the {split} split cannot be read in windows: {error}"
            ) from error
        if self._kinds is None:
            self._kinds = windows.kinds
        if windows.kinds != self._kinds:
            raise ValueError(
                f"data: expected steps of one dtype and shape in all splits, {self._kinds}, got"
                f" {windows.kinds} in {split}"
            )
        return windows

    def train_dataloader(self) -> DataLoader[Window]:
        return self.windows("train").loader(self._next_window, self.num_workers)

    def val_dataloader(self) -> DataLoader[Window]:
        return self.windows("val").loader(num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Window]:
        return self.windows("test").loader(num_workers=self.num_workers)

    def describe_batch(self, number: int) -> str:
        """What a training window reads, in words that go on after its number."""
        rows = self.windows("train").streams.window(number).rows
        words = (
            f"row {b}: " + ", ".join(f"sequence {i} steps {a} to {z - 1}" for i, a, z in pieces)
            for b, pieces in enumerate(rows)
        )
        return f" ({'; '.join(words)})"

    def _next_window(self) -> int:
        # counted in optimiser steps, as `MovingMNISTData` counts, and for the same reason
        trainer = self.trainer
        return trainer.global_step * trainer.accumulate_grad_batches if trainer else 0


class TextData(SequenceData):
    """Text as bytes, each one the target of the one before; see `fastlstm.data.load_text`.

    Args:
        folder: of the files, or one file; None for the sources of Python's standard library.
        pattern: which files of the folder, as in `Path.glob`.
        options: of `SequenceData`.
    """

    def __init__(self, folder: str | None = None, pattern: str = "**/*", **options: Any) -> None:
        super().__init__(**options)
        self.folder = folder
        self.pattern = pattern

    def sequences(
        self, split: Split
    ) -> tuple[Sequence[LongSequence], Sequence[LongSequence] | None]:
        return load_text(self.folder, split, self.pattern), None


class FileSequenceData(SequenceData):
    """Sequences in files of any kind; see `fastlstm.data.open_sequences`.

    Args:
        folder: with folders `train`, `val` and `test` in it, and, where targets are not the next
            steps, `train_targets`, `val_targets` and `test_targets`.
        options: of `SequenceData`.

    Raises:
        FileNotFoundError: one of the first three that is absent or empty.
    """

    def __init__(self, folder: str, **options: Any) -> None:
        super().__init__(**options)
        self.folder = Path(folder)

    def sequences(
        self, split: Split
    ) -> tuple[Sequence[LongSequence], Sequence[LongSequence] | None]:
        targets = self.folder / f"{split}_targets"
        sequences = open_sequences(self.folder / split)
        return sequences, open_sequences(targets) if targets.exists() else None
