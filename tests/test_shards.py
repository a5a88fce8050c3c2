"""Sequences in .tar shards and zarr stores: any slice is read exactly, and alone; runs resume."""

import builtins
import io
import json
import multiprocessing as mp
import pickle
import random
import sys
import tarfile

import numpy as np
import pytest
import torch
from shards import npy, write_tar
from shards import write_zarr as write_any_zarr

from fastlstm.data import open_sequences
from fastlstm.training import Windows

zarr = pytest.importorskip("zarr", minversion="3")

ARRAY = np.arange(60, dtype=np.float32).reshape(20, 3)
SLICES = [(0, 20), (0, 1), (5, 7), (4, 13), (12, 12), (19, 20), (7, 30), (9, 4)]


def write_zarr(path, array=ARRAY, **options):
    write_any_zarr(path, array, **options)


def write_tar_of_arrays(path):
    write_tar(path / "0.tar", {"a.npy": npy(ARRAY)})


def write_tar_of_fortran(path):
    write_tar(path / "0.tar", {"a.npy": npy(np.asfortranarray(ARRAY)), "b/": b""})


WRITERS = {
    "tar": write_tar_of_arrays,
    "tar, Fortran order": write_tar_of_fortran,
    "zarr 3": lambda path: write_zarr(path / "a.zarr"),
    "zarr 2": lambda path: write_zarr(path / "a", zarr_format=2),
    "zarr, sharded": lambda path: write_zarr(path / "a.zarr", chunks=(4, 3), shards=(12, 3)),
    "zarr, big-endian": lambda path: write_zarr(path / "a.zarr", array=ARRAY.astype(">f4")),
    "zarr group": lambda path: write_zarr(path / "group.zarr" / "deep"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_slices_are_those_of_the_array(tmp_path, kind):
    if kind == "zarr group":
        zarr.create_group(tmp_path / "group.zarr")
    WRITERS[kind](tmp_path)
    (sequence,) = open_sequences(tmp_path)
    assert len(sequence) == 20
    for copy in (sequence, pickle.loads(pickle.dumps(sequence))):
        for start, stop in SLICES:
            read = copy[start:stop]
            np.testing.assert_array_equal(read, ARRAY[start:stop])
            assert read.dtype == np.dtype("=f4")
            torch.from_numpy(read)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(5,), (5, 2, 3), (0, 4), (5, 0)])
def test_numpy_arrays_of_any_shape_and_order(tmp_path, shape, order):
    array = np.random.default_rng(0).integers(0, 99, shape).astype(">i8", order=order)
    np.save(tmp_path / "a.npy", array)
    (sequence,) = open_sequences(tmp_path)
    for start, stop in [(0, 5), (1, 3), (4, 9), (3, 3)]:
        read = sequence[start:stop]
        np.testing.assert_array_equal(read, array[start:stop])
        assert read.dtype == np.int64 and read.flags.c_contiguous and read.flags.writeable


def test_members_are_sequences_by_name_and_pattern(tmp_path):
    members = {"2.x.npy": npy(ARRAY), "1.x.npy": npy(ARRAY[:4]), "1.y.txt": b"bytes", "1.z": b""}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        write_tar(tmp_path / "0.tar", members, format=form)
        sequences = open_sequences(tmp_path)
        assert [len(sequence) for sequence in sequences] == [4, 5, 0, 20]
        assert sequences[1][1:3].tobytes() == b"yt"
        assert [len(s) for s in open_sequences(tmp_path, members="*.npy")] == [4, 20]
    with pytest.raises(ValueError, match=r"0\.tar \(tar\), it has none that fit members='\*\.no'"):
        open_sequences(tmp_path, members="*.no")
    store = zarr.create_group(tmp_path / "0.zarr")
    for name in ("b", "a/x", "a/y"):
        store.create_array(name, data=ARRAY[: len(name)])
    assert [len(s) for s in open_sequences(tmp_path / "0.zarr")] == [3, 3, 1]
    assert [len(s) for s in open_sequences(tmp_path / "0.zarr", members="*/y")] == [3]
    with pytest.raises(ValueError, match=r"a\.tar: x\.npy and uint8 \(\) in .*a\.tar: y"):
        write_tar(tmp_path / "a.tar", {"x.npy": npy(ARRAY), "y": b"bytes"})
        Windows(open_sequences(tmp_path / "a.tar"), batch_size=1, k1=2)


def test_of_two_members_of_one_name_the_last_counts(tmp_path):
    write_tar(tmp_path / "a.tar", {"a": b"first"})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        member = tarfile.TarInfo("a")
        member.size = 6
        archive.addfile(member, io.BytesIO(b"second"))
    (sequence,) = open_sequences(tmp_path)
    assert sequence[:].tobytes() == b"second"


def _opened(monkeypatch, read):
    """How many bytes the operating system reads during a call, and the names of files."""
    count, opened = [0], []
    original = io.FileIO.readinto

    class Counting(io.FileIO):
        def readinto(self, buffer):
            found = original(self, buffer)
            count[0] += found
            return found

    def opening(self, mode="r", buffering=-1, **options):
        opened.append(self.name)
        return Counting(self, mode)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.open", opening)
        read()
    return count[0], opened


def test_a_slice_reads_its_own_bytes_alone(tmp_path, monkeypatch):
    array = np.arange(300_000, dtype=np.int64).reshape(100_000, 3)
    write_tar(tmp_path / "a.tar", {"a.npy": npy(array), "b": bytes(100_000)})
    np.save(tmp_path / "b.npy", array)
    steps = slice(70_000, 70_010)
    for sequence, expected in zip(open_sequences(tmp_path), (240, 10, 240), strict=True):
        assert _opened(monkeypatch, lambda s=sequence: s[steps])[0] == expected

    store = zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(1000, 3))
    (sequence,) = open_sequences(tmp_path / "a.zarr")
    touched = []
    get = zarr.storage.LocalStore.get

    async def counting(self, key, *args, **options):
        touched.append(key)
        return await get(self, key, *args, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", counting)
    np.testing.assert_array_equal(sequence[70_990:71_010], array[70_990:71_010])
    assert [key for key in touched if key.startswith("c/")] == ["c/70/0", "c/71/0"]
    assert store.nchunks == 100


def test_files_of_a_store_are_not_sequences(tmp_path):
    write_zarr(tmp_path / "deep" / "a.zarr")
    (tmp_path / "b.txt").write_text("text")
    assert [len(s) for s in open_sequences(tmp_path)] == [4, 20]
    for pattern in ("**/*.json", "*/*/*/**/*"):
        with pytest.raises(FileNotFoundError, match="expected files that fit"):
            open_sequences(tmp_path, pattern)
    for part in ("zarr.json", "c/0/0", "c"):
        with pytest.raises(ValueError, match=r"a part of .*a\.zarr \(zarr\)"):
            open_sequences(tmp_path / "deep" / "a.zarr" / part)


def test_litdata_is_refused_by_name(tmp_path):
    index = {"chunks": [{"filename": "chunk-0-0.bin"}], "config": {}, "updated_at": "0"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    (tmp_path / "chunk-0-0.bin").write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"got .* \(litdata\)"):
        open_sequences(tmp_path)
    with pytest.raises(ValueError, match=r"a part of .* \(litdata\)"):
        open_sequences(tmp_path / "chunk-0-0.bin")
    (tmp_path / "index.json").write_text("[1, 2")  # of something else
    assert [len(s) for s in open_sequences(tmp_path)] == [100, 5]


def _link(path):
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        archive.addfile(link)


def _cut(path):
    write_tar(path, {"a": bytes(2000), "b": b"b"})
    path.write_bytes(path.read_bytes()[:2560])  # exactly behind the first member


def _damaged(path):
    write_tar(path, {"a": bytes(2000), "b": b"b"})
    whole = bytearray(path.read_bytes())
    whole[2560 + 150] ^= 1  # in the second header's checksum
    path.write_bytes(whole)


WRONG = {
    "link.tar": (_link, "member link: expected a file, got a link"),
    "cut.tar": (_cut, "expected a header or the end of the archive at byte 2560"),
    "damaged.tar": (_damaged, "expected a header or the end of the archive at byte 2560"),
    "half.tar": (
        lambda path: (
            write_tar(path, {"a": bytes(2000)}),
            path.write_bytes(path.read_bytes()[:900]),
        ),
        "unexpected end of data",
    ),
    "text.tar": (lambda path: path.write_text("text"), r"\(tar\)"),
    "none.tar": (lambda path: write_tar(path, {}), "it has none"),
    "short.tar": (lambda path: write_tar(path, {"a.npy": npy(ARRAY)[:-4]}), "member a.npy: .* 240"),
    "words.tar": (
        lambda path: write_tar(path, {"a": npy(np.array(["a"]))}),
        "member a: expected an array of numbers, got <U1",
    ),
    "number.zarr": (
        lambda path: zarr.create_array(path, shape=(), dtype="f4"),
        r"expected an array \(T, ...\)",
    ),
    "absent.zarr": (lambda path: path.mkdir(), r"\(zarr\): expected zarr\.json, \.zarray or"),
    "empty.zarr": (lambda path: zarr.create_group(path), "it has none"),
    "broken.zarr": (
        lambda path: (write_zarr(path), (path / "zarr.json").write_text("{")),
        r"\(zarr\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_sequence_is_named(tmp_path, name):
    write, says = WRONG[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}.*{says}"):
        open_sequences(tmp_path)


@pytest.mark.parametrize("kind", ["tar", "zarr 3", "zarr 2"])
def test_damage_is_named_or_does_no_harm(tmp_path, kind):
    WRITERS[kind](tmp_path)
    draw, named = random.Random(0), 0
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    for number in range(60):
        path = draw.choice(files)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        place = draw.randrange(min(len(damaged), 1100))  # most of a .tar file is zeros at its end
        if number % 2:
            del damaged[place:]
        else:
            damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            for sequence in open_sequences(tmp_path):
                sequence[:]
        except ValueError as error:
            assert str(tmp_path) in str(error)
            named += 1
        path.write_bytes(whole)
    assert named >= 25


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    write_zarr(tmp_path / "a.zarr")
    original = builtins.__import__

    def absent(name, *args, **options):
        if name == "zarr":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.delitem(sys.modules, "zarr")
    with pytest.raises(ModuleNotFoundError) as missing:
        open_sequences(tmp_path)
    assert str(missing.value) == (
        f"path: {tmp_path / 'a.zarr'} (zarr) needs the package 'zarr', which is not installed:"
        " pip install 'fastlstm[zarr]'"
    )


def test_a_forked_process_reads_a_store_that_was_read_before(tmp_path):
    write_zarr(tmp_path / "a.zarr")
    (sequence,) = open_sequences(tmp_path)
    sequence[:]
    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(sequence[5:8].tolist()))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert queue.get() == ARRAY[5:8].tolist()
