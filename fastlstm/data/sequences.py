"""Long sequences in files, which are opened without being loaded and read in slices.

A sequence is any object with ``len(sequence)`` steps whose ``sequence[start:stop]`` is an array
(steps, ...). Only the slices that are read are in memory, except for ``.npz`` files, whose arrays
are loaded whole.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastlstm.data.formats import format_of
from fastlstm.data.sequence_files import (
    BytesSequence,
    NpzSequence,
    NumpySequence,
    ParquetSequence,
    SafetensorsSequence,
)


class LongSequence(Protocol):
    """The protocol of a sequence of steps: a length, and slices along time.

    NumPy arrays and memory maps fit it, and so does everything that :func:`open_sequences` returns.

    Example:
        >>> sequence: LongSequence = np.zeros((100, 3))
        >>> len(sequence), sequence[10:20].shape
        (100, (10, 3))
    """

    def __len__(self) -> int: ...

    def __getitem__(self, steps: slice, /) -> Any: ...


def _open_safetensors(path: Path) -> list[LongSequence]:
    from safetensors import safe_open

    with safe_open(str(path), "numpy") as file:
        return [SafetensorsSequence(path, name) for name in sorted(file.keys())]


def _open_npz(path: Path) -> list[LongSequence]:
    with np.load(path, allow_pickle=False) as arrays:
        return [NpzSequence(path, name) for name in sorted(arrays.files)]


_READERS: dict[str | None, Callable[[Path], list[LongSequence]]] = {
    "NumPy": lambda path: [NumpySequence(path)],
    "NPZ": _open_npz,
    "safetensors": _open_safetensors,
    "Parquet": lambda path: [ParquetSequence(path)],
    None: lambda path: [BytesSequence(path)],
}


def open_sequences(path: str | Path, pattern: str = "**/*") -> list[LongSequence]:
    """Open all sequences of a file, or of the files of a folder in the order of their names.

    - ``.npy``: one :class:`NumpySequence`.
    - ``.npz`` and ``.safetensors``: a sequence for each array, in the order of their names.
    - ``.parquet``: one :class:`ParquetSequence` of its rows.
    - any other file, such as text: one :class:`BytesSequence`.

    The format is found by the first bytes of the file, or by its suffix where those do not tell.
    Files in other known formats (HDF5, archives, compressed files, pickles, images and more) raise
    an error. :class:`fastlstm.data.VideoFrames` reads videos.

    Args:
        path: a file or a folder.
        pattern: which files of a folder, as in ``Path.glob``. Default: all, at any depth.

    Raises:
        FileNotFoundError: the path does not exist, or has no file that matches ``pattern``.
        ValueError: a file in another known format, or a damaged file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "two.npz")
        >>> np.savez(file, a=np.zeros((8, 3)), b=np.ones(5))
        >>> [sequence[0:4].shape for sequence in open_sequences(file)]
        [(4, 3), (4,)]
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file or a folder, {path} is absent")
    files = (
        sorted(file for file in path.glob(pattern) if file.is_file()) if path.is_dir() else [path]
    )
    if not files:
        raise FileNotFoundError(f"path: expected files that fit {pattern!r}, {path} has none")
    sequences: list[LongSequence] = []
    for file in files:
        kind = format_of(file)
        if kind not in _READERS:
            raise ValueError(
                f"path: expected .npy, .npz, .safetensors or .parquet files, or files of plain"
                f" bytes, got {file} ({kind})"
            )
        try:
            found = _READERS[kind](file)
        except ImportError:
            raise
        except Exception as error:  # each library raises its own exceptions for damaged files
            raise ValueError(f"path: cannot read {file} ({kind or 'bytes'}): {error}") from error
        if not found:
            raise ValueError(f"path: expected arrays in {file} ({kind}), it has none")
        sequences += found
    return sequences
