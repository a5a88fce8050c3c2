"""MNIST digit images, in three splits that share no image."""

import gzip
import os
import struct
import zlib
from functools import lru_cache
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from fastlstm.data.splits import Split

_DIGIT = 28
_IDX_IMAGES = 0x00000803  # unsigned bytes, three dimensions
_FOLDERS = ("", "raw", "MNIST/raw")  # a folder of idx files, and torchvision's layout
_STEMS = {
    "train-images": ("train-images-idx3-ubyte", "train-images.idx3-ubyte"),
    "t10k-images": ("t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"),
}


def load_digits(
    source: str | os.PathLike[str] | None = None, split: Split = "train"
) -> NDArray[np.uint8]:
    """Load the MNIST digits of one split; the three splits share no image.

    Args:
        source: a folder with the idx files of MNIST (LeCun et al., 1998), raw or gzipped, in that
            folder or in torchvision's ``MNIST/raw`` below it. The first 11/12 of ``train-images``
            (55,000 of 60,000) are the training split, the rest the validation split, and
            ``t10k-images`` the test split. Default: 5,000 of MNIST's digits that come with this
            package, 500 of each class, of which 450, 25 and 25 are train, val and test.
        split: "train", "val" or "test". Default: "train".

    Returns:
        (N, 28, 28) uint8, from 0 (background) to 255 (full ink).

    Raises:
        FileNotFoundError: ``source`` does not exist.
        ValueError: an unknown split, a folder without the idx file, or an idx file that is
            truncated, corrupt or of another kind.

    Example:
        >>> import struct, tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> header = struct.pack(">4I", 0x803, 24, 28, 28)  # 24 images of 28 x 28 bytes
        >>> size = (folder / "train-images-idx3-ubyte").write_bytes(header + bytes(24 * 28 * 28))
        >>> load_digits(folder, "train").shape, load_digits(folder, "val").shape
        ((22, 28, 28), (2, 28, 28))
    """
    if split not in get_args(Split):
        raise ValueError(f"split: expected one of {get_args(Split)}, got {split!r}")
    if source is None:
        return _embedded(split)

    folder = Path(source)
    if not folder.exists():
        raise FileNotFoundError(f"source: expected a folder of MNIST idx files, {folder} is absent")
    if split == "test":
        return _read_idx(_find(folder, "t10k-images"))
    path = _find(folder, "train-images")
    images = _read_idx(path)
    val = max(1, round(len(images) / 12))
    if val >= len(images):
        raise ValueError(f"{path}: expected at least 2 images to split, got {len(images)}")
    return images[:-val] if split == "train" else images[-val:]


def _embedded(split: Split) -> NDArray[np.uint8]:
    images, labels = _mnist_5000()
    part = {"train": slice(0, 450), "val": slice(450, 475), "test": slice(475, 500)}[split]
    return images[np.concatenate([np.flatnonzero(labels == digit)[part] for digit in range(10)])]


@lru_cache(maxsize=1)
def _mnist_5000() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images (5000, 28, 28) and labels (5000,) of the file described in MNIST.md."""
    with np.load(Path(__file__).with_name("mnist_5000.npz")) as file:
        return file["images"], file["labels"]


def _find(folder: Path, kind: str) -> Path:
    for below in _FOLDERS:
        for stem in _STEMS[kind]:
            for suffix in ("", ".gz"):
                path = folder / below / (stem + suffix)
                if path.is_file():
                    return path
    found = sorted(p.name for p in folder.iterdir())[:5] if folder.is_dir() else "not a folder"
    raise ValueError(
        f"{folder}: expected {_STEMS[kind][0]} or {_STEMS[kind][0]}.gz in it or in its MNIST/raw,"
        f" got {found or 'an empty folder'}"
    )


def _read_idx(path: Path) -> NDArray[np.uint8]:
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: expected a whole gzip file, got {error}") from error
    if len(data) < 16:
        raise ValueError(f"{path}: expected a 16-byte idx header, got {len(data)} bytes")
    magic, count, height, width = struct.unpack(">4I", data[:16])
    if magic != _IDX_IMAGES:
        raise ValueError(f"{path}: expected idx magic {_IDX_IMAGES:#010x}, got {magic:#010x}")
    if (height, width) != (_DIGIT, _DIGIT):
        raise ValueError(f"{path}: expected {_DIGIT}x{_DIGIT} images, got {height}x{width}")
    size = count * height * width
    if len(data) - 16 != size:
        raise ValueError(f"{path}: expected {size} bytes of pixels, got {len(data) - 16}")
    return np.frombuffer(data, np.uint8, offset=16).reshape(count, height, width)
