"""A file of 50 GB trains in flat memory; killed and resumed, a run reads each window once."""

import json
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
from shards import npy, write_tar

from fastlstm.data import NumpySequence

SIZES = WINDOWS, BATCH, STEPS, PIXELS, SAVE_EVERY = 10_000, 16, 40, 4096, 250
FRAMES = 12_800_001  # 52.4 GB of bytes, of which these windows read half
FLAT = 32 * 2**20  # bytes; a window has 2.6 MB, so that 9,000 kept ones would be 24 GB

# Prints the number of each window that is trained on and, every 500, the memory of the process and
# of its worker. The model counts the windows in a buffer, which checkpoints hold.
RUN = """
import json, os, sys, torch, psutil
torch.set_num_threads(1)
from pathlib import Path
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import fastlstm
from fastlstm.data import open_sequences
from fastlstm.training import AtomicCheckpointIO, SequenceData, SequenceTask, Throughput

file, folder, last = sys.argv[1:4]
WINDOWS, BATCH, STEPS, PIXELS, SAVE_EVERY = map(int, sys.argv[4:])

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = fastlstm.LSTM(PIXELS // 64, 4)
        self.register_buffer("times_read", torch.zeros(WINDOWS + 1, dtype=torch.int64))

    def losses(self, input, target, state, reset):
        y, state = self.lstm(input[..., ::64] / 255, state, reset=reset)
        return (y.mean(2) - target[..., 0] / 255) ** 2, state

class Data(SequenceData):
    def sequences(self, split):
        return open_sequences(file), None

def memory():
    found = {"anonymous": 0, "resident": 0, "read": 0}
    for process in (psutil.Process(), *psutil.Process().children()):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines)
        found["anonymous"] += int(status["RssAnon"].split()[0]) * 1024
        found["resident"] += int(status["VmRSS"].split()[0]) * 1024
        found["read"] += process.io_counters().read_chars
    return found

class Say(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module.model.times_read[batch.number] += 1
        found = memory() if trainer.global_step % 500 == 0 else {}
        loss = float(outputs["loss"]).hex()
        print(json.dumps({"window": batch.number, "loss": loss, **found}), flush=True)

saver = ModelCheckpoint(
    folder, "last", every_n_train_steps=SAVE_EVERY, enable_version_counter=False
)
trainer = Trainer(
    accelerator="cpu", max_epochs=-1, max_steps=WINDOWS, default_root_dir=folder,
    callbacks=[Say(), Throughput("frames", lambda w: w.input.shape[0] * w.input.shape[1]), saver],
    plugins=[AtomicCheckpointIO()], logger=False, limit_val_batches=0,
    enable_progress_bar=False, enable_model_summary=False,
)
torch.manual_seed(0)
task = SequenceTask(Model(), lambda p: torch.optim.SGD(p, lr=0.01), schedule="constant")
trainer.fit(task, Data(batch_size=BATCH, k1=STEPS, num_workers=1), ckpt_path=last or None)
counts = task.model.times_read[:WINDOWS]
metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
print(json.dumps({"least": int(counts.min()), "most": int(counts.max()), **metrics}))
""".strip()


def _start(file, folder, sizes):
    last = folder / "last.ckpt"
    words = [file, folder, last if last.exists() else "", *sizes]
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, words)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _run(file, folder, sizes, kill_at=None):
    """Return what a run prints, until the end or until it is killed after a window."""
    run, lines = _start(file, folder, sizes), []
    for line in run.stdout:
        lines.append(json.loads(line))
        if kill_at is not None and lines[-1]["window"] == kill_at:
            run.send_signal(signal.SIGKILL)
            break
    run.communicate()
    assert run.returncode == (0 if kill_at is None else -signal.SIGKILL)
    return lines


def _sparse_file(path):
    """A ``.npy`` file of zeros that takes no space, except for the last frame, of 7."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (FRAMES, PIXELS)}
        np.lib.format.write_array_header_1_0(file, header)
        file.seek(FRAMES * PIXELS - PIXELS, os.SEEK_CUR)
        file.write(bytes([7]) * PIXELS)


@pytest.mark.slow
def test_fifty_gigabytes_in_flat_memory_each_window_once(tmp_path):
    path = tmp_path / "frames.npy"
    _sparse_file(path)
    assert path.stat().st_size > 50e9 and path.stat().st_blocks * 512 < 1e6
    assert NumpySequence(path)[FRAMES - 2 :].mean(1).tolist() == [0, 7]

    kill_at = random.Random(0).randrange(4000, 6000)
    killed = _run(path, tmp_path, SIZES, kill_at)
    *resumed, counts = _run(path, tmp_path, SIZES)

    # after the last checkpoint before the kill comes the window after it, and so on to the end
    first = resumed[0]["window"]
    assert kill_at - SAVE_EVERY <= first <= kill_at + 1 and first % SAVE_EVERY == 0
    assert [line["window"] for line in killed] == list(range(kill_at + 1))
    assert [line["window"] for line in resumed] == list(range(first, WINDOWS))
    assert (counts["least"], counts["most"]) == (1, 1)

    memory = {line["window"] + 1: line for line in killed + resumed if "resident" in line}
    print(json.dumps({"killed at": kill_at, "first": first, **counts, "memory": memory}, indent=1))
    for kind in ("anonymous", "resident"):
        after = [found[kind] for window, found in memory.items() if window >= 1000]
        assert max(after) - memory[1000][kind] < FLAT, kind
    read = memory[WINDOWS]["read"]  # of the second process and its worker
    assert read > (WINDOWS - first) * BATCH * STEPS * PIXELS


def _arrays():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, (1000, 64), np.uint8) for _ in range(6)]


def _tar(path):
    write_tar(path, {f"{number}.npy": npy(array) for number, array in enumerate(_arrays())})


def _zarr(path):
    zarr = pytest.importorskip("zarr", minversion="3")
    store = zarr.create_group(path)
    for number, array in enumerate(_arrays()):
        store.create_array(f"{number}", data=array, chunks=(16, 64))


@pytest.mark.slow
@pytest.mark.parametrize("write", [_tar, _zarr])
def test_killed_runs_of_shards_resume_to_the_same_losses(tmp_path, write):
    file, sizes = tmp_path / "shards", (120, 4, 16, 64, 10)
    write(file)
    *whole, counts = _run(file, tmp_path / "whole", sizes)
    assert (counts["least"], counts["most"]) == (1, 1)
    found, folder = {}, tmp_path / "killed"
    for kill_at in (25, 61, 90):
        found |= {line["window"]: line["loss"] for line in _run(file, folder, sizes, kill_at)}
    *rest, counts = _run(file, folder, sizes)
    assert (counts["least"], counts["most"]) == (1, 1)
    found |= {line["window"]: line["loss"] for line in rest}
    assert found == {line["window"]: line["loss"] for line in whole}
