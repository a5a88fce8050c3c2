"""Text files as sequences of bytes, split by file or, where there are few files, within each."""

import sysconfig
import zlib
from functools import partial
from pathlib import Path
from typing import get_args

from fastlstm.data.formats import format_of, read_head
from fastlstm.data.retries import read_with_retries
from fastlstm.data.sequence_files import BytesSequence
from fastlstm.data.splits import Split

_PARTS = 20  # one part of the data is val, another test
_SMALLEST_SHARE = 100  # whole files are split only if each split has 1 in 100 of all bytes
_SKIPPED = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")  # UTF-16 begins with one of these and has zero bytes


def load_text(
    folder: str | Path | None = None, split: Split = "train", pattern: str = "**/*"
) -> list[BytesSequence]:
    """Load the text of one split as bytes, one sequence for each file; no byte is in two splits.

    Each file belongs to one split as a whole: a checksum of its name puts about 1 file in 20 into
    val and 1 in 20 into test, the same on every machine and whatever other files there are.

    If a split would get less than 1/100 of all bytes in this way, because there are few files or
    only one, each file is divided instead: its first 18/20 are train, the next 1/20 val and the
    last 1/20 test. Adding files does not move these borders, but with enough files the first rule
    applies.

    Args:
        folder: a folder of text files, or one text file. Default: the source code of Python's
            standard library without its tests, about 12 MB of text that every machine has.
        split: "train", "val" or "test". Default: "train".
        pattern: which files of the folder, as in ``Path.glob``. Default: all, at any depth.

    Returns:
        Sequences of shape (T,) uint8, in the order of the file names.

    Raises:
        FileNotFoundError: the folder does not exist, or has no file that matches ``pattern``.
        ValueError: an unknown split, only empty files, or a file that is not text: one in a known
            binary format, or with a zero byte in its first 4096 bytes that is not UTF-16.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> file = Path(tempfile.mkdtemp(), "numbers.txt")
        >>> size = file.write_text("0123456789" * 4)
        >>> [bytes(text[:]) for text in load_text(file, "val")]
        [b'67']
    """
    if split not in get_args(Split):
        raise ValueError(f"split: expected one of {get_args(Split)}, got {split!r}")
    if folder is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        files = [f for f in root.rglob("*.py") if not _SKIPPED & {*f.relative_to(root).parts}]
    else:
        root = Path(folder)
        if not root.exists():
            raise FileNotFoundError(f"folder: expected a folder of text, {root} is absent")
        found = [root] if root.is_file() else root.glob(pattern)
        root = root.parent if root.is_file() else root
        files = [file for file in found if file.is_file()]
        for file in files:
            read_with_retries(partial(_check_text, file), str(file))
    if not files:
        raise FileNotFoundError(f"folder: expected files that fit {pattern!r}, {root} has none")
    files.sort()
    splits = {file: _split_of(file.relative_to(root).as_posix()) for file in files}
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    if total == 0:
        raise ValueError(f"folder: expected text, the {len(files)} files of {folder} are empty")
    smallest = min(sum(sizes[f] for f in files if splits[f] == part) for part in get_args(Split))
    if _SMALLEST_SHARE * smallest >= total:
        return [BytesSequence(file) for file in files if splits[file] == split]
    return [BytesSequence(file, *_borders(sizes[file])[split]) for file in files]


def _check_text(file: Path) -> None:
    kind, head = format_of(file), read_head(file)
    if kind is None and (b"\0" not in head or head.startswith(_UTF16_MARKS)):
        return
    raise ValueError(
        f"folder: expected text, got {file} ({kind or 'binary, it has bytes of 0'}); leave it out"
        " with pattern, such as '**/*.txt', or read it with FileSequenceData"
    )


def _split_of(name: str) -> Split:
    part = zlib.crc32(name.encode()) % _PARTS
    return "val" if part == 0 else "test" if part == 1 else "train"


def _borders(size: int) -> dict[Split, tuple[int, int]]:
    part = size // _PARTS
    return {
        "train": (0, size - 2 * part),
        "val": (size - 2 * part, size - part),
        "test": (size - part, size),
    }
