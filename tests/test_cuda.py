"""The cuda backend: what it refuses, when it is chosen, persistent and step-by-step kernels.

Other files, such as test_sequence.py, compare its results with the reference: on a GPU, or on a CPU
with the emulated kernels that test_cuda_emulation.py tests.
"""

import mmap
from types import SimpleNamespace

import emulation
import pytest
import torch
from helpers import Case, check_case, check_low_precision

import fastlstm
from fastlstm import _C
from fastlstm.backends import cuda, gpu, select, triton
from fastlstm.backends.cuda import recurrence
from fastlstm.backends.gpu import timings
from fastlstm.backends.gpu.timings import Measured
from fastlstm.call import (
    Call,
    GroupWeights,
    Needs,
    OutputGradients,
    Results,
    Saved,
    SequenceLayout,
)
from fastlstm.problem import Problem

LARGE = Problem("cuda", torch.bfloat16, 100, 64, 1, 1024, I=1024, whole_layers=True, number=0)
PEEPHOLES = LARGE._replace(has_peepholes=True)
KIND = ("NVIDIA H100 80GB HBM3", 132)


class Kernels(SimpleNamespace):
    """In the place of a module, which is a key of caches too."""

    __hash__ = object.__hash__


@pytest.fixture
def hopper(monkeypatch):
    """A machine that looks like one with an H100, triton and CUDA kernels."""
    built = Kernels(built=True, reason=None, architectures=(80, 90), ptx=())
    built.device = lambda number: {"major": 9, "minor": 0}
    monkeypatch.setattr(cuda, "kernels", built)
    monkeypatch.setattr(gpu, "capability", lambda number: (9, 0))
    monkeypatch.setattr(gpu, "kind", lambda number: KIND)
    monkeypatch.setattr(triton, "_capability", lambda number: (9, 0))
    monkeypatch.setattr(triton, "_INSTALLED", True)
    monkeypatch.setattr(torch.version, "hip", None)


def test_a_cpu_is_not_for_it():
    with pytest.raises(ValueError, match=r"backend='cuda' cannot run .* needs tensors on cuda"):
        fastlstm.LSTM(3, 4, backend="cuda")(torch.randn(2, 3, 3))


def test_the_module_says_why_it_has_no_kernels():
    assert _C.cuda.built == (_C.cuda.reason is None) == bool(_C.cuda.architectures)
    assert _C.cuda.built == hasattr(_C.cuda, "forward")


@pytest.mark.skipif(not _C.cuda.built, reason=f"there are no CUDA kernels: {_C.cuda.reason}")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_a_call_without_a_driver_raises():
    with pytest.raises(RuntimeError, match="cuda"):
        _C.cuda.device(0)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"device": "xpu"}, "needs tensors on cuda, not on xpu"),
        ({"dtype": torch.complex64}, "not torch.complex64"),
        ({"G": 257}, "at most 256 groups, not 257"),
        ({"proj_size": 5}, "proj_size=5"),
    ],
)
def test_why_not(hopper, change, reason):
    assert cuda.why_not(PEEPHOLES) is None
    assert reason in cuda.why_not(PEEPHOLES._replace(**change))


def test_why_not_every_layout(hopper):
    layout = {"has_lengths": True, "is_packed_sequence": True, "has_reset": True}
    layout["return_all_cells"] = True
    assert cuda.why_not(PEEPHOLES._replace(**layout)) is None


def test_why_not_looks_at_the_machine_and_the_build(hopper, monkeypatch):
    monkeypatch.setattr(gpu, "capability", lambda number: (7, 5))
    assert "8.0 or later, not 7.5" in cuda.why_not(LARGE)
    monkeypatch.setattr(gpu, "capability", lambda number: (8, 6))
    assert cuda.why_not(LARGE) is None
    cuda.kernels.architectures = (90, 100)
    assert "built for sm_90, sm_100, without code for sm_86" in cuda.why_not(LARGE)
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert "ROCm" in cuda.why_not(LARGE)
    cuda.kernels.built, cuda.kernels.reason = False, "nvcc was not found when it was built"
    expected = "this build has no CUDA kernels: nvcc was not found when it was built"
    assert cuda.why_not(LARGE) == expected


def test_cudnn_is_chosen_until_a_gpu_is_measured(hopper):
    assert select.name(select.select(LARGE)) == "torch"
    lines = {line.split()[0]: line for line in select.describe(LARGE).splitlines()[1:]}
    assert "chosen until this GPU is measured" in lines["torch"]
    assert lines["cuda"].endswith("could run it; it has not yet run on a GPU")


def test_what_is_measured_is_chosen(hopper, monkeypatch):
    """The fastest at the nearest sizes with the same dtype and mode, if it can run the problem."""
    large, small = (Measured("bfloat16", H, 64, 1, 1, False, "cuda") for H in (1024, 256))
    table = (large, small._replace(backend="torch"), large._replace(train=True, backend="triton"))
    monkeypatch.setitem(timings.TABLES, KIND, table)

    def chosen(**change):
        return select.name(select.select(LARGE._replace(**change)))

    assert chosen() == chosen(H=700) == "cuda"
    assert chosen(H=300) == "torch"
    assert chosen(requires_grad=True) == "triton"
    assert chosen(requires_grad=True, has_reset=True) == "cuda"  # triton cannot
    assert chosen(dtype=torch.float16) == "torch"  # not measured
    assert "measured fastest at H=1024 B=64" in select.describe(LARGE)


@pytest.mark.parametrize(
    "change, chosen",
    [
        ({}, "cuda"),
        ({"H": 8}, "triton"),
        ({"whole_layers": False, "has_peepholes": False}, "cuda"),
        ({"proj_size": 5}, "reference"),
    ],
)
def test_what_cudnn_cannot_run_is_for_our_kernels(hopper, change, chosen):
    problem = PEEPHOLES._replace(**change)
    assert select.name(select.select(problem)) == chosen
    assert "not measured on this GPU" in select.describe(problem)


def test_why_not_options(hopper):
    accepted = ("recurrent_dropout", "zoneout", "cell_clip", "layer_norm")
    problem = PEEPHOLES._replace(options=("variational_dropout", *accepted), cell_options=accepted)
    assert cuda.why_not(problem) is None
    assert cuda.why_not(problem._replace(H=12288)) is None
    refused = problem._replace(H=6145, dtype=torch.float64)
    expected = "has layer norm for at most 6144 units in torch.float64, not 6145"
    assert cuda.why_not(refused) == expected


def test_float32_products_follow_cudnn():
    torch.backends.cudnn.allow_tf32 = True
    assert gpu.precision() == "tf32"
    torch.backends.cudnn.allow_tf32 = False
    assert gpu.precision() == "tf32x3"


@pytest.fixture
def emulated(monkeypatch):
    """The name "cuda", whose kernels run on the CPU."""
    emulation.install(monkeypatch, seed=0)
    return "cuda"


@pytest.fixture
def step_by_step(emulated, monkeypatch):
    """No GPU holds W_hh on chip: each step is a matrix product and the cell kernel."""
    monkeypatch.setattr(recurrence, "best_plan", lambda *_: (None, ""))
    return emulated


@pytest.mark.parametrize("layout", [{}, {"lengths": True, "reset": True}, {"packed": True}])
@pytest.mark.parametrize("reverse", [(False,), (True, False)])
def test_step_by_step(step_by_step, reverse, layout):
    case = Case(T=4, B=3, H=9, I=5, reverse=reverse, uses=("y", "hy", "cy", "cells"), **layout)
    check_case(case, step_by_step)
    for dtype in (torch.bfloat16, torch.float16):
        check_low_precision(case, step_by_step, dtype)


def test_rows_and_units_of_a_cell_s_gradient_are_divided_among_many_threads(emulated):
    """At the paper's size: a block for 16 units, and 4 rows for a thread."""
    B, H, new = 100, 2048, {"dtype": torch.bfloat16}
    y, reserve, cx = torch.zeros(1, B, 1, H), torch.rand(1, B, 1, 5 * H, **new), torch.rand(1, B, H)
    dgates, dhgates = torch.empty(1, B, 1, 4 * H, **new), torch.empty(1, B, 4 * H, **new)
    dh, dc = torch.rand(1, B, H), torch.rand(1, B, H)
    launch = recurrence.prepare(cuda.kernels, "backward", y.to(**new), SequenceLayout([False]))
    cx = cx.to(**new)
    cuda.kernels.take_launches()
    cuda.kernels.cell_backward(
        **launch.arguments,
        step=0,
        dy=0,
        dy_stride=(0, 0, 0),
        dcells=0,
        reserve=reserve.data_ptr(),
        weight_ch=(0, 0),
        cx=cx.data_ptr(),
        digates=dgates.data_ptr(),
        digates_stride=dgates.stride()[:3],
        dhgates=dhgates.data_ptr(),
        dh=dh.data_ptr(),
        dc=dc.data_ptr(),
        dbias=0,
        dweight_ch=0,
    )
    ((blocks, threads),) = cuda.kernels.take_launches()
    assert blocks == 128  # of an H100's 132 multiprocessors
    assert -(-B // (threads * blocks // H)) == 4
    assert dgates.isfinite().all() and torch.equal(dgates[0, :, 0], dhgates[0])


@pytest.mark.parametrize("H, stepwise", [(40, False), (256, False), (40, True)])
def test_numbers_may_be_2_31_apart(emulated, H, stepwise):
    """Offsets of steps and of groups do not fit into 32 bits: by one block, several, and cells."""
    T, B, G, new = 3, 2, 3, {"dtype": torch.bfloat16}
    # Pages that are not touched take no memory.
    far = torch.frombuffer(mmap.mmap(-1, 2 * (2**32 + 2**18)), **new)

    def apart(values):
        """The same (T, B, G, n); the last number is 2^32 after the first."""
        strides = (2**30 + 2**16, values.shape[-1], 2**30, 1)
        return far.as_strided(values.shape, strides).copy_(values)

    layout = SequenceLayout([False, True, False])
    y, reserve = torch.zeros(T, B, G, H, **new), torch.rand(T, B, G, 5 * H, **new)
    igates, dy = torch.randn(T, B, G, 4 * H, **new), torch.randn(T, B, G, H, **new)
    hx, weight_hh = torch.randn(G, B, H, **new), torch.randn(G, 4 * H, H, **new) / H
    call = Call(igates, GroupWeights([], list(weight_hh)), hx, hx, layout)
    forward, backward = (
        recurrence.prepare(cuda.kernels, direction, y, layout)
        for direction in ("forward", "backward")
    )
    assert (forward.plan["slices"] > 1) is (backward.plan["slices"] > 1) is (H == 256)
    if stepwise:
        forward, backward = forward._replace(plan=None), backward._replace(plan=None)

    def run_forward(igates):
        results = Results(y.clone(), hx.clone(), hx.clone(), reserve=reserve.clone())
        recurrence.forward(forward, igates, call, results)
        return torch.stack([results.y, *results.reserve.chunk(5, -1)])

    def run_backward(dy):
        needs = Needs(True, False, True, True, False, False)
        grads = OutputGradients(dy)
        return recurrence.backward(backward, call, Saved(y, reserve), grads, needs)[0]

    assert torch.equal(run_forward(apart(igates)), run_forward(igates))
    assert torch.equal(run_backward(apart(dy)), run_backward(dy))


@pytest.mark.parametrize("T", [1, 4])
def test_a_second_backward_finds_what_the_first_one_did(emulated, T):
    module = fastlstm.LSTM(5, 20, 2, peephole=True, bidirectional=True, backend=emulated)
    loss = module(torch.randn(T, 3, 5))[0].sin().sum()
    parameters = list(module.parameters())
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_a_call_can_be_compiled(emulated, compiled):
    module = fastlstm.LSTM(5, 20, bidirectional=True, peephole=True, backend=emulated)
    x = torch.randn(3, 2, 5)
    torch.testing.assert_close(compiled(module)(x)[0], module(x)[0])


def test_groups_of_an_ensemble(emulated):
    """vmap makes the members groups of one kernel call."""
    members = [fastlstm.LSTM(3, 8, peephole=True, backend=emulated) for _ in range(3)]
    parameters, _ = torch.func.stack_module_state(members)
    x = torch.randn(4, 2, 3)

    def call(parameters, x):
        return torch.func.functional_call(members[0], parameters, (x,))[0]

    found = torch.func.vmap(call, in_dims=(0, None))(parameters, x)
    torch.testing.assert_close(found, torch.stack([member(x)[0] for member in members]))
