"""Models of video in safetensors files, with the configuration inside; files that are whole."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from torch import nn

_KEY = "fastlstm"

M = TypeVar("M", bound=nn.Module)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` if no error comes up, in one step."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def save(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """See :meth:`fastlstm.video.VideoLSTM.save`."""
    safetensors = _safetensors()
    configuration = {"class": type(model).__name__, "arguments": model.config}
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    with written_whole(Path(path)) as unfinished:
        safetensors.torch.save_file(tensors, unfinished, {_KEY: json.dumps(configuration)})


def load(path: str | os.PathLike[str], expected: type[M]) -> M:
    """See :meth:`fastlstm.video.VideoLSTM.load`."""
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
    configuration = json.loads(metadata[_KEY])
    kind = getattr(fastlstm, configuration["class"], None)
    if not (isinstance(kind, type) and issubclass(kind, expected)):
        raise ValueError(
            f"path: expected a {expected.__name__}, got a {configuration['class']} "
            f"in {os.fspath(path)!r}"
        )
    dtype = next(iter(tensors.values())).dtype
    model = kind(**configuration["arguments"], dtype=dtype)
    model.load_state_dict(tensors)
    return model


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            "saving and loading need the package safetensors: pip install 'fastlstm[train]'"
        ) from error
    return safetensors
