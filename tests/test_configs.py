"""The configurations in the package: found by name, listed, and each of them valid."""

import pytest
import yaml
from tiny_training import run_settings

from fastlstm import configs
from fastlstm.cli import main
from fastlstm.training.commands.classify import ClassifyCommand
from fastlstm.training.commands.video import VideoCommand

pytestmark = pytest.mark.usefixtures("quiet_command_line")
NAMES = "classify, demo, paper, paper_cpu"
CLASSIFY = ["--model.model.hidden_size=4", "--data.batch_size=10", "--data.test_size=10"]
CLASSIFY += ["--data.val_size=10"]
VIDEO = ["--model.model.hidden_size=4", "--data.batch_size=2", "--data.val_size=2"]
VIDEO += ["--data.test_size=2", "--baselines.sample=2"]
QUIET = ["--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"]
QUIET += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.mark.parametrize("words", [["--config", "demo"], ["--config=demo"], ["-c", "demo"]])
def test_a_packaged_configuration_is_found_by_its_name(tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a folder is no configuration
    command = VideoCommand(["fit", *words, *VIDEO, *QUIET])
    assert command.model.model.config["readout_bias"] == -3.0
    assert command.trainer.default_root_dir == "runs/demo"


def test_a_classifier_finds_its_configuration_by_name(tmp_path):
    command = ClassifyCommand(["fit", "--config=classify", *CLASSIFY, *QUIET])
    assert command.model.model.config["dropout"] == 0.5


def test_a_file_of_the_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").write_text(yaml.safe_dump(run_settings(tmp_path / "mine")))
    command = VideoCommand(["fit", "--config", "demo", *QUIET])
    assert command.trainer.default_root_dir == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("dmeo", ": did you mean 'demo'?"),
        ("configs/demo.yaml", ": did you mean 'demo'?"),
        ("paper.yml", ": did you mean 'paper'?"),
        ("xyz", ""),
    ],
)
def test_an_unknown_name_is_told_all_of_them_and_the_nearest(word, near):
    expected = f"expected a file that exists or one of {NAMES}, got {word!r}{near}"
    for words in (["fit", "--config", word], ["fit", f"--config={word}"]):
        for command in (["classify", *words], words):
            with pytest.raises(ValueError) as refused:
                main(command)
            assert str(refused.value) == f"config: {expected}"
    with pytest.raises(ValueError, match=f"name: expected one of {NAMES}, got 'x'"):
        configs.path("x")


def test_a_configuration_can_be_given_as_text_or_be_read_from_a_pipe():
    for word in ("run: runs/x", '{"run": "runs/x"}', "a: 1\nb: 2", "s3://bucket/a.yaml"):
        assert configs.find(word) == word
    assert configs.find("/dev/null") == "/dev/null"


@pytest.mark.parametrize("name", configs.names())
def test_every_configuration_has_a_title_and_can_be_read(name):
    assert configs.title(name).startswith("Train ") and configs.title(name).endswith(".")
    assert {"run", "model", "data", "trainer"} <= yaml.safe_load(
        configs.path(name).read_text()
    ).keys()
    assert f"--config {name}" in configs.path(name).read_text()
