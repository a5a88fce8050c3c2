"""A run that reads .tar shards or zarr stores resumes with the window after the checkpoint."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from shards import npy, write_tar
from tiny_training import trainer

import fastlstm
from fastlstm.training import FileSequenceData, SequenceTask

zarr = pytest.importorskip("zarr", minversion="3")


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = fastlstm.LSTM(3, 4)

    def losses(self, input, target, state, reset):
        y, state = self.lstm(input, state, reset=reset)
        return (y[..., :3] - target).square().mean(2), state


class Read(Callback):
    def __init__(self):
        self.found = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append((batch.number, float(outputs["loss"])))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["tar", "zarr"])
def test_a_resumed_run_reads_each_window_once(tmp_path, kind, workers):
    arrays = np.random.default_rng(0).random((12, 30, 3), np.float32)
    (tmp_path / "train").mkdir()
    for shard in range(3):
        some = {f"{i}.npy": npy(arrays[i]) for i in range(4 * shard, 4 * shard + 4)}
        if kind == "tar":
            write_tar(tmp_path / "train" / f"{shard}.tar", {**some, "notes.txt": b"left out"})
        else:
            store = zarr.create_group(tmp_path / "train" / f"{shard}.zarr")
            store.create_array("notes", data=np.arange(8))  # left out
            for name in some:
                data = arrays[int(name.split(".")[0])]
                store.create_array(name, data=data, chunks=(8, 3))

    def run(steps, ckpt_path=None):
        read, task = Read(), SequenceTask(Model(), schedule="constant")
        options = {"batch_size": 3, "k1": 6, "k2": 9, "members": "*.npy"}
        data = FileSequenceData(str(tmp_path), num_workers=workers, **options)
        one = trainer(tmp_path, read, max_steps=steps, limit_val_batches=0)
        one.fit(task, datamodule=data, ckpt_path=ckpt_path)
        one.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return read.found

    whole, first = run(24), run(7)  # an epoch has 19 windows
    assert first + run(24, tmp_path / "7.ckpt") == whole
    assert [number for number, _ in whole] == list(range(24))
