"""The cuda backend step by step: when it is faster than a persistent launch, and its CUDA graphs.

The kernels are emulated, and a stand-in takes the place of a CUDA graph: it keeps the launches, and
replays them on the memory that they were captured with.
"""

import emulation
import pytest
import torch
from helpers import Case, run_case
from option_cases import option_call, results_of

import fastlstm
from fastlstm.backends import cuda
from fastlstm.backends.cuda import graphs, recurrence, wavefront, ways
from fastlstm.backends.gpu import timings
from fastlstm.backends.gpu.timings import MeasuredPass

KIND = ("NVIDIA H100 80GB HBM3", 132)
H100 = {"major": 9, "minor": 0, "multiprocessors": 132, "shared_memory": 227 * 1024}


@pytest.fixture
def kernels(monkeypatch):
    """Emulated kernels, whose plans are those of an H100."""
    found = emulation.install(monkeypatch, seed=0)
    monkeypatch.setattr(found, "device", lambda number: H100)
    caches = recurrence.best_plan, recurrence.is_stepwise, wavefront._why_slower
    for cache in caches:
        cache.cache_clear()
    yield found
    for cache in caches:
        cache.cache_clear()


def is_stepwise(kernels, direction, H, B, T, captured=False):
    about = ways.Pass(direction, "bfloat16", B, 1, H, T)
    return recurrence.is_stepwise(kernels, about, "tf32x3", 0, captured)


@pytest.mark.parametrize(
    "direction, H, B, T, expected",
    [
        ("backward", 2048, 100, 100, True),  # the paper's: 54 us a step against 15
        ("backward", 2048, 100, 10, True),
        ("forward", 2048, 128, 100, True),
        ("forward", 2048, 16, 100, False),
        ("forward", 1024, 16, 100, False),
        ("backward", 1024, 16, 100, False),
        ("forward", 256, 64, 2, False),  # little to load
    ],
)
def test_the_faster_way_is_taken(kernels, direction, H, B, T, expected):
    assert is_stepwise(kernels, direction, H, B, T) is expected
    y = torch.empty(T, B, 1, H, dtype=torch.bfloat16)
    launch = recurrence.prepare(kernels, direction, y, fastlstm.call.SequenceLayout([False]))
    assert (launch.plan is None) is expected


def test_the_start_of_a_launch_counts(kernels):
    """Loading W_hh takes a persistent launch longer than two steps do."""
    assert is_stepwise(kernels, "backward", 2048, 16, 2, captured=True)
    assert not is_stepwise(kernels, "backward", 2048, 16, 500, captured=True)


def test_launches_by_the_cpu_count_unless_a_graph_has_them(kernels):
    about = ways.Pass("forward", "bfloat16", 100, 1, 2048, 50)
    assert ways.stepwise_ns(about, captured=True) < ways.stepwise_ns(about)
    assert ways.stepwise_ns(about, captured=True) == 50 * ways.gpu_step_ns(about)


def test_a_measurement_overrules_the_models(kernels, monkeypatch):
    monkeypatch.setattr(ways.gpu, "kind", lambda number: KIND)
    for H, persistent_us, stepwise_us in ((2048, 9.0, 15.0), (1024, 9.0, 5.0)):
        measured = MeasuredPass("backward", "bfloat16", H, 64, 1, persistent_us, stepwise_us)
        table = {KIND: (*timings.PASSES.get(KIND, ()), measured)}
        monkeypatch.setattr(timings, "PASSES", table)
    recurrence.is_stepwise.cache_clear()
    assert not is_stepwise(kernels, "backward", 2048, 100, 500)
    assert is_stepwise(kernels, "backward", 1024, 64, 500)
    assert is_stepwise(kernels, "backward", 1200, 64, 500)
    assert not is_stepwise(kernels, "backward", 256, 64, 500)  # too far from any of them
    assert not is_stepwise(kernels, "forward", 1024, 64, 500)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, True),
        ({"T": 2}, False),  # the copies take longer than the launches
        ({"B": 128, "H": 4096, "T": 1000}, False),  # 10 GB of memory of its own
        ({"B": 128, "H": 8192, "T": 10, "dtype": "float32"}, False),  # the GPU takes longer
    ],
)
def test_where_launches_would_dominate_a_graph_is_wanted(changes, expected):
    about = ways.Pass("forward", "bfloat16", 16, 1, 1024, 100)
    assert ways.wants_graph(about._replace(**changes)) is expected


class FakeGraph:
    """In the place of a CUDA graph."""

    def __init__(self):
        self.replays, self.closed = 0, False
        FakeGraph.made.append(self)

    def capture(self, body):
        if FakeGraph.fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        outputs = body()

        def again():
            for own, new in zip(outputs, body(), strict=True):
                own.copy_(new)

        self._again = again
        return outputs

    def replay(self):
        self.replays += 1
        self._again()

    def close(self):
        self.closed = True


@pytest.fixture
def graphed(kernels, monkeypatch):
    """Every pass runs step by step, and would be a CUDA graph on a GPU."""
    monkeypatch.setattr(FakeGraph, "made", [], raising=False)
    monkeypatch.setattr(FakeGraph, "fails", False, raising=False)
    monkeypatch.setattr(recurrence, "GRAPHS", graphs.Graphs(FakeGraph))
    monkeypatch.setattr(recurrence, "best_plan", lambda *_: (None, ""))
    monkeypatch.setattr(recurrence, "wants_graph", lambda *_: True)
    return FakeGraph.made


LAYOUTS = [
    {"uses": ("y", "hy", "cy", "cells"), "lengths": True, "reset": True},
    {"I": 5, "peephole": False},
    {"uses": ("hy",)},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("reverse", [(False,), (False, True)])
def test_replays_have_the_bits_of_the_launches(graphed, reverse, layout):
    """On other numbers, lengths and weights than those of the capture."""
    case = Case(T=4, B=3, H=9, reverse=reverse, **layout)
    problems = [(case.inputs(), case.cotangents()) for _ in range(4)]
    for call, (inputs, cotangents) in enumerate(problems):
        lengths = torch.randint(1, 5, (3,)) if case.lengths else None
        found = run_case(case, inputs, cotangents, "cuda", torch.float32, lengths=lengths)
        assert len(graphed) == (2 if call else 0)  # of both passes, at the second call
        recurrence.GRAPHS, kept = graphs.Graphs(FakeGraph), recurrence.GRAPHS
        expected = run_case(case, inputs, cotangents, "cuda", torch.float32, lengths=lengths)
        recurrence.GRAPHS = kept
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [graph.replays for graph in graphed] == [3, 3]


def test_replays_with_options(graphed):
    """On other masks than those of the capture; another limit of c is another graph."""
    case, names = Case(T=4, B=3, H=9, I=5), ("hidden_mask", "keep_h", "keep_c", "cell_clip")
    for turn, limit in enumerate((0.25, 0.25, 0.25, 0.5, 0.5)):
        call, cotangents = option_call(case, names, torch.float32), case.cotangents()
        call = call._replace(options=call.options._replace(cell_clip=limit))
        found = results_of(cuda, call, case, cotangents)
        recurrence.GRAPHS, kept = graphs.Graphs(FakeGraph), recurrence.GRAPHS
        expected = results_of(cuda, call, case, cotangents)
        recurrence.GRAPHS = kept
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert len(graphed) == (0, 3, 3, 3, 6)[turn]  # of training, inference and backward
    assert [graph.replays for graph in graphed] == [2, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("names", [("norm_hh",), ("norm_hh", "norm_c", "hidden_mask", "keep_h")])
def test_replays_with_layer_norm(graphed, names):
    """On other gains, biases and states than those of the capture."""
    case = Case(T=4, B=3, H=9, peephole="norm_c" in names, lengths=True)
    for turn in range(3):
        call, cotangents = option_call(case, names, torch.float32), case.cotangents()
        found = results_of(cuda, call, case, cotangents)
        recurrence.GRAPHS, kept = graphs.Graphs(FakeGraph), recurrence.GRAPHS
        expected = results_of(cuda, call, case, cotangents)
        recurrence.GRAPHS = kept
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert len(graphed) == (3 if turn else 0)  # of training, inference and backward
    assert [graph.replays for graph in graphed] == [2, 2, 2]


def test_results_are_the_callers_own(graphed):
    module = fastlstm.LSTM(3, 8, backend="cuda")
    xs = torch.randn(4, 5, 2, 3)
    with torch.no_grad():
        outputs = [module(x)[0] for x in xs]
        before = [output.clone() for output in outputs]
        module(xs[0])
    assert len(graphed) == 1 and graphed[0].replays == 4
    assert all(map(torch.equal, outputs, before))
    assert not torch.equal(outputs[1], outputs[2])


def test_training_and_inference_have_graphs_of_their_own(graphed):
    module, x = fastlstm.LSTM(3, 8, backend="cuda"), torch.randn(5, 2, 3)
    for _ in range(3):
        with torch.no_grad():
            module(x)
        module(x)[0].sum().backward()
    assert [graph.replays for graph in graphed] == [2, 2, 2]


def test_other_shapes_are_other_graphs_and_few_are_kept(graphed, monkeypatch):
    monkeypatch.setattr(recurrence, "GRAPHS", graphs.Graphs(FakeGraph, most=2))
    module = fastlstm.LSTM(3, 8, backend="cuda")
    with torch.no_grad():
        for T in (3, 4, 5):
            for _ in range(2):
                module(torch.randn(T, 2, 3))
        assert [graph.closed for graph in graphed] == [True, False, False]
        module(torch.randn(4, 2, 3))
        module(torch.randn(3, 2, 3))  # it was dropped: as if for the first time
    assert [graph.replays for graph in graphed] == [1, 2, 1]
    assert [graph.closed for graph in graphed] == [True, False, True]


def test_nothing_is_captured_within_the_users_capture(graphed, monkeypatch):
    monkeypatch.setattr(recurrence.gpu, "is_capturing", lambda device: True)
    module, x = fastlstm.LSTM(3, 8, backend="cuda"), torch.randn(5, 2, 3)
    for _ in range(3):
        module(x)[0].sum().backward()
    assert graphed == []


def test_what_cannot_be_captured_is_launched(graphed):
    FakeGraph.fails = True
    module, x = fastlstm.LSTM(3, 8, backend="cuda"), torch.randn(5, 2, 3)
    with torch.no_grad():
        found = [module(x)[0] for _ in range(4)]
    assert len(graphed) == 1  # tried once
    assert all(torch.equal(output, found[0]) for output in found)


def test_a_wavefront_competes_with_the_faster_way_of_a_layer(kernels, monkeypatch):
    """Not only with persistent launches one after the other."""
    sizes = ("bfloat16", 1, 2, 1024)
    why = recurrence.expected_ns
    assert wavefront._why_slower(kernels, "forward", sizes, 99, "tf32x3", 0) is None
    monkeypatch.setattr(recurrence, "expected_ns", lambda *args: (why(*args)[0], 1000.0))
    slower = wavefront._why_slower(kernels, "forward", sizes, 98, "tf32x3", 0)
    assert "us for one of each" in slower


def test_a_launch_without_its_plan_may_be_a_graph(kernels, monkeypatch):
    """As benchmarks time both ways of a pass."""
    monkeypatch.setattr(recurrence, "wants_graph", lambda *_: True)
    y = torch.empty(5, 3, 1, 256, dtype=torch.bfloat16)
    launch = recurrence.prepare(kernels, "forward", y, fastlstm.call.SequenceLayout([False]))
    assert launch.plan is not None and launch._replace(plan=None).in_graph


def test_a_graph_of_inference_mode_serves_other_calls(graphed):
    module, xs = fastlstm.LSTM(3, 8, backend="cuda"), torch.randn(4, 5, 2, 3)
    found = []
    for x, mode in zip(xs, (True, True, False, True), strict=True):
        with torch.inference_mode(mode), torch.no_grad():
            found.append(module(x)[0])
    assert len(graphed) == 1 and graphed[0].replays == 3
    assert [output.is_inference() for output in found] == [True, True, False, True]
    module.backend = "reference"
    with torch.no_grad():
        for x, output in zip(xs, found, strict=True):
            torch.testing.assert_close(output, module(x)[0])
