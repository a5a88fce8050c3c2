"""benchmarks/call and benchmarks/programs: tiny measurements, whose times are not judged."""

import json
import math
import sys

import pytest

from benchmarks import call, onnx_runtime, programs, timing


@pytest.fixture
def rows(monkeypatch, tmp_path):
    """Run a script with these arguments and return its rows."""
    monkeypatch.setattr(timing, "_SAMPLE_S", {"cpu": 1e-4})
    monkeypatch.setattr(timing, "_PAUSE_S", 0)

    def run(script, *words):
        path = tmp_path / "rows.json"
        words = ["script", *words, "--rounds", "2", "--threads", "2", "--json", str(path)]
        monkeypatch.setattr(sys, "argv", words)
        script.main()
        return json.loads(path.read_text())["rows"]

    return run


def test_calls_in_inference(rows, capsys):
    (row,) = rows(call, "--hidden", "4", "--batch", "2", "--mode", "inference")
    names = ["LSTM", "frozen", "Cell", "float32", "bfloat16", "int8", "nn.LSTM", "nn.LSTMCell"]
    names += call.ONNX if onnx_runtime.is_installed() else []
    assert list(row["us"]) == list(row["spread"]) == names
    assert list(row["nn / this"]) == names[:6]
    assert all(us > 0 and math.isfinite(us) for us in row["us"].values())
    assert "1,2,4" in capsys.readouterr().out


def test_calls_without_onnx_runtime(rows, monkeypatch):
    monkeypatch.setattr(onnx_runtime, "is_installed", lambda: False)
    (row,) = rows(call, "--hidden", "4", "--batch", "1", "--mode", "inference")
    assert not row["ONNX / this"] and not set(call.ONNX) & set(row["us"])


def test_calls_in_training(rows):
    step, sequence = rows(
        call, "--hidden", "4", "--batch", "1", "--mode", "training", "--sequence", "3,2,5"
    )
    assert list(step["us"]) == ["LSTM", "Cell", "nn.LSTM", "nn.LSTMCell"]
    assert list(sequence["us"]) == ["LSTM", "nn.LSTM"]
    assert [sequence[name] for name in "TBH"] == [3, 2, 5]


def test_wrong_results_are_not_timed(rows, monkeypatch):
    monkeypatch.setattr(call, "STREAMS", {"int8": 0})
    with pytest.raises(AssertionError, match="Stream, int8: relative error"):
        rows(call, "--hidden", "4", "--batch", "1", "--mode", "inference")


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_programs(name, rows, capsys, monkeypatch):
    program = programs.PROGRAMS[name]
    short = program._replace(data=lambda: program.data()[:3, ..., : 64 if program.train else None])
    monkeypatch.setitem(programs.PROGRAMS, name, short)
    (row,) = rows(programs, "--program", name)
    assert row["program"] == name and row["nn.* / fastlstm.*"] > 0
    assert "slower with fastlstm.*: " in capsys.readouterr().out


def test_spread_is_a_share_of_the_median():
    assert timing.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert timing.spread([1.0]) == 0


def test_the_better_number_of_threads_counts():
    single = f"a{timing.ONE_THREAD}"
    assert timing.better_threads({"a": [3.0, 2.0], single: [1.0, 1.0], "b": [4.0]}) == {
        "a": single,
        "b": "b",
    }
