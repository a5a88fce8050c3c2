"""Find the format of a file by its first bytes, or by its suffix where those do not tell."""

import json
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

HEAD_BYTES = 4096
"""Number of bytes at the start of a file that are inspected."""


class _Format(NamedTuple):
    name: str
    suffixes: tuple[str, ...]
    marks: tuple[tuple[int, bytes], ...]  # (offset, magic bytes); one match is enough


_PICKLE = tuple((0, bytes([0x80, protocol])) for protocol in (2, 3, 4, 5))
_HDF5 = b"\x89HDF\r\n\x1a\n"  # at 0, or after a block of the user's whose size is a power of 2
_VIDEO = "a video, which fastlstm.data.VideoFrames reads"

# Magic bytes that could begin a text are at least four bytes long. The suffix .pt is not listed:
# corpora use it for Portuguese, and files of torch.save begin as zip archives or pickles do.
_FORMATS = (
    _Format("NumPy", (".npy",), ((0, b"\x93NUMPY"),)),
    _Format("Parquet", (".parquet",), ((0, b"PAR1"),)),
    _Format("HDF5", (".h5", ".hdf5"), tuple((at, _HDF5) for at in (0, 512, 1024, 2048))),
    _Format("NetCDF", (".nc",), ((0, b"CDF\x01"), (0, b"CDF\x02"), (0, b"CDF\x05"))),
    _Format("zip", (".zip",), ((0, b"PK\x03\x04"), (0, b"PK\x05\x06"))),
    _Format("NPZ", (".npz",), ()),  # a zip archive, see _has_arrays_only
    _Format("safetensors", (".safetensors",), ()),  # begins with the length of its header
    _Format("gzip", (".gz", ".tgz"), ((0, b"\x1f\x8b\x08"),)),
    _Format("bzip2", (".bz2",), ((4, b"1AY&SY"),)),
    _Format("xz", (".xz",), ((0, b"\xfd7zXZ\x00"),)),
    _Format("zstd", (".zst",), ((0, b"\x28\xb5\x2f\xfd"),)),
    _Format("lz4", (".lz4",), ((0, b"\x04\x22\x4d\x18"),)),
    _Format("7z", (".7z",), ((0, b"7z\xbc\xaf\x27\x1c"),)),
    _Format("rar", (".rar",), ((0, b"Rar!\x1a\x07"),)),
    _Format("tar", (".tar",), ()),  # see _begins_a_tar
    _Format("pickle", (".pkl", ".pickle"), _PICKLE),
    _Format("MATLAB", (".mat",), ((0, b"MATLAB 5.0 MAT-file"),)),
    _Format("Arrow", (".arrow", ".feather"), ((0, b"ARROW1\x00\x00"),)),
    _Format("SQLite", (".sqlite",), ((0, b"SQLite format 3\x00"),)),
    _Format("DuckDB", (".duckdb",), ((8, b"DUCK"),)),
    _Format("LMDB", (".mdb", ".lmdb"), ((16, b"\xde\xc0\xef\xbe"),)),
    _Format("Avro", (".avro",), ((0, b"Obj\x01"),)),
    _Format("ORC", (".orc",), ()),
    _Format("TFRecord", (".tfrecord", ".tfrecords"), ()),
    _Format("MDS", (".mds",), ()),
    _Format("WAV", (".wav",), ((8, b"WAVEfmt "),)),
    _Format("FLAC", (".flac",), ((0, b"fLaC\x00"),)),
    _Format("Ogg", (".ogg", ".opus"), ((0, b"OggS\x00"),)),
    _Format("MP3", (".mp3",), ()),
    _Format("TIFF", (".tif", ".tiff"), ((0, b"II*\x00"), (0, b"MM\x00*"))),
    _Format("WebP", (".webp",), ((8, b"WEBPVP8"),)),
    _Format("PDF", (".pdf",), ((0, b"%PDF-"),)),
    _Format("PNG", (".png",), ((0, b"\x89PNG\r\n\x1a\n"),)),
    _Format("JPEG", (".jpg", ".jpeg"), ((0, b"\xff\xd8\xff"),)),
    _Format("GIF", (".gif",), ((0, b"GIF87a"), (0, b"GIF89a"))),
    _Format(_VIDEO, (".mp4", ".m4v", ".mov"), ((4, b"ftyp"),)),
    _Format(_VIDEO, (".mkv", ".webm"), ((0, b"\x1a\x45\xdf\xa3"),)),
    _Format(_VIDEO, (".avi",), ((8, b"AVI LIST"),)),
    _Format(_VIDEO, (".mpg", ".mpeg"), ((0, b"\x00\x00\x01\xba"),)),
)


def format_of(path: Path) -> str | None:
    """Return the name of a file's format; None for plain bytes, such as text.

    Raises:
        OSError: the file cannot be read.
    """
    found = format_of_bytes(read_head(path), path.suffix, path.stat().st_size)
    return "NPZ" if found == "zip" and _has_arrays_only(path) else found


def format_of_bytes(head: bytes, suffix: str, size: int) -> str | None:
    """Return the name of a format, as :func:`format_of` does, but "zip" for NPZ.

    Args:
        head: the first :data:`HEAD_BYTES` bytes, or all if there are fewer.
        suffix: the end of the name, such as ".npy".
        size: number of bytes in all.
    """
    for kind in _FORMATS:
        if any(head[at : at + len(mark)] == mark for at, mark in kind.marks):
            return kind.name
    if _begins_a_tar(head):
        return "tar"
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= size - 8:
        return "safetensors"
    suffix = suffix.lower()
    return next((kind.name for kind in _FORMATS if suffix in kind.suffixes), None)


def format_of_folder(path: Path) -> str | None:
    """Return "zarr" or "litdata" for a folder whose files are parts of one store, else None."""
    names = ("zarr.json", ".zarray", ".zgroup")
    if path.suffix.lower() == ".zarr" or any((path / name).is_file() for name in names):
        return "zarr"
    index = path / "index.json"
    if index.is_file():
        try:
            found = json.loads(index.read_bytes())
        except ValueError:
            return None
        if isinstance(found, dict) and {"chunks", "config"} <= found.keys():
            return "litdata"
    return None


def read_head(path: Path) -> bytes:
    """Return the first :data:`HEAD_BYTES` bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


def _begins_a_tar(head: bytes) -> bool:
    """Whether the first 512 bytes are a member's header, whose checksum then fits."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _has_arrays_only(path: Path) -> bool:
    if path.suffix.lower() == ".npz":  # if it is damaged, its reader reports that
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)
