"""fastlstm bench run: tiny measurements, whose times are not judged."""

import json
import math
import time

import pytest
import torch
from helpers import needs_bfloat16_of_torch

from benchmarks import (
    command,
    contests,
    long,
    lstm,
    peers,
    programs,
    shapes,
    storage,
    suites,
    timing,
)
from fastlstm_bench import SUITES, parse


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(timing, "_SAMPLE_S", {"cpu": 1e-4})
    monkeypatch.setattr(timing, "_PAUSE_S", 0)


EFFORT = contests.Effort(2, 0.01, 2)


def cases(*words):
    return suites.cases(parse(["run", *words]))


def measured(*words):
    found = {}
    for case in cases(*words):
        result = case.measure(EFFORT)
        assert not result.failed
        for name in case.ours:
            info = result.info(name)
            assert info["schema"] == "fastlstm-bench/1" and info["peers"]
            assert len(result.best(name)[1]) >= 2 or case.suite == "long"
            for peer in info["peers"].values():
                assert 0 < peer["ratio"]["q25"] <= peer["ratio"]["median"] <= peer["ratio"]["q75"]
            json.dumps(info)
            found[case.params["mode"], case.params["dtype"], name] = info
    return found


def test_the_command_writes_a_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--shape", "3,2,4,5,1,bi", "--rounds", "2", "--max-seconds", "0.01"]
    words += ["--mode", "inference", "--peer", "nn.LSTM", "--json", "run.json"]
    words[:0] = ["--processes", "1"]
    command.run(parse(words), words)
    said = capsys.readouterr()
    assert "nn.LSTM: geometric mean" in said.out and "[1/1] shape-3,2,4,5,1,bi" in said.err
    run = storage.load("run.json")
    (bench,) = run["benchmarks"]
    assert bench["name"] == "shape[3,2,4,5,1,bi-inference-float32-auto]"
    assert bench["group"] == "inference-float32"
    stats = bench["stats"]
    assert stats["rounds"] == len(stats["data"]) >= 2 and stats["iterations"] == 1
    assert stats["min"] <= stats["median"] <= stats["max"]
    assert "node" not in run["machine_info"] and str(tmp_path) not in json.dumps(run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]
    words[-1] = "again.json"
    command.run(parse([*words, "--against", "run.json"]), [*words, "--against", "run.json"])
    assert "1 in one run only" not in capsys.readouterr().out


def test_a_wrong_backend_is_reported_and_never_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    calls = []
    right = lstm.Pair.copy

    def planted(pair, backend="auto"):
        module = right(pair, backend)
        if backend == "cpu":
            with torch.no_grad():
                module.weight_hh_l0[0, 0] += 0.1
            module.register_forward_hook(lambda *_: calls.append(1))
        return module

    monkeypatch.setattr(lstm.Pair, "copy", planted)
    words = ["--shape", "3,2,4,5", "--backend", "cpu", "auto", "--mode", "inference"]
    words += ["--peer", "nn.LSTM", "--rounds", "2", "--max-seconds", "0.01", "--processes", "1"]
    with pytest.raises(SystemExit) as failed:
        command.run(parse(words), words)
    assert failed.value.code == 1 and len(calls) == 1  # the check's
    out = capsys.readouterr().out
    assert "failed, not timed: shape-3,2,4,5-inference-float32-cpu: result 0: its relative" in out
    run = storage.load("latest")
    assert [bench["params"]["backend"] for bench in run["benchmarks"]] == ["auto"]
    assert len(run["failed"]) == 1
    with pytest.raises(SystemExit, match="nothing was timed\nshape-3,2,4,5-inference-float32-cpu"):
        words.remove("auto")
        command.run(parse(words), words)


def test_a_backend_that_refuses_is_reported():
    words = ["--shape", "3,2,4,5", "--backend", "auto", "cuda", "--mode", "inference"]
    (case,) = cases(*words, "--peer", "nn.LSTM")
    result = case.measure(EFFORT)
    assert list(result.failed) == ["cuda"] and "cuda" in result.failed["cuda"]
    assert set(result.seconds) == {"auto", "nn.LSTM"}


@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float16"),
        pytest.param(("bfloat16", "autocast"), marks=needs_bfloat16_of_torch),
    ],
)
def test_dtypes_and_modes(dtypes):
    words = ["--shape", "3,2,4,5,2", "--peer", "nn.LSTM", "loop"]
    found = measured(*words, "--dtype", *dtypes)
    assert len(found) == 4
    assert all(set(info["peers"]) == {"nn.LSTM", "loop"} for info in found.values())
    assert all(math.isfinite(info["peak_gflops"]) for info in found.values())


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "jax", "compiled-loop"])
def test_peers(name):
    if peers.PEERS[name].why_not(False, "float32", "cpu"):
        pytest.skip(f"{name} is not installed")
    if name == "compiled-loop":
        pytest.skip("compiles for a minute")
    found = measured("--shape", "3,2,4,5,2,bi", "--peer", "nn.LSTM", name, "--mode", "inference")
    ours = "frozen" if name in lstm.CONSTANT else "auto"
    assert next(iter(found["inference", "float32", ours]["peers"])) in (name, "nn.LSTM")
    assert name in found["inference", "float32", ours]["peers"]


def test_a_peer_takes_part_only_where_it_can(monkeypatch):
    assert peers.chosen(["nn.LSTM", "onnxruntime"], True, "float32", "cpu") == ["nn.LSTM"]
    assert peers.chosen(["onnxruntime"], False, "bfloat16", "cpu") == []
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.chosen(None, False, "float32", "cpu") == ["nn.LSTM"]
    assert peers.PEERS["jax"].why_not(False, "float32", "cpu") == "jax not installed"
    options = parse(["run", "--mode", "training"])
    monkeypatch.undo()
    assert peers.absent("nn.LSTM", options) is None
    if not peers.PEERS["onnxruntime"].why_not(False, "float32", "cpu"):
        assert peers.absent("onnxruntime", options) == "inference only"


@pytest.mark.parametrize("suite", ["variants", "options", "packed", "threads", "cell"])
def test_suites(suite):
    found = measured("--suite", suite, "--shape", "1,2,4,4" if suite == "cell" else "6,2,4,4")
    assert found
    if suite == "cell":
        assert {"Stream int8", "LSTMCell", "frozen"} <= {name for *_, name in found}
        assert "nn.LSTMCell" in found["training", "float32", "LSTMCell"]["peers"]


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_programs(name, monkeypatch):
    program = programs.PROGRAMS[name]
    short = program._replace(data=lambda: program.data()[:3, ..., : 64 if program.train else None])
    monkeypatch.setitem(programs.PROGRAMS, name, short)
    result = contests.measure(programs.contest(name, program.train, EFFORT), EFFORT)
    assert not result.failed and result.info("auto")["ratio"]["median"] > 0


def test_long_sequences_are_measured_in_other_processes(monkeypatch):
    monkeypatch.setattr(long, "OURS", ("auto",))
    monkeypatch.setattr(long, "_SAMPLE_S", 0.01)
    found = measured("--suite", "long", "--shape", "20,1,8,8")
    for info in found.values():
        assert info["peak_rss"] > 2**20 and info["peer_rss"] > 2**20


def test_every_suite_has_cases_with_names_of_their_own():
    names = []
    for suite in SUITES:
        found = cases("--suite", suite, "--count", "3")
        assert found, suite
        names += [f"{case.suite}-{case.name}-{ours}" for case in found for ours in case.ours]
    assert len(names) == len(set(names))


def test_rounds_go_on_while_the_ratio_is_uncertain():
    """The contender's time alternates from round to round, so its ratio stays wide."""
    starts = []

    def uneven():
        time.sleep(0.001 if len(starts) % 2 else 0.004)

    contest = contests.Contest(
        {
            "auto": contests.Contender(uneven, peers=("peer",), start=starts.append),
            "peer": contests.Contender(lambda: time.sleep(0.001)),
        }
    )
    few = contests.measure(contest, contests.Effort(2, 1e-9, 1))
    assert len(few.best("auto")[1]) == 2
    many = contests.measure(contest, contests.Effort(2, 2, 1))
    assert len(many.best("auto")[1]) > 2


def test_the_better_number_of_threads_counts():
    seconds = {"a": {"1": [3.0, 2.0], "2": [1.0, 1.0]}}
    measured = contests.Measured(contests.Contest({}), seconds, {}, {}, "cpu")
    assert measured.best("a") == ("2", [1.0, 1.0])


def test_wrong_results():
    exact = [torch.ones(4, dtype=torch.float64)]
    right, wrong = [torch.ones(4)], [torch.tensor([1.0, 1, 1, 1.1])]
    assert contests.relative_errors(right, right, exact) == (0, 0)
    with pytest.raises(AssertionError, match="result 0: its relative error is 5"):
        contests.relative_errors(wrong, right, exact)
    with pytest.raises(AssertionError, match="nan"):
        contests.relative_errors([torch.full((4,), torch.nan)], right, exact)
    assert shapes.parse("2,2,2,2").bytes(False, 4) == 4 * (4 * 2 * 4 + 2 * 2 * 4)
