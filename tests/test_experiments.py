"""Experiments train each model once, resume where they stopped, and report what they found."""

import json
from pathlib import Path

import matplotlib.image
import pytest
import torch

from fastlstm import CompositeLSTM, LSTMFuturePredictor
from fastlstm.experiments import command, presets, runs
from fastlstm.experiments.actions import actions, comparison
from fastlstm.experiments.features import extent, features, strongest
from fastlstm.experiments.out_of_domain import out_of_domain
from fastlstm.experiments.report import compared, write_report
from fastlstm.experiments.setting import Setting, spread
from fastlstm.experiments.time_scales import activity, temporal_std, time_scales
from fastlstm.experiments.variants import moving_mnist
from fastlstm.training import MovingMNISTData
from fastlstm.training.commands.base import RunCommand

WORDS = (
    "--trainer.enable_progress_bar=false",
    "--trainer.logger=false",
    "--baselines.sample=8",
    "--figure.samples=1",
)
SMALL = {
    "fit": {
        "model": {"model": {"init_args": {"hidden_size": 6, "input_size": 900, "basis_size": 15}}},
        "data": {
            "init_args": {"size": 30, "batch_size": 4, "val_size": 4, "test_size": 4},
        },
    },
    "classify": {"labels_per_class": [1, 2], "compared_at": 2, "seeds": [0, 1], "size": 30},
    "experiments": ["moving_mnist"],
    "steps": 12,
    "units": 4,
    "videos": 4,
}


_whole = presets.read


def _read_small(experiment, preset):
    """Read the presets with models and videos that are small enough for a test."""
    settings = _whole(experiment, preset)
    return presets.merged(settings, {k: change for k, change in SMALL.items() if k in settings})


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it
    monkeypatch.setattr(presets, "read", _read_small)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A folder of results with the four models."""
    folder = tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "read", _read_small)
        moving_mnist(setting(folder))
    return folder


def setting(folder, **options):
    return Setting("small", folder, **{"trial": 2, "seeds": [0], "words": WORDS, **options})


@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("experiment", ["moving_mnist", "actions"])
def test_presets_differ_in_scale_and_not_in_models(experiment, preset, monkeypatch):
    monkeypatch.undo()
    settings = presets.read(experiment, preset)
    assert settings["models"] == presets.read(experiment, "small")["models"]
    schedule = "0 to 1 over the first half"
    size = settings["fit"]["model"]["model"]["init_args"]["hidden_size"]
    assert size == {"small": 512, "paper": 2048}[preset]
    assert settings["fit"]["model"].get("sampling", schedule) == schedule


def test_every_experiment_has_a_file_in_every_preset(monkeypatch):
    monkeypatch.undo()
    for preset in presets.PRESETS:
        for experiment in set(command.EXPERIMENTS) - {"comparison"}:  # reads actions'
            assert presets.read(experiment, preset)
    with pytest.raises(ValueError, match=r"preset: expected one of .*, got 'big'"):
        presets.read("moving_mnist", "big")


def test_a_run_is_made_once_and_an_interrupted_one_goes_on(out, monkeypatch):
    settings = presets.read("moving_mnist", "small")
    here = setting(out)
    first = here.train("moving_mnist", settings, "future", 0)
    commands = []
    plain = RunCommand.__init__
    monkeypatch.setattr(
        RunCommand, "__init__", lambda self, *a: (commands.append(a[-1]), plain(self, *a))[1]
    )
    again = here.train("moving_mnist", settings, "future", 0)
    assert again == first and not commands

    (first.folder / "finished.json").unlink()
    resumed = here.train("moving_mnist", settings, "future", 0)
    assert commands[0][-2:] == ["--ckpt_path", "last"]
    assert resumed.errors == pytest.approx(first.errors, rel=1e-3)  # threads differ
    for name, weight in resumed.model().state_dict().items():
        assert torch.equal(weight, first.model().state_dict()[name])


def test_a_run_of_another_configuration_is_not_taken_for_this_one(out):
    settings = presets.read("moving_mnist", "small")
    with pytest.raises(ValueError, match=r"out: expected a run of this configuration .*--out"):
        setting(out, trial=3).train("moving_mnist", settings, "future", 0)


def test_the_four_models_are_compared_on_the_same_videos(out):
    errors = json.loads((out / "moving_mnist" / "results.json").read_text())["errors"]
    assert list(errors) == [
        "future",
        "composite",
        "conditional_future",
        "composite_conditional_future",
    ]
    assert len({of["copy_last"]["mean"] for of in errors.values()}) == 1
    for model, of in errors.items():
        assert ("reconstruction" in of) == ("composite" in model)
        own, forced = (of[k]["mean"] for k in ("future_closed_loop", "future"))
        assert (abs(own - forced) < 1e-3) == ("conditional" not in model)
    assert matplotlib.image.imread(out / "moving_mnist" / "strips.png").ndim == 2  # grey


def test_activity_is_what_the_decoder_emits_from(tmp_path):
    torch.manual_seed(0)
    for options in ({}, {"conditional_future": True}):
        model = CompositeLSTM(9, 5, **options)
        frames = torch.rand(3, 2, 9)
        units = activity(model, frames, 7)
        assert units.shape == (10, 2, 5)
        torch.testing.assert_close(units[2], model.encode(frames)[0][-1])
        shown = model.future_decoder.readout(units[3:]).sigmoid()
        torch.testing.assert_close(shown, model.predict(frames, 7))


def test_temporal_std_is_zero_where_nothing_moves():
    assert temporal_std(torch.ones(5, 1, 3)) == 0
    assert temporal_std(torch.tensor([0.0, 1.0, 0.0, 1.0]).view(4, 1, 1)) > 0.5


def test_a_feature_covers_what_it_covers():
    single, flat = torch.zeros(1, 50), torch.ones(1, 50)
    single[0, 7] = 3
    assert extent(single) == pytest.approx(1 / 50) and extent(flat) == pytest.approx(1)
    assert extent(torch.randn(100, 1000)) == pytest.approx(1 / 3, rel=0.05)
    kept = strongest(torch.tensor([[1.0, 0], [0, 3], [2, 0]]), 2)
    assert kept.tolist() == [[0, 3], [2, 0]]


def test_the_rest_of_the_experiments_and_their_report(out, tmp_path):
    here = setting(out)
    scales = time_scales(here)
    assert len(scales["errors_by_step"]["composite"]) == 12
    domains = out_of_domain(here)["errors"]
    assert domains["1"]["mean_frame"] < domains["2"]["mean_frame"]
    assert domains["2"]["copy_last"] != domains["3"]["copy_last"]
    assert set(features(here)["extent"]["moving_mnist"]) >= {"input gate", "future output"}
    recognised = actions(here)
    assert recognised["accuracy"].keys() == {"new weights", "composite", "composite, frozen"}
    kept = list((out / "runs" / "classify").glob("*.json"))
    before = {file: file.stat().st_mtime_ns for file in kept}
    compared_at = comparison(here)["accuracy"]
    assert compared_at["composite"] == recognised["accuracy"]["composite"][2]
    assert {file: file.stat().st_mtime_ns for file in kept} == before  # trained once

    document = tmp_path / "experiments.md"
    write_report(out, document)
    text = document.read_text()
    file = out / "time_scales" / "results.json"
    file.write_text(file.read_text().replace('"temporal_std', '"restlessness'))  # version 0.1
    write_report(out, document)
    assert document.read_text() == text
    assert "Not run. `fastlstm experiment patches`" in text
    for name in ("moving_mnist", "time_scales", "out_of_domain", "features", "actions"):
        assert f"Not run. `fastlstm experiment {name}`" not in text
    links = [link for part in text.split("](")[1:] if (link := part.split(")")[0])[-4:] == ".png"]
    assert len(links) >= 8 and all((tmp_path / link).is_file() for link in links)
    write_report(Path(tmp_path / "empty"), document)
    assert document.read_text().count("Not run.") == len(command.EXPERIMENTS)


def test_verdicts_follow_the_numbers():
    low, high = spread([1.0, 2.0]), spread([3.0, 5.0])
    assert compared(low, high) == "lower by 2.5 ± 0.7 (lower with 2 of 2 seeds)"
    assert compared(high, low) == "higher by 2.5 ± 0.7 (lower with 0 of 2 seeds)"
    assert spread([4.0])["std"] == 0


def test_the_command_names_what_it_does_not_know(capsys):
    for words in (["dancing"], ["features", "--preset", "big"], ["features", "--trial", "0"]):
        with pytest.raises(SystemExit):
            command.main(words)
    assert "--trial: expected at least 1, got 0" in capsys.readouterr().err


def test_words_after_the_dashes_reach_the_training(tmp_path):
    command.main(
        ["out_of_domain", "--trial=2", f"--out={tmp_path}", "--", *WORDS, "--model.warmup_steps=1"]
    )
    run = tmp_path / "runs" / "moving_mnist" / "composite" / "seed0"
    assert "warmup_steps: 1" in (run / "config.yaml").read_text()
    assert isinstance(runs.VideoLSTM.load(run / "model.safetensors"), CompositeLSTM)
    with pytest.raises(ValueError, match="expected a LSTMFuturePredictor"):
        LSTMFuturePredictor.load(run / "model.safetensors")


def test_pictures_of_frames_are_the_frames():
    data = MovingMNISTData(batch_size=2, size=30)
    frames = next(iter(data.val_dataloader())).frames
    assert data.images(frames / 255).shape == (10, 2, 30, 30)
