"""The command with two processes has the losses of one at the same global batch, and resumes."""

import csv
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import yaml
from language_example import FOLDER
from tiny_training import run_settings

pytestmark = [
    pytest.mark.slow,  # it starts seven processes, which import Lightning
    pytest.mark.skipif(not dist.is_gloo_available(), reason="torch has no gloo here"),
]


def run_python(*words):
    """Return what Python printed, to either stream."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def fit(run, text, devices, batch_size, *more):
    words = ["fit", "--run", str(run), "--data", "fastlstm.training.TextData"]
    words += ["--data.folder", str(text), "--data.k1", "6", "--data.batch_size", str(batch_size)]
    words += ["--model.model", "fastlstm.ByteLSTM", "--model.model.hidden_size", "8"]
    words += ["--model.schedule", "constant", "--trainer.devices", str(devices)]
    words += ["--trainer.accelerator", "cpu", "--trainer.limit_val_batches", "1"]
    words += ["--trainer.limit_test_batches", "1", "--trainer.log_every_n_steps", "1"]
    words += ["--trainer.enable_progress_bar", "false", *more]
    if devices > 1:
        words += ["--trainer.strategy", "ddp"]
    run_python(FOLDER / "train.py", *words)
    losses = {}
    for path in sorted((run / "metrics").glob("version_*/metrics.csv")):
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
        losses |= {int(row["step"]): float(row["train/loss"]) for row in rows}
    weights = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return losses, weights


def test_two_processes_train_as_one_and_resume(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"{number} " * 20)
    _, expected = fit(tmp_path / "one", text, 1, 4, "--trainer.max_steps", "8")
    _, whole = fit(tmp_path / "two", text, 2, 2, "--trainer.max_steps", "8")
    for name, value in expected.items():
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-6)
    fit(tmp_path / "cut", text, 2, 2, "--trainer.max_steps", "3")
    last = ("--ckpt_path", "last")
    _, resumed = fit(tmp_path / "cut", text, 2, 2, "--trainer.max_steps", "8", *last)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_two_processes_log_the_errors_of_all_videos_and_print_them_once(tmp_path):
    said = {}
    for devices, batch_size in ((1, 2), (2, 1)):
        settings = run_settings(tmp_path / f"{devices}")
        settings["trainer"] |= {"devices": devices, "strategy": "ddp" if devices > 1 else "auto"}
        settings["data"]["init_args"]["batch_size"] = batch_size
        config = tmp_path / f"{devices}.yaml"
        config.write_text(yaml.safe_dump(settings))
        said[devices] = run_python("-m", "fastlstm.cli", "fit", "--config", config)
    assert "sync_dist" not in said[2]
    for label in ("reconstruction ", "future, closed loop ", "copy last "):
        (expected,), lines = (
            [line for line in said[devices].splitlines() if label in line] for devices in said
        )
        assert len(lines) == 1
        torch.testing.assert_close(
            float(lines[0].split()[-1]), float(expected.split()[-1]), rtol=1e-3, atol=0.1
        )
