"""``precision: auto`` is bfloat16 where the machine computes it fast, and float32 elsewhere."""

import logging

import pytest
import torch
import yaml
from tiny_training import tiny_data, tiny_model, trainer

from fastlstm.backends import cpu
from fastlstm.training import VideoTask
from fastlstm.training.commands.video import VideoCommand
from fastlstm.training.precision import PrecisionChange, find_precision

BASIC = ["avx512", "avx2", "portable"]


@pytest.fixture
def said(caplog):
    """The lines about precision in the log."""
    caplog.set_level(logging.INFO)
    return lambda: [m for m in caplog.messages if m.startswith("precision:")]


@pytest.mark.parametrize(
    ("isas", "expected", "reason"),
    [
        (["amx", "avx512bf16", *BASIC], "bf16-mixed", "this CPU has AMX-BF16"),
        (["avx512bf16", *BASIC], "bf16-mixed", "this CPU has AVX-512 BF16"),
        (BASIC, "32-true", "this CPU has neither AVX-512 BF16 nor AMX-BF16"),
        ([], "32-true", "this CPU has neither AVX-512 BF16 nor AMX-BF16"),
    ],
)
def test_a_cpu_with_bfloat16_instructions_uses_them(monkeypatch, isas, expected, reason):
    monkeypatch.setattr(cpu, "isas", lambda: isas)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_precision("cpu") == find_precision("auto") == (expected, reason)


@pytest.mark.parametrize(
    ("gpus", "expected", "reason"),
    [
        ([(9, 0)], "bf16-mixed", "this GPU has compute capability 9.0"),
        ([(8, 0)], "bf16-mixed", "this GPU has compute capability 8.0"),
        ([(9, 0), (7, 5)], "32-true", "this GPU has compute capability 7.5"),
    ],
)
def test_a_gpu_uses_bfloat16_from_capability_8_on(monkeypatch, gpus, expected, reason):
    monkeypatch.setattr(cpu, "isas", lambda: BASIC)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", gpus.__getitem__)
    for accelerator in ("auto", "gpu", "cuda"):
        assert find_precision(accelerator) == (expected, reason)
    assert find_precision("cpu")[0] == "32-true"
    assert find_precision("tpu") == ("32-true", "bfloat16 may be slow on the accelerator tpu")


def config(folder, **settings):
    path = folder / "config.yaml"
    sizes = {"batch_size": 2, "input_frames": 2, "future_frames": 3, "val_size": 2, "test_size": 2}
    path.write_text(
        yaml.safe_dump(
            {
                "run": str(folder / "run"),
                "model": {
                    "model": {
                        "class_path": "fastlstm.CompositeLSTM",
                        "init_args": {"input_size": 900, "hidden_size": 4},
                    }
                },
                "data": {
                    "class_path": "fastlstm.training.MovingMNISTData",
                    "init_args": {"size": 30, "num_digits": 1, **sizes},
                },
                "baselines": {"sample": 8},
                "trainer": {
                    "accelerator": "cpu",
                    "logger": False,
                    "enable_progress_bar": False,
                    "enable_model_summary": False,
                    **settings,
                },
            }
        )
    )
    return f"--config={path}"


def test_the_command_finds_it_anew_when_a_run_moves_to_another_machine(tmp_path, monkeypatch, said):
    words = ["fit", config(tmp_path, precision="auto", max_steps=2, val_check_interval=1)]
    monkeypatch.setattr(cpu, "isas", lambda: ["avx512bf16", *BASIC])
    assert VideoCommand(words).trainer.precision == "bf16-mixed"
    assert said() == ["precision: bf16-mixed (this CPU has AVX-512 BF16)"]
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["trainer"]["precision"] == "auto"

    monkeypatch.setattr(cpu, "isas", lambda: BASIC)
    words = [*words, "--ckpt_path=last", "--trainer.max_steps=3"]
    assert VideoCommand(words).trainer.precision == "32-true"
    assert said()[1:] == [
        "precision: 32-true (this CPU has neither AVX-512 BF16 nor AMX-BF16)",
        "precision: 32-true, while the checkpoint was trained in bf16-mixed",
    ]


@pytest.mark.parametrize(("given", "expected"), [({}, "32-true"), ({"precision": 64}, "64-true")])
def test_other_precisions_are_as_they_were_and_not_spoken_of(tmp_path, given, expected, said):
    command = VideoCommand(["fit", config(tmp_path, fast_dev_run=1, **given)])
    assert command.trainer.precision == expected and not said()


def test_a_wrong_word_is_refused_with_the_list_of_right_ones(tmp_path, capsys):
    with pytest.raises(SystemExit):
        VideoCommand(["fit", config(tmp_path, precision="fast")])
    wrong = capsys.readouterr().err
    assert 'key "trainer.precision"' in wrong and "'auto'" in wrong and "value: fast" in wrong


def test_a_checkpoint_without_its_precision_is_resumed_silently(tmp_path, said):
    def fit(steps, *callbacks, **resumed):
        t = trainer(tmp_path, *callbacks, max_steps=steps, limit_val_batches=0)
        t.fit(VideoTask(tiny_model()), datamodule=tiny_data(), **resumed)
        t.save_checkpoint(tmp_path / "x.ckpt")

    fit(1)
    fit(2, PrecisionChange(), ckpt_path=tmp_path / "x.ckpt")
    fit(3, PrecisionChange(), ckpt_path=tmp_path / "x.ckpt")
    assert not said()
