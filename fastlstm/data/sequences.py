"""Long sequences in files, which are opened without being loaded and read in slices.

A sequence is any object with ``len(sequence)`` steps whose ``sequence[start:stop]`` is an array
(steps, ...). Only the slices that are read are in memory, except for ``.npz`` files, whose arrays
are loaded whole.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fastlstm.data.formats import format_of, format_of_folder
from fastlstm.data.retries import read_with_retries
from fastlstm.data.sequence_files import (
    BytesSequence,
    NpzSequence,
    NumpySequence,
    ParquetSequence,
    SafetensorsSequence,
)
from fastlstm.data.tar_shards import open_tar
from fastlstm.data.zarr_arrays import open_zarr


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


_IsWanted = Callable[[str], bool]


def _open_safetensors(path: Path, is_wanted: _IsWanted) -> list[SafetensorsSequence]:
    from safetensors import safe_open

    with safe_open(str(path), "numpy") as file:
        names = sorted(filter(is_wanted, file.keys()))
    return [SafetensorsSequence(path, name) for name in names]


def _open_npz(path: Path, is_wanted: _IsWanted) -> list[NpzSequence]:
    with np.load(path, allow_pickle=False) as arrays:
        names = sorted(filter(is_wanted, arrays.files))
    return [NpzSequence(path, name) for name in names]


_READERS: dict[str | None, Callable[[Path, _IsWanted], Sequence[LongSequence]]] = {
    "NumPy": lambda path, _: [NumpySequence(path)],
    "NPZ": _open_npz,
    "safetensors": _open_safetensors,
    "Parquet": lambda path, _: [ParquetSequence(path)],
    "tar": open_tar,
    "zarr": open_zarr,
    None: lambda path, _: [BytesSequence(path)],
}
_EXTRAS = {"safetensors": "train", "Parquet": "parquet", "zarr": "zarr"}


def open_sequences(
    path: str | Path, pattern: str = "**/*", members: str = "*"
) -> list[LongSequence]:
    """Open all sequences of a file, or of the files of a folder in the order of their names.

    - ``.npy``: one :class:`NumpySequence`.
    - ``.npz`` and ``.safetensors``: a sequence for each array, in the order of their names.
    - ``.parquet``: one :class:`ParquetSequence` of its rows.
    - ``.tar`` shards, such as those of WebDataset: a sequence for each member, which is a ``.npy``
      file or plain bytes, in the order of their names. Not ``.tar.gz``.
    - a folder that is a zarr store: a :class:`ZarrSequence` for each array in it.
    - any other file, such as text: one :class:`BytesSequence`.

    The format is found by the first bytes of the file, or by its suffix where those do not tell.
    Files in other known formats (HDF5, archives, compressed files, pickles, images and more) raise
    an error. :class:`fastlstm.data.VideoFrames` reads videos.

    A file that cannot be read because of an error of the system is tried four times in all, with
    pauses of 1, 4 and 16 seconds; so are the slices that ``fastlstm.training.Windows`` reads.

    Args:
        path: a file or a folder.
        pattern: which files and zarr stores of a folder, as in ``Path.glob``. Default: all, at any
            depth.
        members: which arrays or members of files that hold several, as in ``fnmatch``. Default:
            all.

    Raises:
        FileNotFoundError: the path does not exist, or has no file that matches ``pattern``.
        ImportError: the package that reads a format is absent; the text says which extra has it.
        OSError: a file cannot be read.
        ValueError: a file in another known format, or a damaged file.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "two.npz")
        >>> np.savez(file, a=np.zeros((8, 3)), b=np.ones(5))
        >>> [sequence[0:4].shape for sequence in open_sequences(file)]
        [(4, 3), (4,)]
        >>> [sequence[0:4].shape for sequence in open_sequences(file, members="a*")]
        [(4, 3)]
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path: expected a file or a folder, {path} is absent")
    files = read_with_retries(partial(_files, path, pattern), str(path))
    if not files:
        raise FileNotFoundError(f"path: expected files that fit {pattern!r}, {path} has none")
    sequences: list[LongSequence] = []
    for file in files:
        sequences += read_with_retries(partial(_open, file, members), str(file))
    return sequences


def _files(path: Path, pattern: str) -> list[Path]:
    """Return the path of a file or store, or the files and stores of a folder; never their parts.

    Raises:
        ValueError: the path is a part of a store.
    """
    for folder in path.absolute().parents:
        kind = format_of_folder(folder)
        if kind is not None:
            raise ValueError(
                f"path: expected a whole store, got {path}, a part of {folder} ({kind})"
            )
    if path.is_file() or format_of_folder(path) is not None:
        return [path]

    @cache
    def is_in_store(folder: Path) -> bool:
        if folder == path:
            return False
        return format_of_folder(folder) is not None or is_in_store(folder.parent)

    found = sorted(path.glob(pattern))
    return [
        file
        for file in found
        if not is_in_store(file.parent)
        and (file.is_file() or (file.is_dir() and format_of_folder(file) is not None))
    ]


def _open(file: Path, members: str) -> Sequence[LongSequence]:
    kind = format_of_folder(file) if file.is_dir() else format_of(file)
    if kind not in _READERS:
        raise ValueError(
            "path: expected .npy, .npz, .safetensors, .parquet or .tar files, zarr stores, or files"
            f" of plain bytes, got {file} ({kind})"
        )
    try:
        found = _READERS[kind](file, partial(fnmatchcase, pat=members))
    except ImportError as error:
        extra = _EXTRAS.get(str(kind))
        if extra is None or not isinstance(error, ModuleNotFoundError):
            raise
        raise ModuleNotFoundError(
            f"path: {file} ({kind}) needs the package {error.name!r}, which is not installed:"
            f" pip install 'fastlstm[{extra}]'",
            name=error.name,
        ) from error
    except OSError:
        raise
    except Exception as error:  # each library raises its own exceptions for damaged files
        raise ValueError(f"path: cannot read {file} ({kind or 'bytes'}): {error}") from error
    if not found:
        which = "" if members == "*" else f" that fit members={members!r}"
        raise ValueError(f"path: expected arrays in {file} ({kind}), it has none{which}")
    return found
