"""The command's help, its answers to wrong words, and what works without further packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastlstm
from fastlstm import configs
from fastlstm.cli import main
from fastlstm.training.commands.classify import ClassifyCommand
from fastlstm.training.commands.video import VideoCommand
from fastlstm_command import COMMANDS, quiet_broken_pipe

ROOT = Path(__file__).parents[1]
# The packages of all extras, and what they bring along; torch and numpy need none of them.
EXTRAS = ("lightning", "pytorch_lightning", "lightning_utilities", "jsonargparse", "tensorboard")
EXTRAS += ("matplotlib", "PIL", "mlxtend", "safetensors", "av", "pyarrow", "yaml", "skvideo")
EXTRAS += ("triton", "huggingface_hub", "onnx", "scipy", "pandas", "torchmetrics")


# Runs the command once for each list of words, in one process, since importing torch takes seconds.
PROGRAM = """
import contextlib, io, json, sys
sys.modules.update(dict.fromkeys({hidden!r}))
from fastlstm_command import main
answers = []
for sys.argv[1:] in {words!r}:
    said, status = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as end:
            status = end.code or 0
            if isinstance(status, str):  # Python prints it and exits with 1
                print(status)
                status = 1
    answers.append((status, said.getvalue()))
print(json.dumps(answers))
"""


def answers(*words, hidden):
    program = PROGRAM.format(hidden=hidden, words=words)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_the_extras_all_but_training_works():
    expected = {
        ("--help",): (0, "usage: fastlstm"),
        ("-h",): (0, "usage: fastlstm"),
        ("--version",): (0, f"fastlstm {fastlstm.__version__}\n"),
        ("info",): (0, "has no peephole"),
        ("configs",): (0, configs.title("demo")),
        ("configs", "demo"): (0, configs.path("demo").read_text()),
        ("configs", "--help"): (0, "usage: fastlstm configs"),
        ("info", "--help"): (0, "usage: fastlstm info"),
        (): (2, "usage: fastlstm"),
        ("nonsense",): (1, "got 'nonsense'"),
        ("configs", "dmeo"): (
            1,
            "fastlstm: name: expected one of classify, demo, paper, paper_cpu, got 'dmeo'",
        ),
        ("fit",): (1, "fastlstm: training needs the package 'lightning', which is not installed:"),
        ("classify", "fit"): (1, "pip install 'fastlstm[train]'"),
        ("experiment", "all"): (1, "pip install 'fastlstm[train]'"),
    }
    got = answers(*map(list, expected), hidden=EXTRAS)
    for (words, (status, part)), answer in zip(expected.items(), got, strict=True):
        assert answer[0] == status and part in answer[1], (words, answer)


@pytest.mark.parametrize(
    "unbuffered, words",
    [
        ("", ["fastlstm_command", "--help"]),
        ("1", ["fastlstm_command", "--help"]),
        ("", ["fastlstm_command", "bench", "--help"]),
        ("1", ["fastlstm_command", "configs", "demo"]),
        ("", ["fastlstm.cli", "info"]),
        ("1", ["fastlstm_command", "fit", "--config", "demo", "--print_config"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else f"unbuffered={value}",
)
def test_a_reader_that_is_gone_is_no_error_to_speak_of(unbuffered, words, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-W", "ignore", "-m", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1 or "--help" in words  # argparse itself ignores the error


def test_another_broken_pipe_keeps_its_traceback(tmp_path, monkeypatch):
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        with pytest.raises(BrokenPipeError), quiet_broken_pipe():
            raise BrokenPipeError


def test_the_help_names_every_command_with_a_sentence_and_does_not_import_torch():
    ((status, said),) = answers(["--help"], hidden=("torch", "numpy", "fastlstm"))
    assert status == 0
    said = " ".join(said.split())
    for name, does in COMMANDS.items():
        assert f" {name} {does}" in said
        assert does[0].isupper() and does.endswith(".")


@pytest.mark.parametrize("command", [VideoCommand, ClassifyCommand])
def test_without_a_configuration_the_command_says_which_to_give(command, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fastlstm"])
    prog, name = (
        ("fastlstm", "demo") if command is VideoCommand else ("fastlstm classify", "classify")
    )
    for words in (["fit"], ["test", "--run", "runs/x"]):
        with pytest.raises(ValueError) as refused:
            command(words)
        assert str(refused.value) == (
            "config: expected --config NAME, --config FILE or --model, got none of them; try"
            f" `{prog} {words[0]} --config {name}`; `fastlstm configs` lists all names"
        )


def test_options_before_a_command_reach_lightning(capsys, tmp_path):
    (tmp_path / "c.yaml").write_text("fit:\n  run: 3\n")
    with pytest.raises(SystemExit) as refused:
        main(["--config", str(tmp_path / "c.yaml"), "fit"])
    assert refused.value.code == 2
    assert 'key "run"' in capsys.readouterr().err


@pytest.mark.parametrize("words", [["fit"], ["predict"], ["classify", "fit"]])
def test_each_training_command_has_its_help(words, capsys):
    with pytest.raises(SystemExit) as shown:
        main([*words, "--help"])
    assert shown.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith("usage: fastlstm") and f"{words[-1]} [-c CONFIG]" in said
