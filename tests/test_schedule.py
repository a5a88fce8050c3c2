"""Schedules of a probability in words, and a run that follows one."""

import pytest
import yaml
from lightning.pytorch import Callback
from tiny_training import run_settings, tiny_data, tiny_model, trainer

from fastlstm.training import VideoTask
from fastlstm.training.commands.video import VideoCommand
from fastlstm.training.schedule import Ramp, parse_probability


@pytest.mark.parametrize(
    ("words", "values"),  # at steps 0, 10, 20, 40 and 100 of 100
    [
        ("0 to 1 over the first half", [0, 0.2, 0.4, 0.8, 1]),
        ("1 to 0.5 over the first quarter", [1, 0.8, 0.6, 0.5, 0.5]),
        ("0 to 1 over the first third", [0, 0.3, 0.6, 1, 1]),
        ("0 to 1 over the first 40%", [0, 0.25, 0.5, 1, 1]),
        ("0.1 to .9  over 12.5 %", [0.1, 0.74, 0.9, 0.9, 0.9]),
        ("0 to 1 over the first 20 steps", [0, 0.5, 1, 1, 1]),
        ("0 to 1 over 2000 steps", [0, 0.005, 0.01, 0.02, 0.05]),
    ],
)
def test_a_schedule_in_words(words, values):
    ramp = parse_probability("sampling", words)
    assert isinstance(ramp, Ramp)
    assert [ramp.at(step, 100) for step in (0, 10, 20, 40, 100)] == pytest.approx(values)


@pytest.mark.parametrize("value", [0, 0.25, 1, "0.25", " 1 ", "0"])
def test_a_number(value):
    assert parse_probability("sampling", value) == float(value)


@pytest.mark.parametrize(
    "words",
    [
        "",
        "half",
        "0 to 1",
        "0 to 1 over the first fifth",
        "0 to 1 over the first 0%",
        "0 to 1 over the first 101%",
        "0 to 1 over the first 0 steps",
        "0 to 2 over the first half",
        "nan to 1 over the first half",
        "0 to 1 over the first half of the run",
    ],
)
def test_other_words_are_refused(words):
    with pytest.raises(ValueError, match=r"sampling: expected a .* got") as refused:
        VideoTask(tiny_model(), sampling=words)
    assert repr(words) in str(refused.value)


@pytest.mark.parametrize("value", [-0.5, "1.5", float("nan")])
def test_a_number_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=rf"sampling: expected .*, got {value}"):
        VideoTask(tiny_model(), sampling=value)


def test_the_factor_is_checked():
    with pytest.raises(ValueError, match=r"feedback_gradient: expected a factor in 0\.\.1, got 2"):
        VideoTask(tiny_model(), feedback_gradient=2)


class Sampling(Callback):
    def __init__(self):
        self.logged = []

    def on_train_batch_end(self, trainer, *_):
        self.logged.append(float(trainer.callback_metrics["train/sampling"]))


def test_a_run_follows_the_schedule_and_resumes_in_it(tmp_path):
    used = []

    def task():
        model = tiny_model(conditional_future=True)
        loss = model.loss
        model.loss = lambda *video, **options: used.append(options) or loss(*video, **options)
        return VideoTask(model, sampling="0 to 1 over the first half", feedback_gradient=0.5)

    def run(steps, ckpt_path=None):
        record = Sampling()
        runs = trainer(tmp_path, record, max_steps=steps, limit_val_batches=0)
        runs.fit(task(), datamodule=tiny_data(), ckpt_path=ckpt_path)
        return runs, record.logged

    first, logged = run(2)
    assert logged == [0.0, 1.0]  # half of two steps is one
    assert [options["sampling"] for options in used] == logged
    assert used[0]["feedback_gradient"] == 0.5
    first.save_checkpoint(tmp_path / "two.ckpt")
    assert run(8, tmp_path / "two.ckpt")[1] == [0.5, 0.75, 1, 1, 1, 1]


@pytest.mark.parametrize("value", [0.5, "0.5", "0 to 1 over the first 2 steps"])
def test_a_configuration_has_a_number_or_words(tmp_path, quiet_command_line, value):
    settings = run_settings(tmp_path)
    settings["model"] |= {"sampling": value, "feedback_gradient": 0.5}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(settings))
    words = ["fit", "--config", str(tmp_path / "fit.yaml"), "--trainer.fast_dev_run=1"]
    task = VideoCommand(words).model
    assert task.sampling == parse_probability("sampling", value)
    assert task.feedback_gradient == 0.5
