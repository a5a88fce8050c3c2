"""Text as sequences of bytes, one of each file, split by file."""

import sysconfig
import zlib
from pathlib import Path
from typing import get_args

from fastlstm.data.digits import Split
from fastlstm.data.sequences import BytesSequence

_PARTS = 20  # a file in 20 is val, another test
_SKIPPED = {"site-packages", "test", "tests", "idle_test", "__pycache__"}


def load_text(
    folder: str | Path | None = None, split: Split = "train", pattern: str = "**/*"
) -> list[BytesSequence]:
    """The files of one split as bytes; the three splits share no file.

    A file belongs to the split that a checksum of its name says, the same on every machine: about
    1 in 20 to val, 1 in 20 to test.

    Args:
        folder: of the files. Default: the sources of the running Python's standard library (some
            12 MB), without its tests: real text that every machine has.
        split: "train", "val" or "test".
        pattern: which files, as in `Path.glob`.

    Raises:
        FileNotFoundError: no such folder, or no file of that split in it.
        ValueError: an unknown split.
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
        files = [file for file in root.glob(pattern) if file.is_file()]
    chosen = [f for f in sorted(files) if _split_of(f.relative_to(root).as_posix()) == split]
    if not chosen:
        raise FileNotFoundError(f"folder: expected files of the {split} split, {root} has none")
    return [BytesSequence(file) for file in chosen]


def _split_of(name: str) -> Split:
    part = zlib.crc32(name.encode()) % _PARTS
    return "val" if part == 0 else "test" if part == 1 else "train"
