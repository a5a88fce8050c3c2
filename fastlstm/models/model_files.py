"""Reads and writes the files that hold one model: safetensors, and the checkpoints of runs."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastlstm.files import read_checkpoint, written_whole

_KEY = "fastlstm"
_CHECKSUM = "crc32"  # the oldest files have none
_RENAMED = {"frames": "frame_type"}  # arguments of version 0.1
_PREFIX = "model."  # of the model's weights in a checkpoint: the task holds the model as `model`
_ENTRIES = ("model_config", "video_model", "sequence_model")  # the last two: of older checkpoints
_EXPECTED = "expected a whole safetensors file"


class ModelFile(NamedTuple):
    """What a file holds: the class's name, its arguments, and the state_dict."""

    class_name: str
    arguments: dict[str, Any]
    tensors: dict[str, Tensor]


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's options under the names of today, if they have those of version 0.1."""
    return {_RENAMED.get(name, name): value for name, value in options.items()}


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has a checkpoint: a zip file, as torch.save writes, or shards."""
    if os.path.isdir(path):
        from fastlstm.sharded_checkpoint import REST  # imports half a second of torch

        return os.path.isfile(os.path.join(path, REST))
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def is_safetensors(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as safetensors files do: eight bytes of size, then JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path)


def write(path: Path, model: ModelFile) -> None:
    """Write a safetensors file with the configuration and a checksum, whole or not at all.

    Raises:
        ImportError: the package safetensors is not installed.
        OSError: the file cannot be written; one that was there before is left as it was.
    """
    safetensors = _safetensors()
    configuration = json.dumps({"class": model.class_name, "arguments": model.arguments})
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.tensors.items()}
    with written_whole(path) as unfinished:
        metadata = {_KEY: configuration, _CHECKSUM: _checksum(configuration, tensors)}
        safetensors.torch.save_file(tensors, unfinished, metadata)


def read(path: str | os.PathLike[str], argument: str, wanted: str) -> ModelFile:
    """Read a safetensors file of :func:`write`, or a checkpoint of a run; its bytes decide which.

    Args:
        path: the file, or a folder that ``DDPWithShardedCheckpoints`` wrote.
        argument: the name of the caller's argument, for errors.
        wanted: the class that the caller expects, for errors.

    Raises:
        ImportError: it is a safetensors file, and the package safetensors is not installed.
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds no model of this library.
    """
    in_checkpoint = os.path.exists(path) and is_checkpoint(path)
    if not (in_checkpoint or os.path.isfile(path)):
        raise FileNotFoundError(f"{argument}: expected a safetensors file, got {os.fspath(path)!r}")
    if in_checkpoint:
        return _from_checkpoint(path, argument)
    safetensors = _safetensors()
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{argument}: {_EXPECTED}, got {os.fspath(path)!r}: {error}") from error
    if _KEY not in metadata:
        raise ValueError(
            f"{argument}: expected a file that {wanted}.save wrote, got {os.fspath(path)!r}"
        )
    if metadata.get(_CHECKSUM, "none") not in ("none", _checksum(metadata[_KEY], tensors)):
        raise ValueError(
            f"{argument}: {_EXPECTED}, got {os.fspath(path)!r}: it is damaged, its weights or its"
            " configuration are not what was written"
        )
    try:
        configuration = json.loads(metadata[_KEY])
        return ModelFile(configuration["class"], configuration["arguments"], tensors)
    except Exception as error:  # JSON of another structure raises many types
        raise not_fitting(path, argument, error) from error


def not_fitting(path: str | os.PathLike[str], argument: str, error: Exception) -> ValueError:
    """Return the error of a file whose weights and configuration do not make a model."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"{argument}: expected weights and a configuration that fit, got {os.fspath(path)!r}:"
        f" {reason}"
    )


def weights_of(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the model in a run's checkpoint, under the names that the model has."""
    weights: Mapping[str, Tensor] = checkpoint["state_dict"]
    return {
        name.removeprefix(_PREFIX): value
        for name, value in weights.items()
        if name.startswith(_PREFIX)
    }


def model_entry(model: nn.Module) -> dict[str, Any]:
    """Return the entry of a run's checkpoint that has a model's class and its arguments.

    The arguments are in the model's ``config``. A user's model may have none, or another object.
    """
    config = getattr(model, "config", None)
    arguments = dict(config) if isinstance(config, Mapping) else {}
    return {_ENTRIES[0]: {"class": type(model).__name__} | arguments}


def read_model_entry(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the "class" and the arguments of the model in a run's checkpoint; {} if not known."""
    found = [checkpoint[entry] for entry in _ENTRIES if isinstance(checkpoint.get(entry), dict)]
    return current_names(found[0]) if found else {}


def as_checkpoint(model: ModelFile) -> dict[str, Any]:
    """Return the entries that a run's checkpoint has for its model."""
    return {
        "state_dict": {f"{_PREFIX}{name}": value for name, value in model.tensors.items()},
        _ENTRIES[0]: {"class": model.class_name, **model.arguments},
    }


def _from_checkpoint(path: str | os.PathLike[str], argument: str) -> ModelFile:
    try:
        checkpoint = read_checkpoint(Path(path))
        arguments = read_model_entry(checkpoint)
        if "class" not in arguments:
            raise ValueError(
                "its run did not record the class and the arguments of the model; make the model,"
                " and load the entry 'state_dict' of the file into it"
            )
        weights = weights_of(checkpoint)
    except ValueError as error:
        raise ValueError(
            f"{argument}: {_EXPECTED} or checkpoint of a run, got {os.fspath(path)!r}: {error}"
        ) from error.__cause__
    return ModelFile(arguments.pop("class"), arguments, weights)


def _checksum(configuration: str, tensors: dict[str, Tensor]) -> str:
    """Compute the CRC-32 of the configuration and all tensors; safetensors itself has none."""
    found = zlib.crc32(configuration.encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "saving and loading need the package safetensors: pip install 'fastlstm[train]'"
        ) from error
    return safetensors
