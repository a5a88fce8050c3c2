"""Checkpoints as folders: tensors in shards of torch.distributed.checkpoint, all else in a file."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.utils._pytree import keystr, tree_map_with_path

REST = "rest.pt"  # the checkpoint, with tensors of the meta device in place of those in the shards

_KINDS = {
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "WindowsPath"},
}


def without_tensors(checkpoint: Any) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of a checkpoint by their place in it, and the checkpoint without them.

    Tensors of the meta device take their places: they have a shape and a dtype, and no values.
    """
    tensors = {}

    def described(place: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors[keystr(place)] = leaf
        return leaf.to("meta")

    return tensors, tree_map_with_path(described, checkpoint)


def read_shards(path: Path, weights_only: bool = True) -> Any:
    """Read a checkpoint in shards onto the CPU, in one process and whole.

    Args:
        path: the folder.
        weights_only: as in torch.load. Default: True, tensors and plain data only.

    Raises:
        Exception: a file of the folder is absent, cut short, or was not written by torch. The
            shards have no checksums.
    """
    tensors = {}

    def placed(place: Any, leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.is_meta):
            return leaf
        tensors[keystr(place)] = torch.empty_like(leaf, device="cpu")
        return tensors[keystr(place)]

    rest = torch.load(path / REST, map_location="cpu", weights_only=weights_only)
    checkpoint = tree_map_with_path(placed, rest)
    reader = _Reader(path)
    kinds = reader.read_metadata().state_dict_metadata
    for name in tensors:  # torch would unpickle what is not a tensor
        if not isinstance(kinds.get(name), TensorStorageMetadata):
            raise ValueError(f"the shards have no tensor {name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as is meant here
        try:
            dcp.load(tensors, storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            raise cause_of(error) from error
    return checkpoint


def cause_of(error: BaseException) -> BaseException:
    """Return what a process raised, which torch wraps in an error that is no Exception."""
    if isinstance(error, CheckpointException):
        ((cause, _), *_) = error.failures.values()
        return cause
    return error


class LinkedWriter(dcp.FileSystemWriter):
    """Writes a folder, and makes a link point to it when all processes have written their parts."""

    def __init__(self, folder: Path, target: Path) -> None:
        super().__init__(folder)
        self._folder, self._target = folder, target

    def finish(self, metadata: Metadata, results: Any) -> None:
        super().finish(metadata, results)  # called in process 0, after all have flushed their files
        directory = os.open(self._folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        link = self._target.with_name(f"{self._target.name}.part")
        link.unlink(missing_ok=True)
        link.symlink_to(self._folder.name)
        os.replace(link, self._target)
        of_target = re.compile(re.escape(self._target.name) + r"\.\d+")
        for folder in self._target.parent.iterdir():
            if of_target.fullmatch(folder.name) and folder != self._folder:
                shutil.rmtree(folder, ignore_errors=True)


class _Reader(dcp.FileSystemReader):
    """Reads the table of the shards without running code, which a pickle could contain."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self.path, ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _KINDS.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a table of shards has no {module}.{name}")
