"""Sequences in files, one class for each file format."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# A file is opened for each slice, which takes microseconds. Thousands of open files would exceed
# the system's limit, and an open file can be neither pickled nor shared with worker processes.


class BytesSequence:
    """The bytes of a file, (T,) uint8.

    Args:
        path: path of the file.
        start: first byte, as in a slice. Default: 0.
        stop: one past the last byte, as in a slice. Default: the end of the file.

    Raises:
        FileNotFoundError: the file does not exist.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.txt")
        >>> size = file.write_bytes(b"an example")
        >>> sequence = BytesSequence(file, start=3)
        >>> len(sequence), bytes(sequence[0:4])
        (7, b'exam')
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
    """The array (T, ...) of a ``.npy`` file, of which each slice is read when it is asked for.

    Args:
        path: path of the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the array has no dimension, or does not hold numbers.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.npy")
        >>> np.save(file, np.arange(12.0).reshape(6, 2))
        >>> NumpySequence(file)[2:4]
        array([[4., 5.],
               [6., 7.]])
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        array = self._array()
        _check_steps(array.shape, array.dtype)
        self._length = len(array)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, steps: slice) -> NDArray[Any]:
        read = self._array()[steps]
        return np.array(read, read.dtype.newbyteorder("="))  # torch reads native byte order only

    def _array(self) -> NDArray[Any]:
        return np.load(self.path, mmap_mode="r", allow_pickle=False)


class NpzSequence:
    """One array (T, ...) of a ``.npz`` file, loaded whole when its first slice is read.

    Slices of a compressed array cannot be read alone, so the array stays in memory.

    Args:
        path: path of the file.
        name: name of the array.

    Raises:
        FileNotFoundError: the file does not exist.
        KeyError: the file has no such array.
        ValueError: the array has no dimension, or does not hold numbers.
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
    """One tensor (T, ...) of a ``.safetensors`` file. Needs the package ``safetensors``.

    Args:
        path: path of the file.
        name: name of the tensor.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the tensor has no dimension, or a dtype that NumPy lacks, such as bfloat16.

    Example:
        >>> import tempfile
        >>> from safetensors.numpy import save_file
        >>> file = Path(tempfile.mkdtemp(), "a.safetensors")
        >>> save_file({"x": np.arange(12.0).reshape(6, 2)}, file)
        >>> SafetensorsSequence(file, "x")[2:4].tolist()
        [[4.0, 5.0], [6.0, 7.0]]
    """

    def __init__(self, path: str | Path, name: str) -> None:
        self.path = Path(path)
        self.name = name
        slices = self._slices()
        if not slices.get_shape():
            raise ValueError(f"tensor {name!r}: expected (T, ...), got a single number")
        self._length = int(slices.get_shape()[0])
        try:
            kind = slices[:1].dtype.kind
        except TypeError:  # bfloat16 and other dtypes that NumPy lacks
            kind = "V"  # their kind where some package has imported ml_dtypes
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
    """The rows of a ``.parquet`` file, (T, D): each step is a vector of the numeric columns.

    Row groups are read when a slice needs them. The group that was read last stays in memory, so
    that reading in order reads each group once. Needs the package ``pyarrow``.

    Args:
        path: path of the file.
        columns: names of the columns; a column of lists of k numbers gives k entries of the vector.
            Default: all columns.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: when a slice is read, a row group that is damaged or does not hold numbers.

    Example:
        >>> import tempfile
        >>> import pyarrow, pyarrow.parquet
        >>> file = Path(tempfile.mkdtemp(), "a.parquet")
        >>> table = pyarrow.table({"x": [0.0, 1.0, 2.0], "y": [5.0, 6.0, 7.0]})
        >>> pyarrow.parquet.write_table(table, file)
        >>> ParquetSequence(file)[1:3]
        array([[1., 6.],
               [2., 7.]])
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
    """Raise ValueError for an array without dimensions, or one that does not hold numbers."""
    if not shape:
        raise ValueError(f"{name}expected an array (T, ...), got a single {dtype}")
    if dtype.kind not in "biufc":
        raise ValueError(f"{name}expected an array of numbers, got {dtype}")
