"""Data that a run needs and does not have raise one error before the first step."""

import gzip
import runpy
import struct

import numpy as np
import pytest
import torch
from language_example import FOLDER, LanguageCommand
from lightning.pytorch import Callback
from tiny_training import tiny_data, tiny_model, trainer

from fastlstm.training import FileSequenceData, SequenceTask, VideoTask
from fastlstm.training.callbacks.first_batches import FirstBatches


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


def words(run, data, *further):
    settings = {
        "run": run,
        "model.model": "fastlstm.ByteLSTM",
        "model.model.hidden_size": 8,
        "data": f"fastlstm.training.{data}",
        "data.batch_size": 4,
        "data.k1": 16,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": False,
        "trainer.accelerator": "cpu",
    }
    return ["fit", *(f"--{name}={value}" for name, value in settings.items()), *further]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "input.txt"
    path.write_bytes(np.random.default_rng(0).integers(97, 123, 3000, np.uint8).tobytes())
    return path


def test_one_text_is_trained_on_tested_and_reported(tmp_path, text, capsys):
    command = LanguageCommand(words(tmp_path / "run", "TextData", f"--data.folder={text}"))
    assert command.trainer.global_step == 2
    said = capsys.readouterr().out
    bits = float(command.trainer.callback_metrics["test/error"]) / np.log(2)
    assert f"{bits:.3f}" in said and "Held-out text" in said
    assert (tmp_path / "run" / "figures" / "report.png").is_file()


class Steps(Callback):
    def __init__(self):
        self.steps = 0

    def on_train_batch_start(self, *args):
        self.steps += 1


def write(folder, **splits):
    """Write a folder for FileSequenceData; the array of each split is a file."""
    for split, array in splits.items():
        (folder / split).mkdir(parents=True)
        np.save(folder / split / "a.npy", array)
    return folder


class Squares(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.readout = torch.nn.Linear(3, 3)

    def losses(self, input, target, state, reset):
        return (self.readout(input) - target).square().mean(-1), state


LONG = np.ones((200, 3), np.float32)


@pytest.mark.parametrize(
    ("splits", "error", "says"),
    [
        ({"train": LONG, "val": LONG}, FileNotFoundError, "path: .*/test is absent"),
        ({"train": LONG, "test": LONG}, FileNotFoundError, "path: .*/val is absent"),
        (
            {"train": LONG, "val": LONG, "test": LONG[:3]},
            ValueError,
            "data: the test split cannot be read .* at least 4 steps in all, .* got 2",
        ),
        (
            {"train": LONG, "val": LONG, "test": LONG[:, :2]},
            ValueError,
            "data: expected steps of one dtype and shape in all splits, .* in test",
        ),
        (
            {"train": LONG, "val": LONG, "test": LONG.astype(np.float64)},
            ValueError,
            r"float64.*in test",
        ),
        ({"train": LONG[:, :2], "val": LONG, "test": LONG}, ValueError, "in train"),
    ],
)
def test_sequences_that_a_split_lacks(tmp_path, splits, error, says):
    data = FileSequenceData(str(write(tmp_path / "data", **splits)), batch_size=4, k1=16)
    steps = Steps()
    run = trainer(tmp_path, FirstBatches(), steps, max_steps=2, val_check_interval=2)
    with pytest.raises(error, match=says):
        run.fit(SequenceTask(Squares()), datamodule=data)
    assert steps.steps == 0


def test_what_no_one_asks_for_may_be_absent(tmp_path):
    folder = str(write(tmp_path / "data", train=LONG))
    for limits in (
        {"limit_val_batches": 0, "limit_test_batches": 0},
        {"limit_val_batches": 0.0, "limit_test_batches": 0.0},
    ):
        run = trainer(tmp_path, FirstBatches(), max_steps=2, **limits)
        run.fit(SequenceTask(Squares()), datamodule=FileSequenceData(folder, batch_size=4, k1=16))
        assert run.global_step == 2


def test_test_digits_that_are_absent_are_missed_before_training(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (24, 28, 28), np.uint8)
    header = struct.pack(">4I", 0x803, *images.shape)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(header + images.tobytes()))
    steps, data = Steps(), tiny_data(digits=str(tmp_path))
    with pytest.raises(ValueError, match="expected t10k-images-idx3-ubyte"):
        trainer(tmp_path, FirstBatches(), steps).fit(VideoTask(tiny_model()), datamodule=data)
    assert steps.steps == 0


def test_looking_changes_no_random_number(tmp_path):
    def run(*callbacks):
        torch.manual_seed(3)
        trainer(tmp_path, *callbacks, max_steps=1, limit_val_batches=0).fit(
            VideoTask(tiny_model()), datamodule=tiny_data()
        )
        return torch.rand(1).item(), np.random.rand()

    np.random.seed(0)
    expected = run()
    np.random.seed(0)
    assert run(FirstBatches()) == expected


def test_the_command_says_one_sentence_and_no_traceback(tmp_path, monkeypatch):
    folder = write(tmp_path / "data", train=LONG, val=LONG)
    more = words(tmp_path / "run", "FileSequenceData", f"--data.folder={folder}")
    monkeypatch.setattr("sys.argv", ["train.py", *more])
    monkeypatch.setattr("fastlstm.cli.tune_process", lambda: None)  # would outlast this test
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(str(FOLDER / "train.py"), run_name="__main__")
    assert str(refused.value) == (
        f"fastlstm: path: expected a file or a folder, {folder / 'test'} is absent"
    )


def test_bytes_are_what_a_model_of_bytes_reads(tmp_path):
    folder = write(tmp_path / "data", train=LONG[:, 0], val=LONG[:, 0], test=LONG[:, 0])
    with pytest.raises(ValueError, match=r"input: expected bytes, .* got \(16, 4\) of float32"):
        LanguageCommand(words(tmp_path / "run", "FileSequenceData", f"--data.folder={folder}"))
