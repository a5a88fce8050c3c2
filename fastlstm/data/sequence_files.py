"""Sequences in files, one class for each file format."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

# A file is opened for each slice, which takes microseconds. Thousands of open files would exceed
# the system's limit, and an open file can be neither pickled nor shared with worker processes.


class BytesSequence:
    """The bytes of a file or of a part of it, (T,) uint8.

    Args:
        path: path of the file.
        start: first byte, as in a slice. Default: 0.
        stop: one past the last byte, as in a slice. Default: the end of the file.
        name: for error messages, of the part. Default: none.

    Raises:
        FileNotFoundError: the file does not exist.
        OSError: when a slice is read, a file that has become shorter.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.txt")
        >>> size = file.write_bytes(b"an example")
        >>> sequence = BytesSequence(file, start=3)
        >>> len(sequence), bytes(sequence[0:4])
        (7, b'exam')
    """

    def __init__(
        self, path: str | Path, start: int = 0, stop: int | None = None, name: str = ""
    ) -> None:
        self.path = Path(path)
        self.name = name
        self._bytes = range(self.path.stat().st_size)[start:stop]

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, steps: slice) -> NDArray[np.uint8]:
        start, stop, _ = steps.indices(len(self))
        read = np.empty((1, max(0, stop - start)), np.uint8)
        _read(self.path, self._bytes.start + start, 0, read)
        return read[0]


class NumpySequence:
    """The array (T, ...) of a ``.npy`` file, of which each slice is read when it is asked for.

    Args:
        path: path of the file.
        start: where the array begins in a file that holds more, such as a ``.tar`` shard, in bytes.
            Default: 0.
        stop: one past the array's last byte. Default: the end of the file.
        name: for error messages, of the array in such a file. Default: none.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, the array has no dimension, or does not hold numbers.
        OSError: when a slice is read, a file that has become shorter.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "a.npy")
        >>> np.save(file, np.arange(12.0).reshape(6, 2))
        >>> NumpySequence(file)[2:4]
        array([[4., 5.],
               [6., 7.]])
    """

    def __init__(
        self, path: str | Path, start: int = 0, stop: int | None = None, name: str = ""
    ) -> None:
        self.path = Path(path)
        self.name = name
        with self.path.open("rb") as file:
            file.seek(start)
            self._shape, self._is_fortran, self._dtype = _read_header(file)
            self._start = file.tell()
        check_steps(self._shape, self._dtype)
        if min(self._shape) < 0:
            raise ValueError(f"expected no negative size, got {self._shape}")
        stop = self.path.stat().st_size if stop is None else stop
        expected = math.prod(self._shape) * self._dtype.itemsize
        if stop - self._start < expected:
            raise ValueError(
                f"expected {expected} bytes of {self._dtype} {self._shape}, got"
                f" {stop - self._start}"
            )

    def __len__(self) -> int:
        return self._shape[0]

    # Not through a memory map: where a page of it cannot be read, the system kills the process.
    def __getitem__(self, steps: slice) -> NDArray[Any]:
        start, stop, _ = steps.indices(len(self))
        count, step = max(0, stop - start), math.prod(self._shape[1:])
        # in C order the slice is one run of bytes, in Fortran order one for each number of a step
        runs = (step, count) if self._is_fortran else (1, count * step)
        first = start if self._is_fortran else start * step
        size = self._dtype.itemsize
        read = np.empty(runs, self._dtype)
        _read(self.path, self._start + first * size, len(self) * size, read)
        if self._is_fortran:
            read = read.reshape(*self._shape[:0:-1], count).T
        else:
            read = read.reshape(count, *self._shape[1:])
        # torch reads native byte order only
        return read.astype(self._dtype.newbyteorder("="), order="C", copy=False)


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
        check_steps(array.shape, array.dtype, f"array {self.name!r}: ")
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
        with _named(self.path, "metadata"):
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
            with _named(self.path, f"row group {number}"), pq.ParquetFile(self.path) as file:
                table = file.read_row_group(number, self.columns)
                columns = [np.stack(column.to_numpy()).reshape(len(table), -1) for column in table]
                rows = np.concatenate(columns, 1)
                check_steps(rows.shape, rows.dtype)
            self._kept = number, rows
        return self._kept[1]


def _read(path: Path, start: int, stride: int, runs: NDArray[Any]) -> None:
    """Fill each row of ``runs`` from byte ``start`` on, from row to row ``stride`` bytes later."""
    with path.open("rb", buffering=0) as file:
        for number, run in enumerate(runs):
            left = memoryview(run.view(np.uint8))
            file.seek(start + number * stride)
            while left:
                count = file.readinto(left)
                if not count:
                    at = file.tell()
                    raise OSError(f"{path}: expected {len(left)} more bytes at {at}, got its end")
                left = left[count:]


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read shape, Fortran order and dtype from the beginning of the ``.npy`` format."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    # 3.0 differs in the names of fields alone, which arrays of numbers do not have
    raise ValueError(f"expected version 1.0 or 2.0 of the format, got {version}")


@contextmanager
def _named(path: Path, part: str) -> Iterator[None]:
    """Raise ValueError with the file's name for damage, which pyarrow calls an OSError too."""
    try:
        yield
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system: may pass
            raise
        raise ValueError(f"{path}: cannot read {part}: {error}") from error


def check_steps(shape: tuple[int, ...], dtype: np.dtype[Any], name: str = "") -> None:
    """Raise ValueError for an array without dimensions, or one that does not hold numbers."""
    if not shape:
        raise ValueError(f"{name}expected an array (T, ...), got a single {dtype}")
    if dtype.kind not in "biufc":
        raise ValueError(f"{name}expected an array of numbers, got {dtype}")
