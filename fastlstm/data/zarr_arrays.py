"""Sequences in zarr stores, through the package ``zarr``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlstm.data.sequence_files import check_steps


class ZarrSequence:
    """An array (T, ...) of a zarr store in a folder. Needs the package ``zarr``, version 3.

    A slice reads and decompresses the chunks that it touches, so chunks (of sharded arrays the
    inner ones) should not be much longer in time than a window. A chunk that is absent is the
    array's fill value, as zarr defines it.

    Args:
        path: folder of the store.
        name: path of the array in the store. Default: the store itself is an array.

    Raises:
        FileNotFoundError: there is no such array.
        ValueError: the array has no dimension, or does not hold numbers; when a slice is read, a
            damaged chunk.

    Example:
        >>> import tempfile
        >>> import zarr
        >>> folder = Path(tempfile.mkdtemp(), "a.zarr")
        >>> array = zarr.create_array(folder, shape=(6, 2), chunks=(4, 2), dtype="f4")
        >>> array[:] = np.arange(12).reshape(6, 2)
        >>> ZarrSequence(folder)[2:4].tolist()
        [[4.0, 5.0], [6.0, 7.0]]
    """

    def __init__(self, path: str | Path, name: str = "") -> None:
        self.path = Path(path)
        self.name = name
        self._opened: Any = None
        array = self._array()
        check_steps(array.shape, array.dtype, f"array {name!r}: " if name else "")
        self._length = int(array.shape[0])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, steps: slice) -> NDArray[Any]:
        start, stop, _ = steps.indices(self._length)
        try:
            read = self._array()[start : max(start, stop)]
        except OSError:
            raise
        except Exception as error:  # each codec raises its own exceptions for damaged chunks
            raise ValueError(
                f"{self.path}: cannot read steps {start} to {stop - 1} of {self.name or 'it'}:"
                f" {error}"
            ) from error
        return np.asarray(read, read.dtype.newbyteorder("="))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _array(self) -> Any:
        # Kept, because opening takes a millisecond. zarr keeps no files open, and starts its
        # threads anew in a forked process.
        if self._opened is None:
            import zarr

            self._opened = zarr.open_array(self.path, path=self.name, mode="r")
        return self._opened


def open_zarr(path: Path, is_wanted: Callable[[str], bool]) -> list[ZarrSequence]:
    """Return the array that a store is, or those in it at any depth, in the order of their names.

    Args:
        path: folder of the store.
        is_wanted: whether an array of this name is read. Not asked if the store is an array.

    Raises:
        ValueError: as ``ZarrSequence`` does, or there is no store.
    """
    import zarr

    try:
        store = zarr.open(path, mode="r")
    except FileNotFoundError as error:  # zarr's own: the folder is there
        raise ValueError(f"expected zarr.json, .zarray or .zgroup in it ({error})") from error
    if isinstance(store, zarr.Array):
        return [ZarrSequence(path)]
    members = dict(store.members(max_depth=None))
    names = sorted(name for name, member in members.items() if isinstance(member, zarr.Array))
    return [ZarrSequence(path, name) for name in names if is_wanted(name)]
