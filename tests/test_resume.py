"""An interrupted run continues exactly; damaged checkpoints are refused."""

import os
import signal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import Recorder, checkpoint, tiny_data, tiny_model, trainer

from fastlstm import LSTMAutoencoder
from fastlstm.training import AtomicCheckpointIO, StopBetweenSteps, VideoTask
from fastlstm.training.datamodules.base import InfiniteBatchSampler
from fastlstm.training.datamodules.moving_mnist import time_first


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"limit_train_batches": 4, "check_val_every_n_epoch": None, "val_check_interval": 4},
    ],
    ids=["endless", "accumulating", "epochs of 4"],
)
def test_a_resumed_run_trains_on_the_same_videos_to_the_same_loss(tmp_path, options):
    def run(recorder, *callbacks, ckpt_path=None):
        task = VideoTask(tiny_model(), warmup_steps=2)
        t = trainer(tmp_path, recorder, *callbacks, limit_val_batches=0, **options)
        t.fit(task, datamodule=tiny_data(), ckpt_path=ckpt_path)
        return task.model.state_dict()

    whole, rest = Recorder(), Recorder()
    middle = tmp_path / "middle.ckpt"
    expected = run(whole, SaveAt(3, middle))
    resumed = run(rest, ckpt_path=middle)

    done = 3 * options.get("accumulate_grad_batches", 1)
    assert len(whole.videos) == 2 * done and len(rest.videos) == done
    assert len({v.tobytes() for v in whole.videos}) == len(whole.videos)  # fresh at every step
    np.testing.assert_array_equal(rest.videos, whole.videos[done:])
    assert rest.losses == whole.losses[done:]
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)


def test_a_finished_run_can_be_made_longer(tmp_path):
    def run(steps, recorder, ckpt_path=None):
        t = trainer(tmp_path, recorder, max_steps=steps, limit_val_batches=0)
        t.fit(
            VideoTask(tiny_model(), schedule="constant"),
            datamodule=tiny_data(),
            ckpt_path=ckpt_path,
        )
        t.save_checkpoint(tmp_path / "end.ckpt")

    whole, first, rest = Recorder(), Recorder(), Recorder()
    run(6, whole)
    run(3, first)
    run(6, rest, tmp_path / "end.ckpt")
    assert first.losses + rest.losses == whole.losses


class InterruptIn(Callback):
    """Sends Ctrl-C in the middle of a training step."""

    def __init__(self, batch):
        self.batch = batch
        self.batches = 0

    def on_after_backward(self, trainer, pl_module):
        self.batches += 1
        if self.batches == self.batch:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ctrl_c_finishes_the_step_and_leaves_a_checkpoint_to_resume_from(tmp_path, accumulate):
    def run(recorder, *callbacks, ckpt_path=None):
        last = ModelCheckpoint(
            tmp_path,
            "last",
            every_n_train_steps=100,
            save_on_exception=True,
            enable_version_counter=False,
        )
        options = {"limit_val_batches": 0, "accumulate_grad_batches": accumulate}
        t = trainer(tmp_path, recorder, last, *callbacks, enable_checkpointing=True, **options)
        t.fit(VideoTask(tiny_model()), datamodule=tiny_data(), ckpt_path=ckpt_path)

    whole, first, rest = Recorder(), Recorder(), Recorder()
    run(whole)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            run(first, StopBetweenSteps(), InterruptIn(3 * accumulate - (accumulate - 1)))
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores the signal from then on
    assert len(first.losses) == 3 * accumulate
    run(rest, ckpt_path=tmp_path / "last.ckpt")
    assert first.losses + rest.losses == whole.losses


def test_the_interrupt_handler_is_taken_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    t = trainer(tmp_path, StopBetweenSteps(), max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data())
    assert signal.getsignal(signal.SIGINT) is before


def test_a_crash_while_writing_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)

    def half(checkpoint, file):
        file.write(b"PK\x03\x04 half of it")
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(torch, "save", half)
        io.save_checkpoint(checkpoint(2), path)
    assert io.load_checkpoint(path) == checkpoint(1)
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    io.save_checkpoint(checkpoint(3), path)
    assert io.load_checkpoint(path) == checkpoint(3)
    assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_damaged_or_absent_checkpoint_is_named(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "x.ckpt"
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .*x\.ckpt is absent"):
        io.load_checkpoint(path)
    io.save_checkpoint(checkpoint(1, torch.zeros(1000)), path)
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"x\.ckpt of {len(damaged)} bytes"):
            io.load_checkpoint(path)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (tiny_model(num_layers=2), "num_layers=2 as configured, got num_layers=1"),
        (tiny_model(peephole=False), "peephole=False as configured, got peephole=True"),
        (tiny_model(LSTMAutoencoder), "class='LSTMAutoencoder' .* got class='CompositeLSTM'"),
    ],
)
def test_a_checkpoint_of_another_model_is_one_error(tmp_path, other, says):
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data())
    t.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=f"ckpt_path: .*{says}"):
        trainer(tmp_path).fit(
            VideoTask(other), datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt"
        )
    # how a run runs, and where it started, makes no difference to the weights
    options = {"backend": "reference", "readout_bias": -3.0, "checkpoint_every": 2}
    same = VideoTask(tiny_model(**options))
    trainer(tmp_path, limit_val_batches=0).fit(
        same, datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt"
    )


@pytest.mark.parametrize(
    ("data", "options", "says"),
    [
        ({}, {}, None),
        ({"val_size": 4, "num_workers": 0}, {}, None),
        ({"batch_size": 2}, {}, "batch_size was 4 and is 2"),
        ({"seed": 1}, {}, "seed was 0 and is 1"),
        ({}, {"accumulate_grad_batches": 2}, "accumulate_grad_batches was 1 and is 2"),
    ],
)
def test_a_run_that_resumes_with_other_data_goes_on_with_them_and_says_so(
    tmp_path, recwarn, data, options, says
):
    t = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data())
    t.save_checkpoint(tmp_path / "a.ckpt")
    recorder = Recorder()
    t = trainer(tmp_path, recorder, max_steps=3, limit_val_batches=0, **options)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data(**data), ckpt_path=tmp_path / "a.ckpt")
    said = [str(w.message) for w in recwarn if "resumes with" in str(w.message)]
    assert said == ([f"the run resumes with other training data ({says})"] if says else [])

    batches = InfiniteBatchSampler(data.get("batch_size", 4), lambda: 0)
    number = 2 * options.get("accumulate_grad_batches", 1)
    videos = tiny_data(**data)._training_videos().__getitems__(batches.batch(number))
    np.testing.assert_array_equal(recorder.videos[0], time_first(videos))
