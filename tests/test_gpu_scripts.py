"""benchmarks/gpu: scripts that go on after a lost process, and leave only results in their folder.

test_tune.py and test_first_contact.py test two of the scripts further.
"""

import argparse
import json
import sys
import types

import pytest

import fastlstm
from benchmarks import timing
from benchmarks.gpu import compare, heads, models, record, watcher


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Run a script on the CPU, and return the rows it wrote."""
    monkeypatch.setattr(timing, "_SAMPLE_S", {"cpu": 1e-4})
    monkeypatch.setattr(timing, "_PAUSE_S", 0)

    def run(module, *words):
        words = ["script", "--out", str(tmp_path), "--device", "cpu", "--small", *words]
        monkeypatch.setattr(sys, "argv", words)
        module.main()
        name = module.__name__.rpartition(".")[2]
        return json.loads((tmp_path / f"{name}.json").read_text())["rows"]

    return run


class _Crashing:
    """A worker whose first process ends."""

    def __init__(self):
        self.asked = 0

    def ask(self, function, arguments, box):
        self.asked += 1
        if self.asked == 1:
            return {"ok": False, "ended": "the worker ended: status -11", "lost": True}
        return record.Here().ask(function, arguments, box)

    def close(self):
        pass


@pytest.mark.parametrize("module, rows", [(compare, 4), (heads, 2), (models, 3)])
def test_a_crash_costs_one_row(script, monkeypatch, module, rows):
    monkeypatch.setattr(record, "worker", lambda arguments: _Crashing())
    found = script(module)
    assert len(found) == rows
    assert found[0]["error"] == "the worker ended: status -11"
    errors = [row["error"] for row in found[1:] if "error" in row]
    if any("could not create a primitive descriptor" in error for error in errors):
        pytest.skip("torch's LSTM does not compute in bfloat16 on this CPU")
    assert not errors


def test_on_a_gpu_another_process_does_the_work(tmp_path):
    arguments = argparse.Namespace(device="cuda", out=tmp_path)
    assert isinstance(record.worker(arguments), watcher.Worker)


def test_a_long_sequence_is_our_kernels(monkeypatch):
    """With neither a backend nor peepholes, "auto" is cuDNN: nn.LSTM beside itself."""
    made = []

    class Recorded(fastlstm.LSTM):
        def __init__(self, *sizes, **options):
            made.append(options)
            super().__init__(*sizes, **options)

    monkeypatch.setattr(fastlstm, "LSTM", Recorded)
    monkeypatch.setattr(timing, "_PAUSE_S", 0)
    row = models.long_sequence("cpu", small=True)["row"]
    assert {"ours ms", "ours, checkpoints ms", "nn.LSTM ms"} <= set(row)
    assert len(made) == 2
    assert all(options["peephole"] and options["backend"] == "cpu" for options in made)


def test_the_paper_s_run_leaves_only_results(script, monkeypatch, tmp_path):
    """Few files come back from a lent machine: checkpoints and events are not among them."""
    pytest.importorskip("jsonargparse")
    from benchmarks.gpu import paper

    folders = []

    def train(words):
        run = paper.Path(words[words.index("--run") + 1])
        folders.append(run)
        for name in ("checkpoints/last.ckpt", "figures/1.png", "metrics/version_0/metrics.csv"):
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("step,train/future\n1,2.5\n")
        trainer = types.SimpleNamespace(callback_metrics={"test/future": 3.0}, global_step=4)
        throughput = types.SimpleNamespace(per_second=5.0)
        return types.SimpleNamespace(trainer=trainer, throughput=throughput)

    monkeypatch.setattr(paper, "VideoCommand", train)
    (row,) = script(paper, "--steps", "4")
    assert row["future"] == 3.0 and row["steps"] == 4
    found = {path.name for path in tmp_path.rglob("*")}
    assert found == {"paper.json", "paper_predictions.png", "paper_curve.csv", "paper_curve.png"}
    assert folders and not any(folder.exists() for folder in folders)
