"""Checkpoints in folders of shards: written together, replaced in one step, read by everything."""

import os
import pickle
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
import torch.distributed as dist
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import Recorder, run_settings, tiny_data, tiny_model, trainer

from fastlstm import CompositeLSTM
from fastlstm.cli import main
from fastlstm.files import read_checkpoint
from fastlstm.training import AtomicCheckpointIO, DDPWithShardedCheckpoints, StepSeeds, VideoTask
from fastlstm.training.run_folder import newest_checkpoint, remove, run_files

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here")


@pytest.fixture
def sharded(monkeypatch):
    """A strategy for one process, whose group of processes is gone afterwards."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    yield lambda **options: DDPWithShardedCheckpoints(process_group_backend="gloo", **options)
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def fit(folder, steps=6, **options):
    recorder = Recorder()
    saver = ModelCheckpoint(folder, "last", every_n_train_steps=2, enable_version_counter=False)
    t = trainer(
        folder,
        *(recorder, StepSeeds(0), saver),
        **{"max_steps": steps, "enable_checkpointing": True, "limit_val_batches": 0},
        use_distributed_sampler=False,
        **{name: value for name, value in options.items() if name != "ckpt_path"},
    )
    task = VideoTask(tiny_model(conditional_future=True), sampling=0.5)
    t.fit(task, datamodule=tiny_data(), ckpt_path=options.get("ckpt_path"))
    return recorder.losses


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_folder_has_what_a_file_has_and_is_read_as_one(tmp_path, sharded, asynchronous):
    losses = fit(tmp_path / "file")
    expected = read_checkpoint(tmp_path / "file" / "last.ckpt")
    strategy = sharded(asynchronous=asynchronous)
    assert fit(tmp_path / "shards", strategy=strategy, devices=1) == losses
    last = tmp_path / "shards" / "last.ckpt"
    found = AtomicCheckpointIO().load_checkpoint(last)
    assert found.keys() == expected.keys()
    for name in ("state_dict", "optimizer_states", "loops", "lr_schedulers"):
        assert str(found[name]) == str(expected[name]), name
    for name, value in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value), name
    # one folder is left, and the link to it; a run without the strategy resumes from it
    assert sorted(p.name for p in last.parent.iterdir()) == ["last.ckpt", os.readlink(last)]
    file = tmp_path / "file" / "last.ckpt"
    assert fit(tmp_path / "a", 8, ckpt_path=last) == fit(tmp_path / "b", 8, ckpt_path=file)


@pytest.mark.parametrize("name", ["rest.pt", ".distcp", ".metadata.tmp"])
def test_a_write_that_fails_is_one_error_and_the_checkpoint_before_stays(
    tmp_path, sharded, monkeypatch, name
):
    flush = os.fsync

    def fails(number):
        if os.readlink(f"/proc/self/fd/{number}").endswith(name):
            raise OSError("no space")
        flush(number)

    fit(tmp_path, 2, strategy=sharded(), devices=1)
    before = os.readlink(tmp_path / "last.ckpt")
    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match=r"cannot write .*last\.ckpt \(no space\); .* still whole"):
        fit(tmp_path, 4, strategy=sharded(), devices=1)
    assert os.readlink(tmp_path / "last.ckpt") == before
    read_checkpoint(tmp_path / "last.ckpt")


def test_fit_saves_in_shards_and_resumes_by_itself(tmp_path, sharded):
    settings = run_settings(tmp_path / "run")
    settings["trainer"]["strategy"] = {
        "class_path": "fastlstm.training.DDPWithShardedCheckpoints",
        "init_args": {"process_group_backend": "gloo", "timeout": "0:05:00"},
        "dict_kwargs": {"find_unused_parameters": True},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    words = ["fit", "--config", str(tmp_path / "config.yaml"), "--ckpt_path", "auto"]
    main([*words, "--trainer.devices", "1"])
    checkpoints = tmp_path / "run" / "checkpoints"
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 4
    assert (checkpoints / "best.ckpt").is_symlink()
    expected = CompositeLSTM.load(checkpoints / "model.safetensors").state_dict()
    found = CompositeLSTM.load(checkpoints / "best.ckpt").state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    with pytest.raises(FileNotFoundError, match="path: expected a safetensors file, got"):
        CompositeLSTM.load(checkpoints)
    main([*words, "--trainer.devices", "1", "--trainer.max_steps", "6"])
    assert read_checkpoint(checkpoints / "last.ckpt")["global_step"] == 6


class Harmful:
    def __reduce__(self):
        return (os.system, ("exit",))


def test_damaged_and_harmful_folders_are_one_error(tmp_path, sharded):
    fit(tmp_path, 2, strategy=sharded(), devices=1)
    last = tmp_path / "last.ckpt"
    (shard,) = last.glob("*.distcp")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="ckpt_path: expected a whole checkpoint"):
        AtomicCheckpointIO().load_checkpoint(last)
    shard.write_bytes(whole)
    AtomicCheckpointIO().load_checkpoint(last)
    (last / ".metadata").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match=r"a table of shards has no posix\.system"):
        AtomicCheckpointIO().load_checkpoint(last)
    (last / "rest.pt").unlink()
    with pytest.raises(ValueError, match=r"rest\.pt"):
        AtomicCheckpointIO().load_checkpoint(last)


def test_a_new_run_removes_folders_of_the_older_one(tmp_path):
    (tmp_path / "checkpoints" / "last.ckpt.12").mkdir(parents=True)
    (tmp_path / "checkpoints" / "last.ckpt.12" / "rest.pt").touch()
    (tmp_path / "checkpoints" / "last.ckpt.mine").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").symlink_to("last.ckpt.12")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoints" / "last.ckpt"
    remove(run_files(tmp_path), tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoints", "last.ckpt.mine"]


# Prints each step's loss and the beginning and end of a save. The first save takes 0.3 s at least,
# the others as long as the third argument says.
RUN = """
import itertools, sys, time, torch
torch.set_num_threads(1)
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import tiny_data, tiny_model, trainer
from fastlstm.sharded_checkpoint import LinkedWriter
from fastlstm.training import DDPWithShardedCheckpoints, StepSeeds, VideoTask
from fastlstm.training.callbacks.checkpoint import SameCheckpoint

folder, last, seconds = sys.argv[1:]
saves = itertools.count()
publish = LinkedWriter.finish

def slowly(writer, metadata, results):
    print("saves", flush=True)
    time.sleep(float(seconds) if next(saves) else 0.3)
    publish(writer, metadata, results)
    print("saved", flush=True)

LinkedWriter.finish = slowly

class Say(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        print(trainer.global_step, float(outputs["loss"]).hex(), flush=True)
        time.sleep(0.05)

saver = ModelCheckpoint(folder, "last", every_n_train_steps=4, enable_version_counter=False)
t = trainer(folder, Say(), StepSeeds(0), SameCheckpoint(), saver, max_steps=STEPS, devices=2,
            enable_checkpointing=True, limit_val_batches=0, use_distributed_sampler=False,
            strategy=DDPWithShardedCheckpoints(process_group_backend="gloo"))
task = VideoTask(tiny_model(conditional_future=True), sampling=0.5)
t.fit(task, datamodule=tiny_data(), ckpt_path=last or None)
""".strip()
STEPS = 60


class Processes:
    """Two processes of a run, which resumes if there is a checkpoint."""

    def __init__(self, folder, seconds=0.3):
        last = folder / "last.ckpt"
        resumed = last if last.exists() else ""
        words = [sys.executable, "-c", RUN.replace("STEPS", str(STEPS)), folder, resumed, seconds]
        here, port = os.path.dirname(__file__), str(free_port())
        common = {"PYTHONPATH": os.pathsep.join([here, *sys.path]), "MASTER_ADDR": "127.0.0.1"}
        self.processes = [
            subprocess.Popen(
                [str(word) for word in words],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | common | {"MASTER_PORT": port, "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]
        self.lines = []

    def wait_for(self, word, times):
        """Read what the first process prints, until it has printed a word some times."""
        while sum(line == word for line in self.lines) < times:
            line = self.processes[0].stdout.readline()
            assert line, self.processes[0].stderr.read()
            self.lines.append(line.strip())

    def kill(self):
        for process in self.processes:
            process.send_signal(signal.SIGKILL)
        self.finish(-signal.SIGKILL)

    def finish(self, status=0):
        outputs = [process.communicate() for process in self.processes]
        assert [p.returncode for p in self.processes] == [status] * 2, outputs[0][1]
        # the last line of a killed process may be incomplete
        self.lines += [line.strip() for line in outputs[0][0].splitlines(True) if line[-1] == "\n"]

    def losses(self):
        return dict(line.split() for line in self.lines if " " in line)


@pytest.mark.slow
def test_two_processes_that_are_killed_as_they_save_lose_nothing(tmp_path):
    whole = Processes(tmp_path / "whole")
    whole.finish()
    expected = whole.losses()
    assert sorted(map(int, expected)) == list(range(1, STEPS + 1))

    folder, found, moments = tmp_path / "killed", {}, random.Random(0)
    for kill in range(3):
        run = Processes(folder, seconds=0.3 if kill else 600)  # the first falls into the save
        run.wait_for("saves", times=2)
        before = os.readlink(folder / "last.ckpt")
        if kill:
            time.sleep(moments.uniform(0, 0.6))
        run.kill()
        if not kill:
            assert os.readlink(folder / "last.ckpt") == before
            assert len(list(folder.glob("last.ckpt.*"))) == 2, "no incomplete folder"
        print(kill, run.lines[-3:], sorted(path.name for path in folder.iterdir()))
        assert run.losses().items() <= expected.items()
        found |= run.losses()
    run = Processes(folder)
    run.finish()
    first = min(map(int, run.losses()))
    assert first > 4 and (first - 1) % 4 == 0
    assert (found | run.losses()) == expected
    assert len(list(folder.glob("last.ckpt.*"))) == 1
    assert len(list(folder.glob("last.ckpt/*.distcp"))) == 2, "one process wrote everything"
