"""Files that are written whole or not at all, and checkpoints, which are checked for damage."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_OF_A_RUN = {"state_dict", "pytorch-lightning_version"}  # what Lightning needs to resume


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of ``path`` if no error comes up, in one step."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)  # safetensors 0.8 makes a file of its own, for its owner alone
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_checkpoint(
    path: Path, map_location: Any = "cpu", weights_only: bool = True
) -> dict[str, Any]:
    """Read a checkpoint of a run, comparing every byte with the checksums in the file.

    torch.load does not compare them. It takes 0.15 s for 500 MB; loading takes 0.28 s. A folder of
    shards has no checksums; it is read onto the CPU.

    Args:
        path: a file that exists, or a folder that ``DDPWithShardedCheckpoints`` wrote.
        map_location: as in torch.load.
        weights_only: as in torch.load. Default: True, tensors and plain data only.

    Raises:
        ValueError: the file is damaged, was not written by a training run, or has objects of other
            classes. The text is a reason, which goes on after ": " in the caller's error.
    """
    is_folder = path.is_dir()
    wrong = None if is_folder else _damage(path)
    if wrong is not None:
        raise ValueError(wrong)
    try:
        if is_folder:
            from fastlstm.sharded_checkpoint import read_shards  # imports half a second of torch

            checkpoint = read_shards(path, weights_only)
        else:
            with path.open("rb") as file:  # given a path, torch would judge by its name
                checkpoint = torch.load(file, map_location=map_location, weights_only=weights_only)
    except Exception as error:  # unpickling another program's data may raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"torch.load cannot read it ({reason})") from error
    if isinstance(checkpoint, dict) and checkpoint.keys() >= _OF_A_RUN:
        return checkpoint
    raise ValueError("it was not written by a training run")


def _damage(path: Path) -> str | None:
    """Return why a file is not a complete file of torch.save; None if it is."""
    try:
        with zipfile.ZipFile(path) as file:  # torch.save writes a zip file, with CRC-32 checksums
            record = file.testzip()
    except Exception as error:  # zipfile raises many types for a damaged header
        return f"it was cut short or is no file of torch.save ({error})"
    return record and f"it is damaged, {record} in it is not what was written"
