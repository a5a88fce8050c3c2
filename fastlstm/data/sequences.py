"""Long sequences in files: opened without being loaded, and read by slices.

A sequence is anything with `len(sequence)` steps and `sequence[start:stop]`, an array (steps, ...).
Of whatever these open, only the slices asked for are in memory; of `.npz` files, whole arrays.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastlstm.data.formats import format_of


class LongSequence(Protocol):
    """Steps on disk or in memory: an array, or one of those that :func:`open_sequences` makes."""

    def __len__(self) -> int: ...

    def __getitem__(self, steps: slice, /) -> Any: ...


# Files are opened for each slice, which costs microseconds: thousands of open ones would meet the
# system's limit, and an open one can be neither pickled nor shared with worker processes.


class BytesSequence:
    """A file's bytes, (T,) uint8.

    Args:
        path: of the file.
        start, stop: which of its bytes, as in a slice. Default: all.
    """

    def __init__(self, path: str | Path, start: int = 0, stop: int | None = None) -> None:
        self.path = Path(path)
        self._bytes = range(self.path.stat().st_size)[start:stop]

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, steps: slice) -> NDArray[np.uint8]:
        start, stop, _ = steps.indices(len(self))
        first = self._bytes.start + start
        return np.fromfile(self.path, np.uint8, max(0, stop - start), offset=first)


class NumpySequence:
    """The array (T, ...) of a `.npy` file, memory-mapped."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        array = self._array()
        _check_steps(array.shape, array.dtype)
        self._length = len(array)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, steps: slice) -> NDArray[Any]:
        read = self._array()[steps]
        return np.array(read, read.dtype.newbyteorder("="))  # torch reads no other order

    def _array(self) -> NDArray[Any]:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class NpzSequence:
    """One array (T, ...) of a `.npz` file, which is read as a whole when a slice first needs it.

    A compressed array cannot be read by slices. It is in memory from then on.
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path = Path(path)
        self.name = name
        array = self._array()
        self._length = len(array)
        self._kept: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, steps: slice) -> NDArray[Any]:
        if self._kept is None:
            self._kept = self._array()
        return self._kept[steps]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def _array(self) -> NDArray[Any]:
        with np.load(self.path, allow_pickle=False) as arrays:
            array = arrays[self.name]
        _check_steps(array.shape, array.dtype, f"array {self.name!r}: ")
        return array.astype(array.dtype.newbyteorder("="), copy=False)


class SafetensorsSequence:
    """One tensor (T, ...) of a `.safetensors` file. Needs the package safetensors."""

    def __init__(self, path: str | Path, name: str) -> None:
        self.path = Path(path)
        self.name = name
        slices = self._slices()
        if not slices.get_shape():
            raise ValueError(f"tensor {name!r}: expected (T, ...), got a single number")
        self._length = int(slices.get_shape()[0])
        try:
            kind = slices[:1].dtype.kind
        except TypeError:  # bfloat16 and others
            kind = "V"  # which they are once some package has imported ml_dtypes
        if kind == "V":
            found = slices.get_dtype()
            raise ValueError(f"tensor {name!r}: expected a dtype of NumPy, got {found}")

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
            try:
                with pq.ParquetFile(self.path) as file:
                    table = file.read_row_group(number, self.columns)
                columns = [np.stack(column.to_numpy()).reshape(len(table), -1) for column in table]
                rows = np.concatenate(columns, 1)
                _check_steps(rows.shape, rows.dtype)
            except (ValueError, OSError) as error:
                raise ValueError(f"{self.path}: cannot read row group {number}: {error}") from error
            self._kept = number, rows
        return self._kept[1]


def _check_steps(shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "") -> None:
    """ValueError for an array that has no steps, or whose steps are no numbers."""
    if not shape:
        raise ValueError(f"{name}expected an array (T, ...), got a single {dtype}")
    if dtype.kind not in "biufc":
        raise ValueError(f"{name}expected an array of numbers, got {dtype}")


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
    """Every sequence of a file, or of a folder's files in the order of their names.

    `.npy`: one sequence (T, ...). `.npz`, `.safetensors`: one of each array, by name.
    `.parquet`: one, of its rows. Plain bytes, such as text: the file's bytes, (T,) uint8.
    A file's first bytes tell which of these it is, and where they do not, its name.
    Other formats that are known by either (HDF5, archives and compressed files, pickles, pictures
    and more) are refused. Videos are :class:`fastlstm.data.VideoFrames`.

    Args:
        path: a file or a folder.
        pattern: which files of a folder, as in `Path.glob`. Default: all, in folders below too.

    Raises:
        FileNotFoundError: no such path, or no file in it that fits `pattern`.
        ValueError: a file that its reader cannot read, or of a format that has none.
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
        except Exception as error:  # zip, NumPy's and safetensors' headers have errors of their own
            raise ValueError(f"path: cannot read {file} ({kind or 'bytes'}): {error}") from error
        if not found:
            raise ValueError(f"path: expected arrays in {file} ({kind}), it has none")
        sequences += found
    return sequences
