"""NaN losses, full disks, missing folders and killed processes."""

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from lightning.pytorch import Callback
from tiny_training import Recorder, checkpoint, tiny_data, tiny_model, trainer

from fastlstm.training import AtomicCheckpointIO, StepSeeds, StopOnNonFinite, VideoTask


class Poison(Callback):
    """Make the loss of one step NaN."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            loss = pl_module.model.loss

            def poisoned(*args, **options):
                found = loss(*args, **options)
                return found._replace(total=found.total * float("nan"))

            pl_module.model.loss = poisoned


def test_a_loss_that_is_no_number_stops_with_the_weights_before_it(tmp_path):
    task, before = VideoTask(tiny_model()), {}

    class Keep(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            before.update({k: v.clone() for k, v in pl_module.state_dict().items()})

    t = trainer(tmp_path, Keep(), Poison(2), StopOnNonFinite(tmp_path), limit_val_batches=0)
    with pytest.raises(FloatingPointError) as caught:
        t.fit(task, datamodule=tiny_data())
    path = tmp_path / "nonfinite_step_2.ckpt"
    assert str(caught.value) == (
        "loss: expected a finite number, got nan at step 2, batch 2 (videos 8 to 11); the weights"
        f" that gave it are in {path}"
    )
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    recorder = Recorder()  # and the run can be resumed with the very batch
    t = trainer(tmp_path, recorder, limit_val_batches=0)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data(), ckpt_path=path)
    assert len(recorder.losses) == 4


def test_a_full_disk_is_one_error_and_the_checkpoint_before_stays(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(checkpoint(1), path)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(
            OSError, match=r"cannot write .*last\.ckpt .* one before is still whole"
        ):
            io.save_checkpoint({"weights": torch.zeros(100_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert io.load_checkpoint(path) == checkpoint(1)
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"checkpoint: cannot write .*there is none before"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "taken" / "last.ckpt")


def test_random_numbers_of_a_step_do_not_depend_on_what_was_drawn_before(tmp_path):
    class Draw(Callback):
        def __init__(self):
            self.drawn = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.drawn.append((torch.rand(1).item(), random.random()))

    def run(*before, **options):
        draw = Draw()
        t = trainer(tmp_path, StepSeeds(3), draw, *before, limit_val_batches=1, **options)
        t.fit(VideoTask(tiny_model()), datamodule=tiny_data())
        return draw.drawn

    expected = run()
    torch.manual_seed(99)
    often = run(check_val_every_n_epoch=None, val_check_interval=2)
    assert often == expected
    assert len(set(expected)) == len(expected) == 6
    with pytest.raises(ValueError, match="seed: expected at least 0, got -1"):
        StepSeeds(-1)


# Prints each step's loss; saves every third. Dropout and scheduled sampling draw random numbers.
RUN = """
import sys, torch
torch.set_num_threads(1)
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_training import tiny_data, tiny_model, trainer
from fastlstm.training import StepSeeds, VideoTask

class Say(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        print(trainer.global_step, float(outputs["loss"]).hex(), flush=True)

folder, last = sys.argv[1:]
saver = ModelCheckpoint(folder, "last", every_n_train_steps=3, enable_version_counter=False)
t = trainer(folder, Say(), StepSeeds(0), saver, max_steps=STEPS, enable_checkpointing=True,
            limit_val_batches=1, check_val_every_n_epoch=None, val_check_interval=4)
task = VideoTask(tiny_model(conditional_future=True), sampling=0.5)
t.fit(task, datamodule=tiny_data(), ckpt_path=last or None)
""".strip()


def _start(folder, steps):
    last = folder / "last.ckpt"
    here = os.path.dirname(__file__)
    code = RUN.replace("STEPS", str(steps))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), str(last) if last.exists() else ""],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([here, *sys.path])},
    )


def _losses(lines):
    return dict(line.split() for line in lines if line.count(" ") == 1 and line.endswith("\n"))


@pytest.mark.parametrize(
    "kills", [pytest.param(2, id="2"), pytest.param(10, marks=pytest.mark.slow, id="10")]
)
def test_a_killed_run_resumes_to_the_same_losses_to_the_bit(tmp_path, kills):
    steps = 20 * kills
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    out, err = _start(whole, steps).communicate()
    expected = _losses(out.splitlines(keepends=True))
    assert len(expected) == steps, err
    moments, found = random.Random(kills), {}
    for _ in range(kills):
        run = _start(killed, steps)
        lines = [run.stdout.readline()]  # wherever it is a little later: in a step, in a save
        wait = moments.uniform(0, 0.4)
        time.sleep(wait)
        run.send_signal(signal.SIGKILL)
        lines += run.communicate()[0].splitlines(keepends=True)
        for step, loss in _losses(lines).items():
            assert loss == expected[step], f"step {step}, killed {wait:.2f} s after a step"
        found |= _losses(lines)
    run = _start(killed, steps)
    out, err = run.communicate()
    assert run.returncode == 0, err
    found |= _losses(out.splitlines(keepends=True))
    assert found == expected
