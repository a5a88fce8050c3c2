"""DDP whose checkpoints are folders that all processes write together, while training goes on."""

import os
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy

_IN_SHARDS = ("state_dict", "optimizer_states")


class DDPWithShardedCheckpoints(DDPStrategy):
    """Lightning's DDP strategy; of each checkpoint every process writes a part.

    The tensors of the model and of its optimisers are divided among the processes by
    torch.distributed.checkpoint. With ``asynchronous`` a step waits only until they are copied, and
    threads write the files while training goes on. The next save begins when the one before has
    ended.

    A checkpoint is a folder ``last.ckpt.NUMBER``. When all its files are complete and flushed to
    disk, the symbolic link ``last.ckpt`` is replaced by one to the new folder, in one step, and the
    older folder is removed. A process that is killed at any moment leaves the older checkpoint or
    the newer one. All processes need a common file system, with symbolic links.

    Every command, strategy and number of processes reads such a folder, and resumes from it.

    Args:
        asynchronous: whether training goes on while files are written. Default: True. A save
            outside of training always ends before it returns.
        options: of Lightning's ``DDPStrategy``.

    Raises (at the next save, or at the end of training):
        OSError: a process cannot write its files.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import AtomicCheckpointIO, DDPWithShardedCheckpoints
        >>> trainer = lightning.pytorch.Trainer(
        ...     accelerator="cpu", devices=2, strategy=DDPWithShardedCheckpoints(),
        ...     plugins=[AtomicCheckpointIO()], logger=False,  # reads folders too
        ... )
    """

    def __init__(self, asynchronous: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self.asynchronous = asynchronous
        self._group: Any = None  # so that messages of saves do not meet those of training
        self._saving: tuple[Path, Future[Any]] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Begin to write a checkpoint, and wait for its end unless training goes on.

        Raises:
            OSError: this save, or the one before, cannot be written.
            TypeError: ``storage_options`` is not None.
        """
        from torch.distributed.checkpoint import async_save  # half a second to import

        from fastlstm.sharded_checkpoint import REST, LinkedWriter, without_tensors

        if storage_options is not None:
            raise TypeError(
                f"storage_options: expected None for local files, got {storage_options}"
            )
        self._wait()
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self._timeout)
        target, number = self.broadcast((Path(filepath), time.time_ns()))
        folder = target.with_name(f"{target.name}.{number}")
        in_shards = {name: checkpoint[name] for name in _IN_SHARDS if name in checkpoint}
        tensors, described = without_tensors(in_shards)
        try:
            if self.is_global_zero:
                folder.mkdir(parents=True)
                with (folder / REST).open("wb") as file:
                    torch.save(checkpoint | described, file)
                    file.flush()
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:  # torch raises either when the disk is full
            raise _cannot_write(target, error) from error
        writer = LinkedWriter(folder, target)
        saving: Any = async_save(tensors, storage_writer=writer, process_group=self._group)
        self._saving = target, saving
        module: Any = self.lightning_module
        if not (self.asynchronous and module.trainer.training):
            self._wait()

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        self._wait()
        return super().load_checkpoint(checkpoint_path, weights_only)

    def on_exception(self, exception: BaseException) -> None:
        self._saving = None  # another process may be gone, without which no save ends
        super().on_exception(exception)

    def teardown(self) -> None:
        self._wait()
        super().teardown()

    def _wait(self) -> None:
        """Wait until the files of the last save are written."""
        if self._saving is None:
            return
        (target, saving), self._saving = self._saving, None
        error = saving.exception()
        if error is not None:
            from fastlstm.sharded_checkpoint import cause_of

            raise _cannot_write(target, cause_of(error)) from error


def _cannot_write(target: Path, error: BaseException) -> OSError:
    before = "the one before is still whole" if target.exists() else "there is none before"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return OSError(f"checkpoint: cannot write {target} ({reason}); {before}")
