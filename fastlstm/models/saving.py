"""Models in safetensors files, with their configuration and a checksum inside."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastlstm.files import written_whole

_KEY = "fastlstm"
_CHECKSUM = "crc32"  # absent in files from before it

M = TypeVar("M", bound=nn.Module)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """See :meth:`fastlstm.models.video.VideoLSTM.save`."""
    safetensors = _safetensors()
    configuration = json.dumps({"class": type(model).__name__, "arguments": model.config})
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with written_whole(Path(path)) as unfinished:
        metadata = {_KEY: configuration, _CHECKSUM: _checksum(configuration, tensors)}
        safetensors.torch.save_file(tensors, unfinished, metadata)


def load(path: str | os.PathLike[str], expected: type[M]) -> M:
    """See :meth:`fastlstm.models.video.VideoLSTM.load`."""
    import fastlstm

    safetensors = _safetensors()
    if not Path(path).is_file():
        raise FileNotFoundError(f"path: expected a safetensors file, got {os.fspath(path)!r}")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"path: expected a whole safetensors file, got {os.fspath(path)!r}: {error}"
        ) from error
    if _KEY not in metadata:
        raise ValueError(
            f"path: expected a file that {expected.__name__}.save wrote, got {os.fspath(path)!r}"
        )
    if metadata.get(_CHECKSUM, "none") not in ("none", _checksum(metadata[_KEY], tensors)):
        raise ValueError(
            f"path: expected a whole safetensors file, got {os.fspath(path)!r}: it is damaged, its"
            " weights or its configuration are not what was written"
        )
    try:
        configuration = json.loads(metadata[_KEY])
        kind = getattr(fastlstm, configuration["class"], None)
        if isinstance(kind, type) and issubclass(kind, expected):
            dtype = next(iter(tensors.values())).dtype
            model = kind(**configuration["arguments"], dtype=dtype)
            model.load_state_dict(tensors)
            return model
    except Exception as error:  # whatever arguments or weights that do not fit may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            "path: expected weights and a configuration that fit, got"
            f" {os.fspath(path)!r}: {reason}"
        ) from error
    raise ValueError(
        f"path: expected a {expected.__name__}, got a {configuration['class']} "
        f"in {os.fspath(path)!r}"
    )


def _checksum(configuration: str, tensors: dict[str, Tensor]) -> str:
    """CRC-32 of the configuration and of every tensor; safetensors itself has none."""
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
