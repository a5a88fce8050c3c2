"""The triton backend: what it refuses, what it chooses, and its cell kernel at any shape.

test_sequence.py and test_modules.py compare its results with the reference. Its kernels run under
Triton's interpreter, in a process of their own (``make test`` has one), or on a GPU (`pytest -m
gpu`).
"""

import mmap
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from helpers import Case, assert_as_close_as_torch, check_case, run_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fastlstm
from fastlstm.backends import cuda, gpu, select, triton
from fastlstm.kernels import INTERPRETED, configurations
from fastlstm.problem import Problem

LARGE = Problem(
    "cuda", torch.bfloat16, 100, 64, 1, 1024, has_peepholes=True, whole_layers=True, number=0
)
DIRECTIONS = [(False,), (True,), (False, True)]


@pytest.fixture
def hopper(monkeypatch):
    """A machine that looks like one with triton and an H100, and without CUDA kernels."""
    monkeypatch.setattr(triton, "_INSTALLED", True)
    monkeypatch.setattr(triton, "_capability", lambda number: (9, 0))
    monkeypatch.setattr(gpu, "capability", lambda number: (9, 0))
    monkeypatch.setattr(cuda, "kernels", SimpleNamespace(built=False, reason="this is a test"))
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.fixture
def step_by_step(triton_backend, monkeypatch):
    """No LSTM stays on a multiprocessor: each step is a matrix product and the cell kernel."""
    monkeypatch.setattr(configurations, "single_launch", lambda *_: None)
    return triton_backend


@pytest.mark.skipif(INTERPRETED, reason="here it runs on the cpu")
def test_on_the_cpu_the_error_names_the_interpreter():
    with pytest.raises(ValueError, match=r"backend='triton' cannot run .*TRITON_INTERPRET=1"):
        fastlstm.LSTM(3, 4, backend="triton")(torch.randn(2, 3, 3))


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"device": "xpu"}, "needs cuda"),
        ({"dtype": torch.complex64}, "not torch.complex64"),
        ({"G": 33}, "at most 32 groups, not 33"),
        ({"proj_size": 5}, "proj_size=5"),
        ({"has_reset": True}, "reset mask"),
        ({"return_all_cells": True}, "all cell states"),
    ],
)
def test_why_not(hopper, change, reason):
    assert triton.why_not(LARGE) is None
    assert reason in triton.why_not(LARGE._replace(**change))


def test_why_not_looks_at_the_machine(hopper, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(triton, "_capability", lambda number: (7, 5))
        assert "8.0 or later, not 7.5" in triton.why_not(LARGE)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.0")
        assert "ROCm" in triton.why_not(LARGE)
    monkeypatch.setattr(triton, "_INSTALLED", False)
    assert "fastlstm[triton]" in triton.why_not(LARGE)


def test_auto_on_a_gpu_prefers_cudnn_where_it_can(hopper):
    """Until both are measured on a GPU; cuDNN has no peepholes and takes no projected input."""
    assert select.select(LARGE) is triton
    assert select.select(LARGE._replace(whole_layers=False, has_peepholes=False)) is triton
    plain = LARGE._replace(has_peepholes=False)
    assert select.name(select.select(plain)) == "torch"
    assert "could run it; it has not yet run on a GPU" in select.describe(plain)
    assert "not measured on this GPU; it has not yet run on a GPU" in select.describe(LARGE)


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
def test_a_single_launch_holds_all_units_or_does_not_happen(capability):
    for size, H in product((2, 4, 8), range(1, 200)):
        configuration = configurations.single_launch(capability, size, H)
        if configuration is None:
            assert H > 16
            continue
        assert configuration.block_h >= H
        assert configuration.block_h**2 * size <= 32 * 1024


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("reverse", DIRECTIONS)
def test_step_by_step(step_by_step, reverse, peephole, lengths):
    case = Case(T=4, B=3, H=9, I=5, reverse=reverse, peephole=peephole, lengths=lengths)
    check_case(case, step_by_step)


@pytest.mark.parametrize("uses", [("y",), ("hy",), ("cy",)])
def test_step_by_step_with_outputs_unused(step_by_step, uses):
    case = Case(T=3, B=2, H=5, reverse=(False, True), uses=uses, lengths=True)
    check_case(case, step_by_step)


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    case=st.builds(
        Case,
        T=st.just(1),
        B=st.integers(1, 20),
        H=st.integers(1, 130),
        I=st.integers(0, 9),
        reverse=st.lists(st.booleans(), min_size=1, max_size=3).map(tuple),
        peephole=st.booleans(),
        lengths=st.booleans(),
    )
)
def test_the_cell_at_any_shape(triton_backend, case):
    torch.manual_seed(0)  # an example draws the same numbers, whatever ran before it
    check_case(case, triton_backend)


@pytest.mark.parametrize("B", [15, 16, 17, 33])
def test_tiles_of_the_batch(triton_backend, B):
    """Full and partial tiles; the gradients of peepholes and biases are sums over all of them."""
    check_case(Case(T=2, B=B, H=6, reverse=(False, True), lengths=True), triton_backend)


@pytest.mark.parametrize("T, H", [(1, 20), (6, 20), (3, 130)])
def test_float16(triton_backend, T, H):
    case = Case(T=T, B=5, H=H, I=7, reverse=(False, True), lengths=True)
    exact = {name: value.half().double() for name, value in case.inputs().items()}
    cotangents = {name: value.half().double() for name, value in case.cotangents().items()}
    truth = run_case(case, exact, cotangents, "reference")
    ours, torchs = (
        run_case(case, exact, cotangents, name, torch.float16)
        for name in (triton_backend, "reference")
    )
    assert_as_close_as_torch(ours, torchs, truth)


def test_the_same_bits_in_every_run(triton_backend):
    case = Case(T=3, B=40, H=20, I=7, reverse=(False, True))
    inputs, cotangents = case.inputs(), case.cotangents()
    first, second = (
        run_case(case, inputs, cotangents, triton_backend, torch.float32) for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_tanh_has_small_relative_errors(triton_backend):
    """A gate near zero: i = o = 1, so that h = tanh(tanh(g)), which is g to 1 part in 1e8."""
    g = torch.logspace(-9, -5, 16)
    igates = torch.stack([torch.full_like(g, 50.0), -50 + 0 * g, g, torch.full_like(g, 50.0)])
    y = fastlstm.lstm_sequence(
        igates.flatten()[None, None, None], [torch.zeros(64, 16)], backend=triton_backend
    )[0].flatten()
    torch.testing.assert_close(y, g, rtol=1e-6, atol=0)


def test_a_call_can_be_compiled(triton_backend, compiled):
    module = fastlstm.LSTM(5, 6, bidirectional=True, peephole=True, backend=triton_backend)
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(compiled(module)(x)[0], module(x)[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("H", [64, 256])
def test_a_call_can_be_captured_in_a_graph(H):
    module = fastlstm.LSTM(32, H, peephole=True, backend="triton", device="cuda")
    x = torch.randn(20, 8, 32, device="cuda")
    with torch.no_grad():
        expected, _ = module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y, _ = module(x)
        y.zero_()
        graph.replay()
    assert torch.equal(y, expected)


def test_more_groups_than_bits_of_a_word_are_refused(triton_backend):
    igates, state = torch.randn(1, 1, 1, 4), torch.zeros(1, 1, 1)

    def run(weight):
        return fastlstm.lstm_sequence(igates, [weight], state, state, backend=triton_backend)[0]

    with pytest.raises(ValueError, match="takes at most 32 groups, not 33"):
        torch.func.vmap(run)(torch.randn(33, 4, 1))


def test_millions_of_rows_are_a_grid():
    """A grid has 2^31 - 1 blocks along x, but 65,535 along y and z."""
    lstm_cell = pytest.importorskip("fastlstm.kernels.lstm_cell")
    for B, G, H in ((10_000_000, 1, 8), (3, 32, 4096)):
        x, y, z = lstm_cell._grid(B, G, H)
        assert x * configurations.CELL.block_b >= B and x < 2**31
        assert y * configurations.CELL.block_h >= H and max(y, z) <= 65_535 and z == G


def test_groups_may_be_far_apart(triton_backend):
    """Offsets of a group do not fit into 32 bits, though its stride does."""
    from fastlstm.kernels.lstm_cell import lstm_cell_backward, lstm_cell_forward

    T, B, G, H, stride = 1, 2, 3, 4, 2**30
    if torch.get_default_device().type == "cpu":  # pages that are not touched take no memory
        far = torch.frombuffer(mmap.mmap(-1, 2 * (2 * stride + 64)), dtype=torch.float16)
    else:
        far = torch.empty(2 * stride + 64, dtype=torch.float16)

    def apart(values):
        """The same (T, B, G, n), the groups 2^30 elements apart."""
        view = far.as_strided(values.shape, (64, values.shape[-1], stride, 1))
        return view.copy_(values)

    new = {"dtype": torch.float16}
    igates, hgates = torch.randn(T, B, G, 4 * H, **new), torch.randn(G, B, 4 * H, **new)
    dy, reserve = torch.randn(T, B, G, H, **new), torch.rand(T, B, G, 5 * H, **new)
    cx = torch.randn(G, B, H, **new)

    def forward(igates):
        h, c, y = cx.clone(), cx.float(), torch.zeros(T, B, G, H, **new)
        lstm_cell_forward(igates, hgates, None, None, h, c, y, None, reverse=0, step=0)
        return y

    def backward(dy):
        dh, dc = torch.zeros(G, B, H, **new), torch.zeros(G, B, H)
        dgates, dhgates = torch.zeros(T, B, G, 4 * H, **new), torch.zeros(G, B, 4 * H, **new)
        arguments = (dy, reserve, None, cx, None, dh, dc, dgates, dhgates, None)
        lstm_cell_backward(*arguments, reverse=0, step=0)
        return dgates

    assert torch.equal(forward(apart(igates)), forward(igates))
    assert torch.equal(backward(apart(dy)), backward(dy))


def test_a_step_of_more_than_2_31_numbers_is_not_in_a_single_launch(hopper):
    """The kernels of a whole sequence have 32 bits for an offset within a step."""
    for rows, fits in ((2**31 // (5 * 128), True), (2**31 // (5 * 128) + 1, False)):
        y = torch.empty(2, rows, 1, 128, dtype=torch.bfloat16, device="meta")
        assert (triton._single_launch(y, 128) is not None) is fits
    assert triton._single_launch(y[:1], 128) is None
