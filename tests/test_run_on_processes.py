"""What a run on many processes takes from torchrun, shares, and agrees on."""

import signal
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment as _Alone
from tiny_training import tiny_data, tiny_model, trainer

from fastlstm.training import StopBetweenSteps, StopOnNonFinite, VideoTask
from fastlstm.training.callbacks.checkpoint import SameCheckpoint
from fastlstm.training.commands.processes import counts_of_torchrun, share_batch
from fastlstm.training.resumption import changes


@pytest.fixture
def torchrun(monkeypatch):
    of_torchrun = {"TORCHELASTIC_RUN_ID": "1", "GROUP_WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "8"}
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, value)


DEFAULTS = {"num_nodes": 1, "devices": "auto"}


def test_torchrun_counts_hosts_and_processes(torchrun):
    assert counts_of_torchrun(DEFAULTS) == {"num_nodes": 3, "devices": 8}
    assert counts_of_torchrun(DEFAULTS | {"num_nodes": 2}) == {"devices": 8}
    assert counts_of_torchrun(DEFAULTS | {"devices": 4}) == {"num_nodes": 3}


def test_without_torchrun_lightning_counts(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert counts_of_torchrun(DEFAULTS) == {}


def test_a_batch_of_all_processes_is_shared_evenly():
    data, three = tiny_data(batch_size=5), SimpleNamespace(world_size=3)
    share_batch(None, data, three)
    assert data.batch_size == 5
    share_batch(12, data, three)
    assert data.batch_size == 4
    for wrong in (13, 0, -3):
        with pytest.raises(
            ValueError, match=f"global_batch_size: expected a multiple of .* 3, got {wrong}"
        ):
            share_batch(wrong, data, three)
    with pytest.raises(ValueError, match="a data module with batch_size, got SimpleNamespace"):
        share_batch(12, SimpleNamespace(), three)


def test_the_same_rows_on_other_processes_are_no_change():
    def options(batch_size, processes):
        return {"batch_size": batch_size, "number of processes": processes, "seed": 0}

    assert changes(options(4, 3), options(6, 2)) == ""
    assert changes(options(4, 3), options(4, 2)) == "number of processes was 3 and is 2"
    assert changes(options(4, 3), options(6, 2) | {"seed": 1}) == "seed was 0 and is 1"
    assert (
        changes({"number of processes": 3}, options(4, 2)) == "number of processes was 3 and is 2"
    )


def of_two_processes(step, first):
    """A stand-in for the trainer of process 1, while process 0 resumed at step ``first``."""
    strategy = SimpleNamespace(broadcast=lambda step: first)
    return SimpleNamespace(
        global_step=step,
        global_rank=1,
        world_size=2,
        accumulate_grad_batches=1,
        strategy=strategy,
    )


def test_processes_that_resumed_from_other_checkpoints_are_an_error():
    SameCheckpoint().on_train_start(of_two_processes(40, 40), None)
    with pytest.raises(RuntimeError, match="step 40, as in process 0, got that of step 20 in"):
        SameCheckpoint().on_train_start(of_two_processes(20, 40), None)


def test_several_processes_save_nothing_at_an_error(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_on_exception=True)
    alone, three = (SimpleNamespace(world_size=n, checkpoint_callbacks=[saver]) for n in (1, 3))
    StopBetweenSteps().setup(alone, None, "fit")
    assert saver.save_on_exception
    StopBetweenSteps().setup(three, None, "fit")
    assert not saver.save_on_exception
    stop, trainer = StopOnNonFinite(tmp_path), of_two_processes(7, 7)
    stop.on_train_batch_start(trainer, None, None, 0)
    with pytest.raises(FloatingPointError, match="an earlier step"):
        stop.on_before_backward(trainer, None, torch.tensor(float("nan")))
    assert not list(tmp_path.iterdir())


def test_torchruns_processes_end_at_once_on_sigterm(tmp_path, torchrun):
    class Ask(StopBetweenSteps):
        def on_train_batch_end(self, *args):
            self.handler = signal.getsignal(signal.SIGTERM)

    before, ask = signal.getsignal(signal.SIGTERM), Ask()
    t = trainer(tmp_path, ask, max_steps=1, limit_val_batches=0, plugins=[_Alone()])
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data())
    assert ask.handler is signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before
