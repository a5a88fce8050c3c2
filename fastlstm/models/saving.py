"""Saves models to safetensors files, with their configuration and a checksum, and loads them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from fastlstm.files import written_whole

_KEY = "fastlstm"
_CHECKSUM = "crc32"  # the oldest files have none
_RENAMED = {"frames": "frame_type"}  # arguments of version 0.1


class SavedModel(nn.Module):
    """A module that can be written to a file and made anew from it.

    Attributes:
        config: the arguments of the class, but for device and dtype.
    """

    config: dict[str, Any]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and configuration to one safetensors file.

        An older file at ``path`` is replaced once the new one is complete.

        Args:
            path: the file to write.

        Raises:
            ImportError: the package safetensors is not installed.
            OSError: the file cannot be written; one that was there before is left as it was.
        """
        safetensors = _safetensors()
        configuration = json.dumps({"class": type(self).__name__, "arguments": self.config})
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.state_dict().items()}
        with written_whole(Path(path)) as unfinished:
            metadata = {_KEY: configuration, _CHECKSUM: _checksum(configuration, tensors)}
            safetensors.torch.save_file(tensors, unfinished, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a model that :meth:`save` wrote.

        Args:
            path: the file.

        Returns:
            The model, on the CPU, of the class that was saved: ``cls`` or a subclass.

        Raises:
            ImportError: the package safetensors is not installed.
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, not of this library, or holds another class than ``cls``.
        """
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
                f"path: expected a file that {cls.__name__}.save wrote, got {os.fspath(path)!r}"
            )
        if metadata.get(_CHECKSUM, "none") not in ("none", _checksum(metadata[_KEY], tensors)):
            raise ValueError(
                f"path: expected a whole safetensors file, got {os.fspath(path)!r}: it is damaged,"
                " its weights or its configuration are not what was written"
            )
        try:
            configuration = json.loads(metadata[_KEY])
            model_class = getattr(fastlstm, configuration["class"], None)
            if isinstance(model_class, type) and issubclass(model_class, cls):
                dtype = next(iter(tensors.values())).dtype
                model = model_class(**configuration["arguments"], dtype=dtype)
                model.load_state_dict(tensors)
                return model
        except Exception as error:  # arguments or weights that do not fit raise many types
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                "path: expected weights and a configuration that fit, got"
                f" {os.fspath(path)!r}: {reason}"
            ) from error
        raise ValueError(
            f"path: expected a {cls.__name__}, got a {configuration['class']} "
            f"in {os.fspath(path)!r}"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled model, also one of version 0.1."""
        state = current_names(state)
        super().__setstate__(state | {"config": current_names(state["config"])})


def current_names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's options under the names of today, if they have those of version 0.1."""
    return {_RENAMED.get(name, name): value for name, value in options.items()}


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
