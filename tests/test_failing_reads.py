"""A read that fails is tried again, and then named; a read that hangs is named in the log."""

import errno
import io
import logging
import multiprocessing as mp
import re
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fastlstm.data import open_sequences, retries
from fastlstm.training import Windows

ARRAY = np.arange(60, dtype=np.float32).reshape(20, 3)
TRIES = 4


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    assert len(retries.PAUSES) == TRIES - 1
    monkeypatch.setattr(retries, "PAUSES", (0.01, 0.02, 0.03))


class Failing:
    """A call that raises an error a number of times before it goes on to ``function``."""

    def __init__(self, times, function=lambda: "read", error=None):
        self.left, self.function, self.calls = times, function, 0
        self.error = error or OSError(errno.ESTALE, "Stale file handle")

    def __call__(self, *args, **options):
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return self.function(*args, **options)


class FailingSequence:
    """An array in a file of its own whose slices fail a number of times."""

    path = Path("shard_7.bin")

    def __init__(self, times):
        self.read = Failing(times, lambda steps: ARRAY[steps])

    def __len__(self):
        return len(ARRAY)

    def __getitem__(self, steps):
        return self.read(steps)


@pytest.mark.parametrize("times", range(TRIES))
def test_a_read_that_fails_for_a_while_is_a_warning(times, caplog):
    read = Failing(times)
    assert retries.read_with_retries(read, "a.npy") == "read"
    assert read.calls == times + 1
    found = [record.getMessage() for record in caplog.records]
    assert found == [
        f"a.npy: try {n + 1} of 4 to read it failed ([Errno 116] Stale file handle); the next one"
        f" is in {retries.PAUSES[n]} s"
        for n in range(times)
    ]


def test_a_read_that_always_fails_is_one_error():
    read = Failing(99)
    with pytest.raises(OSError) as failed:
        retries.read_with_retries(read, "a.npy")
    assert read.calls == TRIES
    assert str(failed.value) == (
        "a.npy: cannot be read, 4 tries in 0 s failed, the last one with: [Errno 116] Stale file"
        " handle"
    )


@pytest.mark.parametrize("error", [PermissionError, IsADirectoryError, ValueError, KeyError])
def test_what_does_not_pass_is_raised_at_once(error, caplog):
    read = Failing(99, error=error("so it is"))
    with pytest.raises(error, match="so it is"):
        retries.read_with_retries(read, "a.npy")
    assert read.calls == 1 and not caplog.records


@pytest.mark.parametrize("workers", [0, 1])
def test_windows_are_read_in_spite_of_it_or_name_the_file(workers):
    expected = Windows([ARRAY], batch_size=2, k1=4)
    windows = Windows([FailingSequence(TRIES - 1)], batch_size=2, k1=4)  # fails while it is opened
    windows.sequences[0].read.left = TRIES - 1  # and later
    for window, other in zip(windows.loader(num_workers=workers), expected.loader(), strict=True):
        for part, wanted in zip(window, other, strict=True):
            assert torch.equal(torch.as_tensor(part), torch.as_tensor(wanted))
    windows.sequences[0].read.left = 99
    with pytest.raises(OSError, match=r"shard_7\.bin: cannot be read, 4 tries in .* Stale"):
        list(windows.loader(num_workers=workers))


def _failing_file(monkeypatch, times):
    """Let the next reads of files fail, of all that are opened through ``Path.open``."""
    read = Failing(times)

    class File(io.FileIO):
        def readinto(self, buffer):
            read()
            return super().readinto(buffer)

    monkeypatch.setattr(Path, "open", lambda self, *args, **options: File(self))
    return read


def _write(kind, path):
    np.save(path / "a.npy", ARRAY)
    if kind == "tar":
        with tarfile.open(path / "a.tar", "w") as archive:
            archive.add(path / "a.npy", "a.npy")
        (path / "a.npy").unlink()


@pytest.mark.parametrize("kind", ["npy", "tar"])
@pytest.mark.parametrize("times", [TRIES - 1, 99])
def test_files_that_fail(tmp_path, monkeypatch, kind, times):
    _write(kind, tmp_path)
    windows = Windows(open_sequences(tmp_path), batch_size=1, k1=19)
    read = _failing_file(monkeypatch, times)
    if times < TRIES:
        assert torch.equal(windows[0].input[:, 0], torch.from_numpy(ARRAY[:-1]))
        assert read.calls > times
    else:
        with pytest.raises(OSError, match=rf"a\.{kind}.*: cannot be read, 4 tries in .* Stale"):
            windows[0]


def test_a_tar_that_fails_while_it_is_indexed(tmp_path, monkeypatch):
    _write("tar", tmp_path)
    tar_file, left = tarfile.open, [TRIES - 1]

    def opening(*args, **options):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        return tar_file(*args, **options)

    monkeypatch.setattr(tarfile, "open", opening)
    assert len(open_sequences(tmp_path)) == 1
    left[0] = 99
    with pytest.raises(OSError, match=r"a\.tar: cannot be read, 4 tries .* Input/output error"):
        open_sequences(tmp_path)


def test_a_parquet_file_that_fails(tmp_path, monkeypatch):
    import pyarrow as pa

    pq.write_table(pa.table({"x": list(ARRAY)}), tmp_path / "a.parquet")
    windows = Windows(open_sequences(tmp_path), batch_size=1, k1=19)
    failing = Failing(TRIES - 1, pq.ParquetFile)
    monkeypatch.setattr(pq, "ParquetFile", failing)
    assert torch.equal(windows[0].input[:, 0], torch.from_numpy(ARRAY[:-1]))
    assert failing.calls == TRIES


def test_a_zarr_store_that_fails(tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr", minversion="3")
    zarr.create_array(tmp_path / "a.zarr", data=ARRAY, chunks=(20, 3))
    windows = Windows(open_sequences(tmp_path), batch_size=1, k1=19)
    failing = Failing(TRIES - 1, zarr.storage.LocalStore.get)
    monkeypatch.setattr(
        zarr.storage.LocalStore, "get", lambda *args, **options: failing(*args, **options)
    )
    assert torch.equal(windows[0].input[:, 0], torch.from_numpy(ARRAY[:-1]))
    assert failing.calls >= TRIES


@pytest.mark.parametrize("kind", ["npy", "tar", "bytes"])
def test_a_file_that_has_become_shorter(tmp_path, kind):
    _write(kind, tmp_path)
    (path,) = tmp_path.iterdir()
    if kind == "bytes":
        path = path.rename(tmp_path / "a.txt")
        path.write_bytes(bytes(300))
    windows = Windows(open_sequences(tmp_path), batch_size=1, k1=19)
    path.write_bytes(path.read_bytes()[:4])
    with pytest.raises(
        OSError, match=r"4 tries in .*: expected \d+ more bytes at \d+, got its end"
    ):
        windows[0]


def _read_until_reported(reports):
    reported = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record):
            reports.append(record.getMessage())
            reported.set()

    handler, log = Handler(), logging.getLogger("fastlstm.data.retries")
    log.addHandler(handler)
    try:
        assert retries.read_with_retries(lambda: reported.wait(30), "shard_7.tar")
    finally:
        log.removeHandler(handler)


def test_a_read_that_hangs_is_reported_in_every_process(monkeypatch):
    monkeypatch.setattr(retries, "SLOW", 0.1)
    reports = []
    _read_until_reported(reports)
    said = r"shard_7\.tar: a read has not ended after \d+ s"
    assert len(reports) == 1 and re.fullmatch(said, reports[0])

    def child(queue):
        reports = []
        _read_until_reported(reports)
        queue.put(reports)

    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    (report,) = queue.get()
    assert re.fullmatch(said, report)
