"""benchmarks/gpu/tune: times emulated kernels, fits the model, and writes the table."""

import itertools
import json
import sys

import emulation
import numpy as np
import pytest
import torch

from benchmarks import timing
from benchmarks.gpu import compare, costs, measured, tune
from benchmarks.gpu.passes import DIRECTIONS
from fastlstm.backends.cuda import recurrence
from fastlstm.backends.gpu.timings import Measured, MeasuredPass


@pytest.fixture
def kernels():
    return emulation.module("cuda_emulation")


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Run the script with these arguments after --out."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setattr(timing, "_SAMPLE_S", {"cpu": 1e-4})
    monkeypatch.setattr(timing, "_PAUSE_S", 0)

    def run(*words):
        command = ["tune", "--out", str(tmp_path), "--device", "cpu", "--small", *words]
        monkeypatch.setattr(sys, "argv", command)
        tune.main()
        return json.loads((tmp_path / "tune.json").read_text())["rows"]

    yield run
    torch.backends.cuda.matmul.allow_tf32 = tf32


def places(kernels, problem, direction, most):
    """The indices, in the list of all plans, of the plans to time."""
    dtype = recurrence.DTYPES[problem.dtype]
    sizes = (dtype, problem.B, problem.G, problem.H)
    found, _ = kernels.plans(direction, *sizes, products="tf32", device=kernels.device(0))
    return tune.spread(found, most)


def test_it_measures_and_goes_on_where_it_stopped(kernels, script, tmp_path, capsys):
    rows = script("--plans", "4")
    assert [(row["precision"], row["direction"], row["rank"]) for row in rows if "us" in row] == [
        (problem.precision, direction, rank)
        for problem in tune.problems(small=True)
        for direction in DIRECTIONS
        for rank in [*map(str, places(kernels, problem, direction, 4)), tune.STEPWISE]
    ]
    assert all(row["error"] < 0.05 for row in rows)
    assert all(row["ratio"] == 1 for row in rows if row["rank"] == "0")
    assert "no table of backends" in capsys.readouterr().out
    table = (tmp_path / "tune.md").read_text()
    assert table.count("| bfloat16 |") == table.count("| tf32 |") == 2
    assert "| barrier | 1000 |" in table
    before = (tmp_path / "tune.json").read_text()
    assert script("--plans", "4") == rows
    assert (tmp_path / "tune.json").read_text() == before


def test_a_plan_that_errs_is_not_timed(kernels, script):
    kernels.set_schedule(0)
    kernels.set_fault("wait_copies")
    try:
        rows = script("--plans", "100")
    finally:
        kernels.set_fault("none")
    refused = [row for row in rows if "refused" in row]
    assert refused and all("errs by" in row["refused"] for row in refused)
    assert not any("us" in row for row in refused)
    assert any("us" in row for row in rows)


@pytest.mark.parametrize(
    "count, most", [(0, 4), (1, 4), (3, 4), (4, 4), (5, 4), (100, 16), (7, 16)]
)
def test_the_first_plans_and_some_of_the_others(count, most):
    found = tune.spread([{}] * count, most)
    assert len(found) == len(set(found)) == min(count, most)
    assert found == sorted(found) and all(0 <= place < count for place in found)
    assert found[: most // 2] == list(range(min(count, most // 2)))
    assert count <= most or found[-1] >= count - (count - most // 2) // (most // 2)


def test_every_problem_is_one_of_compare():
    cells = {(cell.precision, cell.H, cell.B, cell.D) for cell in compare.cells(small=False)}
    assert len(list(tune.problems(small=False))) == len(set(tune.problems(small=False)))
    assert {tuple(problem) for problem in tune.problems(small=False)} == cells


def test_the_model_s_choice_is_always_timed(script, capsys):
    with pytest.raises(SystemExit):
        script("--plans", "1")
    assert "--plans: expected at least 2, got 1" in capsys.readouterr().err


def test_a_nan_is_an_error():
    truth = [torch.ones(2), torch.ones(2)]
    for found in ([1.0, float("nan")], [float("nan"), 1.0]):
        assert compare.errors([torch.full((2,), x) for x in found], truth) == float("inf")


def test_the_fit_finds_the_constants_behind_the_times(kernels):
    """The fit finds the constants that matter, under 3 % noise, and chooses well by them."""
    before = kernels.costs()
    truth = before | {"barrier": 2500.0, "l2": 2500.0, "finish_row": 300.0, "trip_to_l2": 300.0}
    noise = np.random.default_rng(0)
    steps = []
    for direction, H, B in itertools.product(DIRECTIONS, (256, 1024), (1, 16, 128)):
        found, _ = kernels.plans(
            direction, "bfloat16", B, 1, H, products="tf32", device=kernels.device(0)
        )
        for place in tune.spread(found, 16):
            step = costs.Step(direction, "bfloat16", B, 1, H, "tf32", found[place], ns=1)
            ns = step.model(kernels, truth) * float(np.exp(0.03 * noise.standard_normal()))
            steps.append(step._replace(ns=ns))
    fitted = costs.fit(kernels, steps)
    for name in ("barrier", "l2", "finish_row"):
        assert abs(np.log(fitted[name] / truth[name])) < 0.1, name
    assert fitted["clock"] == before["clock"]
    errors = [np.abs(costs.misses(kernels, steps, c)).mean() for c in (before, fitted, truth)]
    assert errors[1] <= 1.01 * errors[2] < 0.2 * errors[0]
    assert 1 <= np.mean(costs.losses(kernels, steps, fitted)) < 1.01


KIND = ("NVIDIA H100 80GB HBM3", 132)
ROW = {"precision": "bfloat16", "H": 512, "B": 16, "L": 1, "D": 2, "train": True, "floor_us": 1.0}


@pytest.mark.parametrize(
    "us, winner",
    [
        ({"nn.LSTM": 4.0, "cuda": 3.0, "triton": 5.0}, "cuda"),
        ({"nn.LSTM": 4.0, "cuda": 5.0}, "torch"),
        ({"nn.LSTM": 4.0, "cuda": 3.95}, "torch"),
        ({"triton": 4.0}, "triton"),
        ({}, None),
    ],
)
def test_the_table_names_what_was_fastest(us, winner):
    row = ROW | {f"{name} us": time for name, time in us.items()} | {"cuda ratio": 1.3}
    expected = [] if winner is None else [Measured("bfloat16", 512, 16, 1, 2, True, winner)]
    assert list(measured.winners([row])) == expected
    tf32 = list(measured.winners([row | {"precision": "tf32"}]))
    assert tf32 == [m._replace(dtype="float32") for m in expected]


def test_the_passes_are_those_with_both_ways():
    sizes = {"precision": "bfloat16", "dtype": "bfloat16", "H": 512, "B": 16, "G": 1}
    sizes["direction"] = "forward"
    rows = [
        {**sizes, "rank": "0", "us": 3.004},
        {**sizes, "rank": "4", "us": 2.0},  # not what a call takes
        {**sizes, "rank": tune.STEPWISE, "us": 9.0},
        {**sizes, "B": 1, "rank": "0", "us": 3.0},
        {**sizes, "H": 4096, "rank": tune.STEPWISE, "us": 9.0},
        {**sizes, "direction": "backward", "rank": "0", "refused": "errs"},
    ]
    expected = MeasuredPass("forward", "bfloat16", 512, 16, 1, 3.0, 9.0)
    assert list(measured.passes(rows)) == [expected]
    namespace = {"MeasuredPass": MeasuredPass}
    exec("PASSES = {\n" + measured.source_of_passes(rows, KIND) + "}", namespace)
    assert namespace["PASSES"] == {KIND: (expected,)}


def test_the_table_can_be_pasted():
    rows = [ROW | {"train": train, "nn.LSTM us": 4.0, "cuda us": 2.0} for train in (True, False)]
    namespace = {"Measured": Measured}
    exec("TABLES = {\n" + measured.source(rows, KIND) + "}", namespace)
    assert namespace["TABLES"] == {KIND: tuple(measured.winners(rows))}
