"""Checkpoints that are complete, are saved between two steps, and resume to the same bits."""

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch import __version__ as lightning_version
from lightning.pytorch.callbacks import ModelCheckpoint

from fastlstm.files import read_checkpoint
from fastlstm.models.model_files import as_checkpoint, is_safetensors, read


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoint files atomically, and check them for damage when they are read.

    Lightning writes to the system's temporary folder and then moves the file. Between file systems
    moving is copying, which a crash can cut short. This class writes to ``NAME.ckpt.part`` in the
    target's folder, flushes to disk and renames. A crash leaves at most a ``.part`` file. Local
    files only.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "last.ckpt"
        >>> files = AtomicCheckpointIO()
        >>> files.save_checkpoint({"state_dict": {}, "pytorch-lightning_version": "2.6.0"}, path)
        >>> files.load_checkpoint(path)["state_dict"]
        {}
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint; if writing fails, an older file of that name stays as it is.

        Raises:
            OSError: the file cannot be written: no space, no permission, no folder.
            TypeError: ``storage_options`` is not None.
        """
        if storage_options is not None:
            raise TypeError(
                f"storage_options: expected None for a local file, got {storage_options}"
            )
        target = Path(path)
        part = target.with_name(target.name + ".part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file, _checksums():
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, target)
        except (OSError, RuntimeError) as error:  # torch raises either when the disk is full
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            before = "the one before is still whole" if target.is_file() else "there is none before"
            reason = str(error).splitlines()[0]
            raise OSError(f"checkpoint: cannot write {target} ({reason}); {before}") from error

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, comparing every byte with the checksums in the file.

        Args:
            path: the file.
            map_location: as in torch.load.
            weights_only: False allows objects of any class, whose unpickling can run code. Default:
                tensors and plain data only.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, was not written by a training run, or has objects of
                other classes.
        """
        target = Path(path)
        if not target.exists():
            raise FileNotFoundError(f"ckpt_path: expected a checkpoint, {target} is absent")
        try:
            return read_checkpoint(target, map_location, weights_only is not False)
        except ValueError as error:
            wrong = str(error)
            if target.is_file() and is_safetensors(target):
                wrong = "it is a model without the state of its training"
            raise ValueError(
                f"ckpt_path: expected a whole checkpoint of a run, got {target} of"
                f" {target.stat().st_size} bytes: {wrong}; give another one from the"
                " checkpoints folder of a run, or train anew"
            ) from error.__cause__


class ModelOrCheckpointIO(AtomicCheckpointIO):
    """Read what ``SavedModel.save`` wrote too, for commands that need only the model."""

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint, or return what a checkpoint with the model of this file would have.

        Raises:
            FileNotFoundError, ValueError: as ``AtomicCheckpointIO`` does.
            ImportError: a safetensors file, and the package safetensors is not installed.
        """
        if not (Path(path).is_file() and is_safetensors(path)):
            return super().load_checkpoint(path, map_location, weights_only)
        checkpoint = as_checkpoint(read(path, "ckpt_path", "SavedModel"))
        return checkpoint | {"pytorch-lightning_version": lightning_version}


@contextlib.contextmanager
def _checksums() -> Iterator[None]:
    """Make torch.save write checksums, even if the process has switched them off."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


class SameCheckpoint(Callback):
    """Check that all processes resumed from the same checkpoint.

    A host that is cut off may still replace a checkpoint while the others read it, and a network
    file system may show an old file to one host. The processes would go on from different steps.

    Raises (when training begins):
        RuntimeError: the processes are at different steps; started again, as by torchrun, they
            read the newest checkpoint.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        first = trainer.strategy.broadcast(trainer.global_step)
        if trainer.global_step != first:
            raise RuntimeError(
                f"ckpt_path: expected the checkpoint of step {first}, as in process 0, got that of"
                f" step {trainer.global_step} in process {trainer.global_rank}; start again"
            )


class StepSeeds(Callback):
    """Seed torch (all devices), NumPy and Python before every training step.

    The seed of a step is made from the run's seed, the step's number and the process. A run that
    resumes therefore draws the random numbers that the uninterrupted run would have drawn, whatever
    validation or data loaders drew in between.

    Args:
        seed: of the run, at least 0.

    Raises:
        ValueError: ``seed`` is below 0.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import StepSeeds
        >>> trainer = lightning.pytorch.Trainer(callbacks=[StepSeeds(0)], logger=False)
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, got {seed}")
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        accumulated = batch_idx % trainer.accumulate_grad_batches
        key = (self.seed, trainer.global_step, trainer.global_rank, accumulated)
        for_torch, for_numpy, for_python = np.random.SeedSequence(key).generate_state(3)
        torch.manual_seed(int(for_torch))
        np.random.seed(for_numpy)
        random.seed(int(for_python))


class StopBetweenSteps(Callback):
    """Stop a run after the current step on Ctrl-C, so that no half-updated weights are saved.

    A second Ctrl-C stops at once. Lightning then saves the checkpoints that
    ``ModelCheckpoint(save_on_exception=True)`` asks for and ends the run. With several processes
    nothing is saved then, nor at any error: processes stop at different places, while a checkpoint
    collects the states of all, and would wait for a process that is gone.

    A process that torchrun started ends at once on SIGTERM, which torchrun sends when another host
    has died or comes back. Lightning's handler would broadcast from within the step, to processes
    that may be dead.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import StopBetweenSteps
        >>> trainer = lightning.pytorch.Trainer(callbacks=[StopBetweenSteps()], logger=False)
    """

    def __init__(self) -> None:
        self._asked = False
        self._previous: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            for saver in trainer.checkpoint_callbacks:
                if isinstance(saver, ModelCheckpoint):
                    saver.save_on_exception = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def remember(signum: int, frame: Any) -> None:
            # validation changes no parameter, so that it can be stopped at once
            if self._asked or not trainer.training:
                raise KeyboardInterrupt
            self._asked = True

        with contextlib.suppress(ValueError):  # only the main thread can set signal handlers
            self._previous = signal.signal(signal.SIGINT, remember)
            if dist.is_available() and dist.is_torchelastic_launched():
                signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning restores its own

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # accumulated gradients are not in checkpoints: wait for the step that uses them
        if self._asked and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            raise KeyboardInterrupt

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self._restore()

    def on_exception(self, *args: Any) -> None:
        self._restore()

    def _restore(self) -> None:
        if self._previous is not None:
            with contextlib.suppress(ValueError):
                signal.signal(signal.SIGINT, self._previous)
            self._previous = None
            self._asked = False
