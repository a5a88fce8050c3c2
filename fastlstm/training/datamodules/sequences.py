"""Data modules of long sequences, read in windows that a resumed run continues exactly."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from fastlstm.data import LongSequence, load_text, open_sequences
from fastlstm.data.splits import Split
from fastlstm.training.datamodules.base import next_batch
from fastlstm.training.tbptt import Window, Windows


class SequenceData(LightningDataModule, ABC):
    """Base class of data modules that yield ``Window`` objects; subclasses implement ``sequences``.

    The window of a training step is a function of the seed, the process and the step's number, so
    that a run that resumes reads the windows that the uninterrupted run would have read. Give the
    Trainer ``max_steps``, because the training data never end. Validation and test read every
    sequence once, in order.

    Args:
        batch_size: streams that each device reads side by side. Default: 32.
        k1: steps from window to window. Default: 64.
        k2: steps through which gradients flow back in training. Default (None): ``k1``.
        num_workers: processes that read; 0: the training process reads. Default: 0.
        seed: of the order of the training sequences in each epoch. Default: 0.

    Raises (when a split is read):
        ValueError: an argument is out of range; a split has fewer steps than streams; the splits'
            steps differ in dtype or shape.

    Example:
        >>> from fastlstm.training import SequenceData
        >>> class Waves(SequenceData):
        ...     def sequences(self, split):
        ...         return [torch.arange(1000.0).sin().numpy()], None
        >>> window = next(iter(Waves(batch_size=4, k1=16).train_dataloader()))
        >>> window.input.shape
        torch.Size([16, 4])
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
        self._kinds: Any = None  # dtype and shape of the steps of the first split that was read

    @abstractmethod
    def sequences(
        self, split: Split
    ) -> tuple[Sequence[LongSequence], Sequence[LongSequence] | None]:
        """Return the sequences of a split and their targets; None: the next step is the target."""

    def windows(self, split: Split) -> Windows:
        """Return the windows of a split that this process reads."""
        is_training = split == "train"
        trainer = self.trainer
        sequences, targets = self.sequences(split)
        try:
            windows = Windows(
                sequences,
                targets,
                batch_size=self.batch_size,
                k1=self.k1,
                k2=self.k2 if is_training else None,
                seed=self.seed if is_training else 0,
                shuffle=is_training,
                rank=trainer.global_rank if trainer else 0,
                world_size=trainer.world_size if trainer else 1,
            )
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
        return self.windows("train").loader(lambda: next_batch(self), self.num_workers)

    def val_dataloader(self) -> DataLoader[Window]:
        return self.windows("val").loader(num_workers=self.num_workers)

    def test_dataloader(self) -> DataLoader[Window]:
        return self.windows("test").loader(num_workers=self.num_workers)

    def describe_batch(self, number: int) -> str:
        """Return " (row 0: sequence ...)", what a training window reads, for error messages."""
        rows = self.windows("train").streams.window(number).rows
        words = (
            f"row {b}: " + ", ".join(f"sequence {i} steps {a} to {z - 1}" for i, a, z in pieces)
            for b, pieces in enumerate(rows)
        )
        return f" ({'; '.join(words)})"


class TextData(SequenceData):
    """Text as sequences of bytes, where the target of each byte is the next one.

    ``fastlstm.data.load_text`` says which files are in which split.

    Args:
        folder: folder of the text files, or one file. Default (None): the source files of Python's
            standard library.
        pattern: which files of the folder are read, as in ``Path.glob``. Default: all.
        batch_size, k1, k2, num_workers, seed: as in ``SequenceData``.

    Raises (when a split is read):
        FileNotFoundError, ValueError: as ``load_text`` and ``SequenceData`` do.

    Example:
        >>> import tempfile, pathlib
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "tale.txt").write_text("Once upon a time. " * 100)
        >>> data = TextData(str(folder / "tale.txt"), batch_size=4, k1=16)
        >>> window = next(iter(data.train_dataloader()))
        >>> window.input.shape, window.input.dtype
        (torch.Size([16, 4]), torch.uint8)
        >>> bytes(window.input[:, 0].tolist()), bytes(window.target[:, 0].tolist())
        (b'Once upon a time', b'nce upon a time.')
    """

    def __init__(
        self,
        folder: str | None = None,
        pattern: str = "**/*",
        batch_size: int = 32,
        k1: int = 64,
        k2: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size, k1, k2, num_workers, seed)
        self.folder = folder
        self.pattern = pattern

    def sequences(
        self, split: Split
    ) -> tuple[Sequence[LongSequence], Sequence[LongSequence] | None]:
        return load_text(self.folder, split, self.pattern), None


class FileSequenceData(SequenceData):
    """Sequences in files, in any format that ``fastlstm.data.open_sequences`` reads.

    Args:
        folder: folder with the folders ``train``, ``val`` and ``test``, which hold files, shards
            or zarr stores, or are zarr stores themselves. Where the target of a step is not the
            next step, it also has the folders ``train_targets``, ``val_targets`` and
            ``test_targets``, with files of the same names.
        batch_size, k1, k2, num_workers, seed: as in ``SequenceData``.
        members: which arrays or members of files that hold several, as in ``open_sequences``.
            Default: all.

    Raises (when a split is read):
        FileNotFoundError: ``train``, ``val`` or ``test`` does not exist or is empty.
        ValueError: as ``open_sequences`` and ``SequenceData`` do.

    Example:
        >>> import tempfile, pathlib, numpy
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> for split in ("train", "val", "test"):
        ...     (folder / split).mkdir()
        ...     numpy.save(folder / split / "walk.npy", numpy.ones((100, 3), numpy.float32))
        >>> data = FileSequenceData(str(folder), batch_size=2, k1=10)
        >>> next(iter(data.train_dataloader())).input.shape
        torch.Size([10, 2, 3])
    """

    def __init__(
        self,
        folder: str,
        batch_size: int = 32,
        k1: int = 64,
        k2: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        members: str = "*",
    ) -> None:
        super().__init__(batch_size, k1, k2, num_workers, seed)
        self.folder = Path(folder)
        self.members = members

    def sequences(
        self, split: Split
    ) -> tuple[Sequence[LongSequence], Sequence[LongSequence] | None]:
        targets = self.folder / f"{split}_targets"
        sequences = open_sequences(self.folder / split, members=self.members)
        if not targets.exists():
            return sequences, None
        return sequences, open_sequences(targets, members=self.members)
