"""Long sequences in files: opened without being loaded, and read by slices.

A sequence is anything with `len(sequence)` steps and `sequence[start:stop]`, an array (steps, ...).
Of whatever these open, only the slices asked for are in memory.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class LongSequence(Protocol):
    """Steps on disk or in memory: an array, or one of those that :func:`open_sequences` makes."""

    def __len__(self) -> int: ...

    def __getitem__(self, steps: slice, /) -> Any: ...


# Files are opened for each slice, which costs microseconds: thousands of open ones would meet the
# system's limit, and an open one can be neither pickled nor shared with worker processes.


class BytesSequence:
    """A file's bytes, (T,) uint8."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._length = self.path.stat().st_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, steps: slice) -> NDArray[np.uint8]:
        start, stop, _ = steps.indices(self._length)
        return np.fromfile(self.path, np.uint8, max(0, stop - start), offset=start)


class NumpySequence:
    """The array (T, ...) of a `.npy` file, memory-mapped."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._length = len(self._array())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, steps: slice) -> NDArray[Any]:
        return np.array(self._array()[steps])

    def _array(self) -> NDArray[Any]:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class SafetensorsSequence:
    """One tensor (T, ...) of a `.safetensors` file. Needs the package safetensors."""

    def __init__(self, path: str | Path, name: str) -> None:
        self.path = Path(path)
        self.name = name
        self._length = int(self._slices().get_shape()[0])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, steps: slice) -> NDArray[Any]:
        start, stop, _ = steps.indices(self._length)
        return self._slices()[start:stop]

    def _slices(self) -> Any:
        from safetensors import safe_open

        return safe_open(str(self.path), "numpy").get_slice(self.name)


class ParquetSequence:
    """The rows of a `.parquet` file as steps, each a vector of its numeric columns.

    Row groups are read when a slice needs them, and the last one is kept, so that reading on costs
    each group once. Needs the package pyarrow.

    Args:
        path: of the file.
        columns: which of them; a column of lists of one length counts as several. Default: all.
    """

    def __init__(self, path: str | Path, columns: Sequence[str] | None = None) -> None:
        import pyarrow.parquet as pq

        self.path = Path(path)
        self.columns = None if columns is None else list(columns)
        metadata = pq.read_metadata(self.path)
        rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self._ends = np.cumsum([0, *rows])
        self._kept: tuple[int, NDArray[Any]] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, steps: slice) -> NDArray[Any]:
        start, stop, _ = steps.indices(len(self))
        first = int(np.searchsorted(self._ends, start, side="right")) - 1
        parts: list[NDArray[Any]] = []
        for group in range(first, len(self._ends) - 1):
            begin = int(self._ends[group])
            if begin >= stop and parts:
                break
            parts.append(self._group(group)[max(0, start - begin) : max(0, stop - begin)])
        return np.concatenate(parts)

    def _group(self, number: int) -> NDArray[Any]:
        import pyarrow.parquet as pq

        if self._kept is None or self._kept[0] != number:
            with pq.ParquetFile(self.path) as file:
                table = file.read_row_group(number, self.columns)
            columns = [np.stack(column.to_numpy()).reshape(len(table), -1) for column in table]
            self._kept = number, np.concatenate(columns, 1)
        return self._kept[1]


def _open_safetensors(path: Path) -> list[LongSequence]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "numpy") as file:
            return [SafetensorsSequence(path, name) for name in sorted(file.keys())]
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _open_bytes(path: Path) -> list[LongSequence]:
    return [BytesSequence(path)]


_READERS: dict[str, Callable[[Path], list[LongSequence]]] = {
    ".npy": lambda path: [NumpySequence(path)],
    ".safetensors": _open_safetensors,
    ".parquet": lambda path: [ParquetSequence(path)],
}


def open_sequences(path: str | Path, pattern: str = "**/*") -> list[LongSequence]:
    """Every sequence of a file, or of a folder's files in the order of their names.

    `.npy`: one sequence (T, ...). `.safetensors`: one of each tensor, by name.
    `.parquet`: one, of its rows. Anything else: the file's bytes, (T,) uint8.
    Videos are :class:`fastlstm.data.VideoFrames`.

    Args:
        path: a file or a folder.
        pattern: which files of a folder, as in `Path.glob`. Default: all, in folders below too.

    Raises:
        FileNotFoundError: no such path, or no file in it that fits `pattern`.
        ValueError: a file that its reader cannot read.
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
        try:
            sequences += (
                _READERS[file.suffix](file) if file.suffix in _READERS else [BytesSequence(file)]
            )
        except (ValueError, OSError, EOFError) as error:
            raise ValueError(f"path: cannot read {file} as {file.suffix}: {error}") from error
    return sequences
