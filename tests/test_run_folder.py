"""A new run's folder has nothing of an older run, and files that are no run's are kept."""

import json

import numpy as np
import pytest
import torch
import yaml
from language_example import LanguageCommand, read_curve
from lightning.pytorch.plugins.environments import SLURMEnvironment
from tiny_training import run_settings

from fastlstm import ByteLSTM
from fastlstm.cli import main
from fastlstm.experiments import runs
from fastlstm.training.run_folder import remove, results, run_files

pytestmark = pytest.mark.usefixtures("quiet_command_line")


@pytest.fixture
def command(tmp_path):
    """Call ``fastlstm`` with these settings for tmp_path/run."""
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(run_settings(tmp_path / "run")))

    def call(word, *words):
        main([word, "--config", str(path), *words])

    return call


WITHOUT_VALIDATION = ("--trainer.limit_val_batches", "0", "--trainer.max_steps", "1")


def files(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


def test_overwriting_removes_all_of_the_older_run_and_nothing_else(command, tmp_path, capsys):
    run = tmp_path / "run"
    command("fit")
    command("predict", "--trainer.limit_predict_batches", "2")
    (run / "checkpoints" / "nonfinite_step_3.ckpt").write_bytes(b"")
    (run / "hpc_ckpt_1.ckpt").write_bytes(b"")
    (run / "checkpoints" / "last.ckpt.part").write_bytes(b"")
    (run / "checkpoints" / ".model.safetensors.7.unfinished").write_bytes(b"")
    (run / "finished.json").write_text("{}")
    of_a_run = files(run)
    assert len(of_a_run) == 23
    mine = {
        "notes.txt",
        "model.safetensors",
        "checkpoints/last_good.ckpt",
        "figures/step_000004_shown.png",
        "figures/step_by_step.png",
        "predictions/batch_of_mine.npz",
        "metrics/summary.csv",
        "data/batch_000.npz",
        "metrics/version_0/plot.png",
    }
    for name in mine:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text(name)
    capsys.readouterr()
    command("fit", "--overwrite", "true", *WITHOUT_VALIDATION)
    said = capsys.readouterr().out
    assert "weights of the last step" in said and "figure" not in said
    left = files(run) - mine
    events = {name for name in left if name.startswith("events.out.tfevents.")}
    assert len(events) == 2 and not events & of_a_run
    assert left - events - {"hparams.yaml"} == {
        "config.yaml",
        "checkpoints/last.ckpt",
        "checkpoints/model.safetensors",
        "metrics/version_1/metrics.csv",
    }
    for name in mine:
        assert (run / name).read_text() == name
    assert step_of(run / "checkpoints" / "last.ckpt") == 1
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt is absent"):
        command("predict")


@pytest.mark.parametrize("left", ["best", "last", "figures", "metrics"])
def test_a_run_is_refused_where_results_of_another_are(command, tmp_path, left):
    run = tmp_path / "run"
    kept = {
        "best": run / "checkpoints" / "best.ckpt",
        "last": run / "checkpoints" / "last.ckpt",
        "figures": run / "figures" / "step_000004.gif",
        "metrics": run / "metrics" / "version_0" / "metrics.csv",
    }[left]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"what took ten hours")
    with pytest.raises(ValueError) as caught:
        command("fit")
    assert str(caught.value) == (
        f"run: expected a folder without a run in it, got {run} with {kept}; resume it with"
        " --ckpt_path last, take another --run, or give --overwrite true"
    )
    assert files(tmp_path / "run") == {kept.relative_to(run).as_posix()}


def test_what_stops_a_run_before_its_first_step_loses_nothing(command, tmp_path):
    run = tmp_path / "run"
    command("fit")
    before = {name: (run / name).read_bytes() for name in files(run) if name != "config.yaml"}
    with pytest.raises(FileNotFoundError, match="idx files"):
        command("fit", "--overwrite", "true", "--data.digits", str(tmp_path / "absent"))
    command("fit", "--overwrite", "true", "--trainer.fast_dev_run", "1")
    assert {name: (run / name).read_bytes() for name in before} == before
    assert not [name for name in set(files(run)) - set(before) if "tfevents" not in name][1:]
    command("fit", "--overwrite", "true")  # and the next one removes what was begun then
    assert len(list(run.glob("events.out.tfevents.*"))) == 2  # of training and of its test


def test_a_run_that_stopped_before_its_first_result_can_be_begun_again(command, tmp_path):
    with pytest.raises(FileNotFoundError, match="idx files"):
        command("fit", "--data.digits", str(tmp_path / "absent"))
    command("fit")
    assert step_of(tmp_path / "run" / "checkpoints" / "last.ckpt") == 4


def test_a_run_that_begins_with_anothers_checkpoint_is_a_new_run(command, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    command("fit", "--run", str(other), "--trainer.max_steps", "2")
    theirs = str(other / "checkpoints" / "last.ckpt")
    capsys.readouterr()
    command("fit", "--ckpt_path", theirs, "--trainer.limit_val_batches", "0")
    said = capsys.readouterr().out  # not the other run's best
    assert "Held-out videos, weights of the last step" in said and str(other) not in said
    assert not (run / "checkpoints" / "best.ckpt").exists()
    with pytest.raises(ValueError, match="run: expected a folder without a run in it"):
        command("fit", "--ckpt_path", theirs)
    command("fit", "--ckpt_path", theirs, "--overwrite", "true")
    assert step_of(run / "checkpoints" / "best.ckpt") == 4


@pytest.mark.parametrize("word", ["best", "last"])
def test_a_run_goes_on_from_its_own_checkpoints(command, tmp_path, word):
    run = tmp_path / "run"
    with pytest.raises(FileNotFoundError, match=rf"ckpt_path: .*/{word}\.ckpt is absent"):
        command("fit", "--ckpt_path", word)
    command("fit")
    (run / "checkpoints" / "last_good.ckpt").write_bytes(b"newer than last.ckpt")
    figures = files(run / "figures")
    command("fit", "--ckpt_path", word, "--trainer.max_steps", "6", "--overwrite", "true")
    assert step_of(run / "checkpoints" / "last.ckpt") == 6
    assert files(run / "figures") == figures | {"step_000006.png", "step_000006.gif"}


def test_auto_begins_a_run_and_goes_on_with_it(command, tmp_path):
    run = tmp_path / "run"
    curve = run / "metrics" / "version_0" / "metrics.csv"  # killed before its first checkpoint
    curve.parent.mkdir(parents=True)
    curve.write_text("step,train/total\n0,1.0\n")
    with pytest.raises(FileNotFoundError, match=r"ckpt_path: .*last\.ckpt is absent"):
        command("test", "--ckpt_path", "auto")
    auto = ("fit", "--ckpt_path", "auto", "--trainer.limit_val_batches", "0")
    command(*auto, "--trainer.max_steps", "1")
    assert not curve.exists() and step_of(run / "checkpoints" / "last.ckpt") == 1
    command(*auto, "--trainer.max_steps", "2")
    command(*auto, "--trainer.max_steps", "2")  # it was finished
    assert sorted(train_steps(run)) == [0, 1]
    last, best = (run / "checkpoints" / f"{name}.ckpt" for name in ("last", "best"))
    last.rename(best)  # killed after validation, before it saved again
    command(*auto, "--trainer.max_steps", "3")
    assert sorted(train_steps(run)) == [0, 1, 2]
    last.unlink()
    best.rename(run / "checkpoints" / "nonfinite_step_2.ckpt")
    with pytest.raises(ValueError, match=r"run: expected a folder without .*model\.safetensors"):
        command(*auto)


def test_under_slurm_an_older_run_is_not_gone_on_with_unless_the_job_is_restarted(
    command, tmp_path, monkeypatch
):
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    run = tmp_path / "run"
    no_slurm = ("--trainer.plugins", "lightning.pytorch.plugins.environments.LightningEnvironment")
    command("fit", *no_slurm)
    (run / "checkpoints" / "last.ckpt").rename(run / "hpc_ckpt_1.ckpt")
    steps = ("--trainer.max_steps", "5", *no_slurm)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    command("fit", *steps)
    assert len(np.unique(train_steps(run))) == 5
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    (run / "checkpoints" / "last.ckpt").rename(run / "hpc_ckpt_2.ckpt")
    command("fit", "--overwrite", "true", *steps)
    assert len(train_steps(run)) == 5
    assert not list(run.glob("hpc_ckpt_*"))


def train_steps(run):
    found = []
    for path in run.glob("metrics/*/metrics.csv"):
        rows = path.read_text().splitlines()
        names = rows[0].split(",")
        cells = (dict(zip(names, row.split(","), strict=True)) for row in rows[1:])
        found += [int(row["step"]) for row in cells if row.get("train/total")]
    return found


def test_predicting_again_leaves_no_prediction_of_before(command, tmp_path):
    command("fit")
    folder = tmp_path / "run" / "predictions"
    command("predict", "--trainer.limit_predict_batches", "2")
    assert len(files(folder)) == 6
    (folder / "batch_001_kept.npz").write_bytes(b"")
    command("predict")
    assert files(folder) == {
        *(f"batch_000.{kind}" for kind in ("npz", "png", "gif")),
        "batch_001_kept.npz",
    }
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "batch_001.npz").write_bytes(b"a file of the user's")
    command("predict", "--predictions.folder", str(elsewhere))
    assert (elsewhere / "batch_001.npz").read_bytes() == b"a file of the user's"


def test_the_configuration_is_in_the_runs_folder_wherever_loggers_write(command, tmp_path):
    run, logs = tmp_path / "run", tmp_path / "logs"
    command("fit")
    logger = ("--trainer.logger", "lightning.pytorch.loggers.CSVLogger")
    command("fit", "--overwrite=true", *logger, f"--trainer.logger.save_dir={logs}")
    assert str(logs) in (run / "config.yaml").read_text()
    assert not (run / "metrics").exists()


def test_an_experiment_takes_no_other_run_for_its_own(tmp_path, command, monkeypatch):
    run = tmp_path / "run"
    config = {k: v for k, v in run_settings(run).items() if k != "run"}
    (run / "figures").mkdir(parents=True)  # it was begun, drew a picture and was killed
    (run / "figures" / "step_000002.png").write_bytes(b"")
    runs.write_json(run / "asked.json", {"config": config, "words": []})
    first = runs.train(run, config)
    assert sorted(files(run / "figures")) == sorted(
        f"step_00000{step}.{kind}" for step in (2, 4) for kind in ("png", "gif")
    )
    assert (run / "figures" / "step_000002.png").stat().st_size > 0
    assert json.loads((run / "asked.json").read_text())["config"] == config
    command("fit", "--overwrite", "true", "--seed_everything", "1")  # by hand, of other weights
    with pytest.raises(ValueError, match="run: expected a folder without a run in it"):
        runs.train(run, config)
    remove(run_files(run), run)
    assert runs.train(run, config).errors == first.errors


def test_language_shows_the_curve_of_its_own_run(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    for number in range(60):
        (text / f"{number}.txt").write_text(f"{number} " * 20)
    words = ["fit", f"--run={tmp_path / 'run'}", "--data=fastlstm.training.TextData"]
    words += [f"--data.folder={text}", "--data.k1=6", "--data.batch_size=4"]
    words += ["--model.model=fastlstm.ByteLSTM", "--model.model.hidden_size=4"]
    words += ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    words += ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    LanguageCommand([*words, "--trainer.max_steps=5"])
    LanguageCommand([*words, "--trainer.max_steps=3", "--overwrite=true"])
    curve = read_curve(tmp_path / "run")["train/loss"]
    assert curve[:, 0].tolist() == [0, 1, 2]
    assert [path.name for path in results(tmp_path / "run")] == [
        "last.ckpt",
        "model.safetensors",
        "report.png",
        "metrics.csv",
    ]
    checkpoints = tmp_path / "run" / "checkpoints"
    found = [ByteLSTM.load(checkpoints / name) for name in ("last.ckpt", "model.safetensors")]
    assert found[0].sample(b"12 ", 20) == found[1].sample(b"12 ", 20)


def test_a_curve_ends_where_the_run_that_goes_on_does(tmp_path):
    """Steps of an abandoned branch are not drawn behind the steps trained after it."""
    for version, steps in enumerate((range(5), range(2, 4), ())):
        folder = tmp_path / "metrics" / f"version_{version}"
        folder.mkdir(parents=True)
        rows = [f"{step},{version}," for step in steps]
        (folder / "metrics.csv").write_text("\n".join(["step,train/loss,val/error", *rows]))
    curve = read_curve(tmp_path)["train/loss"]
    assert curve[:, 0].tolist() == [0, 1, 2, 3]
    assert (curve[:, 1] > 0).tolist() == [False, False, True, True]
