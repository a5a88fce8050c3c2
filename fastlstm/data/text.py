"""Text as sequences of bytes, one of each file, split by file or, where files are few, within."""

import sysconfig
import zlib
from pathlib import Path
from typing import get_args

from fastlstm.data.formats import format_of, head_of
from fastlstm.data.sequences import BytesSequence
from fastlstm.data.splits import Split

_PARTS = 20  # one of them is val, another test
_LEAST = 100  # one byte in so many: what a split has at the least if files are dealt out whole
_SKIPPED = {"site-packages", "test", "tests", "idle_test", "__pycache__"}
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # UTF-16 begins with one of these, and has bytes of 0


def load_text(
    folder: str | Path | None = None, split: Split = "train", pattern: str = "**/*"
) -> list[BytesSequence]:
    """The bytes of one split, a sequence of each file; no byte is in two splits.

    Many files: each belongs to one split as a whole. A checksum of its name says which, the same on
    every machine and whatever other files there are: about 1 in 20 to val, 1 in 20 to test.

    Few files, or one: where that would leave a split less than 1 in 100 of all bytes, every file is
    split instead: its first 18 twentieths are train, the next is val and the last test. Files that
    are added later move none of these borders, but may be enough for the first rule.

    Args:
        folder: of the files, or one file. Default: the sources of the running Python's standard
            library (some 12 MB), without its tests: real text that every machine has.
        split: "train", "val" or "test".
        pattern: which files, as in `Path.glob`.

    Raises:
        FileNotFoundError: no such folder, or no file in it that fits `pattern`.
        ValueError: an unknown split, a file that is no text (an archive, a picture, anything with
            a byte of 0 in its first 4096, but UTF-16), or files without a byte.
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
            _check_text(file)
    if not files:
        raise FileNotFoundError(f"folder: expected files that fit {pattern!r}, {root} has none")
    files.sort()
    splits = {file: _split_of(file.relative_to(root).as_posix()) for file in files}
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    if total == 0:
        raise ValueError(f"folder: expected text, the {len(files)} files of {folder} are empty")
    least = min(sum(sizes[f] for f in files if splits[f] == part) for part in get_args(Split))
    if _LEAST * least >= total:
        return [BytesSequence(file) for file in files if splits[file] == split]
    return [BytesSequence(file, *_borders(sizes[file])[split]) for file in files]


def _check_text(file: Path) -> None:
    kind, head = format_of(file), head_of(file)
    if kind is None and (b"\0" not in head or head.startswith(_WIDE)):
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
