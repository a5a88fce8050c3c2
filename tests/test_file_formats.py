"""A file is read by its true type or refused by name; no container is read as plain bytes."""

import bz2
import gzip
import lzma
import pickle
import random
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from safetensors.numpy import save_file

from fastlstm.data import load_text, open_sequences
from fastlstm.training import Windows

ARRAY = np.arange(60, dtype=np.float32).reshape(20, 3)


def compressed_tar(path):
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("member"))


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("member", "text")


CONTAINERS = {
    "HDF5": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + ARRAY.tobytes()),
    "HDF5 ": lambda path: path.write_bytes(bytes(2048) + b"\x89HDF\r\n\x1a\n" + ARRAY.tobytes()),
    "NetCDF": lambda path: path.write_bytes(b"CDF\x01\x00\x00\x00\x00"),
    "gzip": lambda path: path.write_bytes(gzip.compress(b"text")),
    "gzip ": compressed_tar,
    "bzip2": lambda path: path.write_bytes(bz2.compress(b"text")),
    "xz": lambda path: path.write_bytes(lzma.compress(b"text")),
    "zip": zipped,
    "pickle": lambda path: path.write_bytes(pickle.dumps([1, 2])),
    "Arrow": lambda path: feather.write_feather(pa.table({"x": ARRAY[:, 0]}), path),
    "PNG": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00"),
    "WAV": lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt \x10\x00\x00\x00"),
    "FLAC": lambda path: path.write_bytes(b"fLaC\x00\x00\x00\x22"),
    "Ogg": lambda path: path.write_bytes(b"OggS\x00\x02"),
    "Avro": lambda path: path.write_bytes(b"Obj\x01\x04"),
    "LMDB": lambda path: path.write_bytes(bytes(16) + b"\xde\xc0\xef\xbe\x01\x00\x00\x00"),
    "DuckDB": lambda path: path.write_bytes(bytes(8) + b"DUCK\x40\x00\x00\x00"),
    "TIFF": lambda path: path.write_bytes(b"II*\x00\x08\x00\x00\x00"),
    "WebP": lambda path: path.write_bytes(b"RIFF\x24\x00\x00\x00WEBPVP8 "),
    "PDF": lambda path: path.write_bytes(b"%PDF-1.7 and so on"),
    "a video, which fastlstm.data.VideoFrames reads": lambda path: path.write_bytes(
        b"\x00\x00\x00\x20ftypisom"
    ),
}


@pytest.mark.parametrize("name", ["a.txt", "a.npy", "a"])
@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers_are_refused_by_name_whatever_they_are_called(tmp_path, kind, name):
    path = tmp_path / name
    CONTAINERS[kind](path)
    with pytest.raises(ValueError) as refused:
        open_sequences(path)
    assert str(refused.value) == (
        "path: expected .npy, .npz, .safetensors, .parquet or .tar files, zarr stores, or files of"
        f" plain bytes, got {path} ({kind.strip()})"
    )
    with pytest.raises(ValueError, match=r"folder: expected text, got .*pattern"):
        load_text(path)


@pytest.mark.parametrize("kind", [*CONTAINERS, "zip, of arrays", "tar"])
def test_containers_in_shards_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "member"
    if kind == "zip, of arrays":
        np.savez(path.open("wb"), ARRAY)
    elif kind == "tar":
        path.write_bytes(tarfile.TarInfo("member").tobuf() + bytes(1024))
    else:
        CONTAINERS[kind](path)
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(path, "0.npy")
    with pytest.raises(ValueError) as refused:
        open_sequences(tmp_path / "a.tar")
    assert str(refused.value) == (
        f"path: cannot read {tmp_path / 'a.tar'} (tar): member 0.npy: expected .npy or plain bytes,"
        f" got {kind.split(', of')[0].strip()}; leave it out with members, such as members='*.npy'"
    )


@pytest.mark.parametrize("name", ["a.tar", "a.npy", "a"])
def test_a_shard_of_the_oldest_form_is_known_by_its_checksum(tmp_path, name):
    header = bytearray(tarfile.TarInfo("member").tobuf(tarfile.USTAR_FORMAT))
    header[124:136], header[257:265] = b"%011o\0" % 4, bytes(8)  # a size; without its "ustar"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / name).write_bytes(header + b"text" + bytes(508 + 1024))
    (sequence,) = open_sequences(tmp_path)
    assert sequence[:].tobytes() == b"text"
    with pytest.raises(ValueError, match=r"folder: expected text, got .* \(tar\)"):
        load_text(tmp_path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_and_what_torch_saves_are_refused(tmp_path, protocol):
    (tmp_path / "a.dat").write_bytes(pickle.dumps({"x": ARRAY}, protocol))
    torch.save({"x": torch.zeros(3)}, tmp_path / "b.dat", pickle_protocol=protocol)
    for name, kind in (("a.dat", "pickle"), ("b.dat", "zip")):
        with pytest.raises(ValueError, match=rf"{name} \({kind}\)"):
            open_sequences(tmp_path / name)


NAMES = ["h5", "HDF5", "nc", "gz", "tgz", "PKL", "mp4", "orc", "mds", "tfrecords", "mp3", "mdb"]
NAMES += ["zip", "NPZ", "NPY", "Tar", "parquet"]


@pytest.mark.parametrize("suffix", NAMES)
@pytest.mark.parametrize("content", [b"", b"some text " * 100, bytes(2048)])
def test_a_name_that_says_so_is_enough(tmp_path, suffix, content):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"(got|read|arrays in) .*a\.{suffix}"):
        open_sequences(path)


WRITERS = {
    ".npy": lambda path: np.save(path.open("wb"), ARRAY),
    ".npz": lambda path: np.savez(path.open("wb"), ARRAY),
    ".safetensors": lambda path: save_file({"a": ARRAY}, path),
    ".parquet": lambda path: pq.write_table(pa.table({"x": list(ARRAY)}), path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_capitals_and_other_names_change_nothing(tmp_path, suffix):
    for name in (f"a{suffix}", f"A{suffix.upper()}", "a.dat", "a"):
        WRITERS[suffix](tmp_path / name)
        (sequence,) = open_sequences(tmp_path / name)
        np.testing.assert_array_equal(sequence[3:9], ARRAY[3:9])
        assert sequence[3:9].dtype == np.float32


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_the_arrays_of_an_npz_file_are_sequences_by_name(tmp_path, save):
    save(tmp_path / "a.npz", second=ARRAY, first=ARRAY[:4, 0], third=ARRAY.reshape(5, 4, 3))
    sequences = open_sequences(tmp_path)
    for sequence, array in zip(
        sequences, (ARRAY[:4, 0], ARRAY, ARRAY.reshape(5, 4, 3)), strict=True
    ):
        assert len(sequence) == len(array)
        for copy in (sequence, pickle.loads(pickle.dumps(sequence))):
            np.testing.assert_array_equal(copy[1:3], array[1:3])


def test_arrays_of_the_other_byte_order_are_read(tmp_path):
    np.save(tmp_path / "a.npy", ARRAY.astype(">f4"))
    np.savez(tmp_path / "b.npz", ARRAY.astype(">f4"))
    for sequence in open_sequences(tmp_path):
        assert torch.equal(torch.from_numpy(sequence[:]), torch.from_numpy(ARRAY))


WRONG = {
    "number.npy": (lambda path: np.save(path, np.float32(3)), r"array \(T, \.\.\.\), got a single"),
    "objects.npy": (lambda path: np.save(path, np.array([{}], object)), "numbers, got object"),
    "words.npy": (lambda path: np.save(path, np.array(["a"])), "array of numbers, got <U1"),
    "empty.npy": (lambda path: path.write_bytes(b""), "got 0"),
    "number.npz": (lambda path: np.savez(path, np.float32(3)), "'arr_0': expected an array"),
    "objects.npz": (lambda path: np.savez(path, np.array([{}], object)), "Object"),
    "none.npz": (lambda path: np.savez(path), "it has none"),
    "number.safetensors": (
        lambda path: save_file({"a": np.array(3, np.float32)}, path),
        r"'a': expected \(T, \.\.\.\)",
    ),
    "none.safetensors": (lambda path: save_file({}, path), "it has none"),
    "bfloat16.safetensors": (
        lambda path: safetensors.torch.save_file({"a": torch.zeros(3).bfloat16()}, path),
        "a dtype of NumPy, got BF16",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_sequence_is_named(tmp_path, name):
    write, says = WRONG[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.*{says}"):
        open_sequences(tmp_path)


def test_a_table_of_words_is_named_before_training(tmp_path):
    pq.write_table(pa.table({"x": ["a", "b"]}), tmp_path / "words.parquet")
    with pytest.raises(ValueError, match=r"words\.parquet: .* expected an array of numbers"):
        Windows(open_sequences(tmp_path), batch_size=1, k1=2)


@pytest.mark.parametrize("suffix", WRITERS)
def test_damage_is_named_or_does_no_harm(tmp_path, suffix):
    path, draw = tmp_path / f"damaged{suffix}", random.Random(0)
    WRITERS[suffix](path)
    whole, named = path.read_bytes(), 0
    for number in range(100):
        damaged = bytearray(whole)
        if number % 2:
            del damaged[draw.randrange(len(damaged)) :]
        else:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            for sequence in open_sequences(path):
                sequence[:]
        except ValueError as error:
            assert path.name in str(error)
            named += 1
    assert named >= 50  # every file that was cut short, at least


def test_sequences_of_different_kinds_are_named(tmp_path):
    np.save(tmp_path / "a.npy", ARRAY)
    for name, other in (("b.npy", ARRAY[:, :2]), ("b.npy", ARRAY.astype(np.float64))):
        np.save(tmp_path / name, other)
        with pytest.raises(ValueError) as mixed:
            Windows(open_sequences(tmp_path), batch_size=1, k1=2)
        assert str(mixed.value) == (
            "sequences: expected steps of one dtype and shape, got float32 (3,) in"
            f" {tmp_path / 'a.npy'} and {other.dtype} {other.shape[1:]} in {tmp_path / 'b.npy'}"
        )
    (tmp_path / "b.npy").unlink()
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.npy and uint8 \(\) in .*b\.txt"):
        Windows(open_sequences(tmp_path), batch_size=1, k1=2)


def test_targets_that_do_not_fit_are_named(tmp_path):
    np.save(tmp_path / "x.npy", ARRAY)
    np.save(tmp_path / "y.npy", ARRAY[:-1])
    with pytest.raises(ValueError, match=r"got 19 steps in .*y\.npy for 20 in .*x\.npy"):
        Windows(
            open_sequences(tmp_path / "x.npy"),
            open_sequences(tmp_path / "y.npy"),
            batch_size=1,
            k1=2,
        )
