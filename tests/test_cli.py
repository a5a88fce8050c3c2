"""The command trains, resumes, tests and predicts from YAML; errors are one line."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_training import SIDE, run_settings

from fastlstm.cli import info, main
from fastlstm.training.commands.video import VideoCommand

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("quiet_command_line")


@pytest.fixture
def config(tmp_path):
    """The path of a configuration of four steps of a tiny model."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run_settings(tmp_path / "run")))
    return str(path)


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_leaves_its_results_and_can_be_tested_and_predicted_from(config, tmp_path, capsys):
    run = tmp_path / "run"
    main(["fit", "--config", config])
    said = capsys.readouterr().out
    for line in (
        "reconstruction",
        "future, teacher-forced",
        "future, closed loop",
        "mean frame",
        "copy last",
        "training sequences/s",
        str(run / "figures" / "step_000004.gif"),
    ):
        assert line in said
    assert {p.name for p in (run / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "model.safetensors",
    }
    assert {p.name for p in (run / "figures").iterdir()} == {
        f"step_00000{step}.{kind}" for step in (2, 4) for kind in ("png", "gif")
    }
    assert list(run.glob("events.out.tfevents*"))
    with (run / "metrics" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for stage, rows_of_it in (("train", 4), ("val", 2), ("test", 1)):
        totals = [float(row[f"{stage}/total"]) for row in rows if row[f"{stage}/total"]]
        assert len(totals) == rows_of_it
        assert np.isfinite(totals).all()

    saved = (run / "config.yaml").read_text()
    main(["test", "--config", config])
    assert f"{float(rows[-1]['test/total']):.3f}"[:6] in capsys.readouterr().out  # same weights
    main(["predict", "--config", config, "--data.future_frames", "7"])
    assert f"wrote {run / 'predictions' / 'batch_000.npz'}" in capsys.readouterr().out
    assert np.load(run / "predictions" / "batch_000.npz")["prediction"].shape == (7, 2, SIDE**2)
    with Image.open(run / "predictions" / "batch_000.gif") as gif:
        assert gif.n_frames == 2 + 7
    assert (run / "config.yaml").read_text() == saved

    with pytest.raises(ValueError, match="run: expected a folder without a run in it"):
        main(["fit", "--config", config])
    with pytest.raises(ValueError, match="hidden_size=5 as configured, got hidden_size=4"):
        main(["test", "--config", config, "--model.model.hidden_size", "5"])


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(config, tmp_path):
    main(["fit", "--config", config])
    main(["fit", "--config", config, "--run", str(tmp_path / "b"), "--trainer.max_steps", "2"])
    part = tmp_path / "b" / "checkpoints" / "last.ckpt.part"
    part.write_bytes(b"half a checkpoint")  # what a crash while saving would leave
    main(["fit", "--config", config, "--run", str(tmp_path / "b"), "--ckpt_path", "last"])
    a, b = weights(tmp_path / "run"), weights(tmp_path / "b")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not part.exists()  # saving again took its place


def test_a_run_without_a_test_ends_well(config, tmp_path):
    main(["fit", "--config", config, "--trainer.limit_test_batches", "0"])
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


def test_a_missing_checkpoint_is_named(config, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .*/best\.ckpt is absent"):
        main(["test", "--config", config])


SMALL = [
    *("--model.model.hidden_size", "4"),
    *("--data.batch_size", "2"),
    *("--data.val_size", "2"),
    *("--data.num_workers", "0"),
    *("--baselines.sample", "8"),
    *("--trainer.fast_dev_run", "1"),
    *("--trainer.accelerator", "cpu"),
    *("--trainer.enable_progress_bar", "false"),
    *("--trainer.enable_model_summary", "false"),
]


@pytest.mark.parametrize(
    ("name", "conditional"), [("demo", False), ("paper", True), ("paper_cpu", False)]
)
def test_the_packaged_configurations_run(tmp_path, name, conditional):
    command = VideoCommand(["fit", "--config", name, *SMALL, "--run", str(tmp_path)])
    trained = command.model.model
    assert type(trained).__name__ == "CompositeLSTM"
    assert trained.config["conditional_future"] is conditional
    assert trained.config["peephole"] is True
    assert command.trainer.global_step == 1


def test_info_tells_versions_and_why_a_backend_is_not_taken(capsys):
    main(["info"])
    said = capsys.readouterr().out
    assert said.strip() == info()
    assert torch.__version__.split("+")[0] in said
    assert "has no peephole" in said
    with pytest.raises(SystemExit, match="expected no arguments, got --all"):
        main(["info", "--all"])


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (["nonsense"], "got 'nonsense'"),
        (["clasify", "fit"], "got 'clasify': did you mean 'classify'?"),
        (["experiments"], "got 'experiments': did you mean 'experiment'?"),
    ],
)
def test_an_unknown_command_is_told_all_of_them(words, got):
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert str(refused.value) == (
        "fastlstm: expected a command, one of fit, validate, test, predict, classify, experiment,"
        f" configs, bench, plan, info; {got}"
    )


def test_language_tells_where_the_example_is(capsys):
    with pytest.raises(SystemExit) as refused:
        main(["language", "fit", "--config", "configs/language.yaml"])
    assert refused.value.code == 2
    (said,) = capsys.readouterr().err.splitlines()
    script, _, _, config = said.partition("python ")[2].split()
    for file in (script, config):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize(
    ("in_file", "words", "expected"),
    [
        ("save_every", [], 3),
        ("checkpoint_every", [], 3),
        ("checkpoint_every", ["--save_every", "2"], 2),
        ("checkpoint_every", ["--checkpoint_every=2"], 2),
        ("save_every", ["--checkpoint_every", "2"], 2),
    ],
)
def test_steps_between_saves_by_their_old_name_too(tmp_path, in_file, words, expected):
    settings = run_settings(tmp_path / "run")
    del settings["save_every"]
    settings |= {in_file: 3}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(settings))
    command = VideoCommand(["fit", "--config", str(tmp_path / "c.yaml"), *words])
    (last,) = [c for c in command.trainer.checkpoint_callbacks if c.filename == "last"]
    assert last._every_n_train_steps == expected
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["save_every"] == expected and "checkpoint_every" not in saved


def test_an_error_of_this_package_is_one_sentence_and_others_keep_their_traceback(
    tmp_path, monkeypatch
):
    (tmp_path / "own.py").write_text(
        "import fastlstm\n"
        "class Own(fastlstm.CompositeLSTM):\n"
        "    def __init__(self, input_size: int, hidden_size: int):\n"
        "        raise ValueError('of my own')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sizes = ("--model.model.input_size=4", "--data=fastlstm.training.MovingMNISTData")

    def run(*more):  # as the process of the command does: main reads its words
        monkeypatch.setattr("sys.argv", ["fastlstm", "fit", f"--run={tmp_path}/run", *sizes, *more])
        main()

    with pytest.raises(SystemExit) as refused:
        run("--model.model=fastlstm.CompositeLSTM", "--model.model.hidden_size=0")
    assert str(refused.value) == "fastlstm: hidden_size: expected at least 1, got 0"
    with pytest.raises(ValueError, match=r"^of my own$") as kept:
        run("--model.model=own.Own", "--model.model.hidden_size=4")
    assert kept.traceback[-1].path == tmp_path / "own.py"
