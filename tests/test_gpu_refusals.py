"""Machines that the GPU kernels cannot run on, or only in part: the reason is said, or it is right.

Nothing here needs a GPU: the driver and the build are stand-ins.
"""

from types import SimpleNamespace

import pytest
import torch

import fastlstm
from fastlstm import _C
from fastlstm.backends import cuda, gpu, select, triton
from fastlstm.backends.cuda import ways
from fastlstm.backends.gpu import timings
from fastlstm.backends.gpu.timings import Measured, MeasuredPass
from fastlstm.problem import Problem

PROBLEM = Problem("cuda", torch.bfloat16, 100, 64, 1, 512, I=512, whole_layers=True, number=0)
PEEPHOLES = PROBLEM._replace(has_peepholes=True)


class Kernels(SimpleNamespace):
    """In the place of a module, which is a key of caches too."""

    __hash__ = object.__hash__


@pytest.fixture
def gpus(monkeypatch):
    """Compute capabilities of the GPUs of a machine with a build for sm_80, sm_90 and sm_100."""
    found = [(9, 0)]
    asked = []

    def device(number):
        asked.append(number)
        return {"major": found[number][0]}

    built = Kernels(built=True, reason=None, architectures=(80, 90, 100), ptx=(100,))
    built.device, built.asked = device, asked
    monkeypatch.setattr(cuda, "kernels", built)
    monkeypatch.setattr(gpu, "capability", lambda number: found[number])
    monkeypatch.setattr(triton, "_INSTALLED", True)
    monkeypatch.setattr(triton, "INTERPRETED", False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    return found


def test_a_driver_that_is_too_old_is_a_reason(gpus):
    """torch runs there, with a runtime of its own: "auto" must not choose kernels that raise."""
    said = "cudaDeviceGetAttribute: cudaErrorInsufficientDriver (CUDA driver version is ...)"

    def device(number):
        cuda.kernels.asked.append(number)
        raise RuntimeError(said)

    cuda.kernels.device = device
    for _ in range(3):
        assert cuda.why_not(PEEPHOLES) == f"cannot use this GPU: {said}"
    assert cuda.kernels.asked == [0]  # once
    assert select.name(select.select(PEEPHOLES)) == "triton"
    assert f"no: cannot use this GPU: {said}" in select.describe(PEEPHOLES)
    with pytest.raises(ValueError, match=r"backend='cuda' cannot run .*InsufficientDriver"):
        select.select(PEEPHOLES, "cuda")


@pytest.mark.parametrize(
    "built, ptx, found, runs",
    [
        ((90,), (), (9, 0), True),
        ((90,), (), (10, 0), False),  # machine code is of one major version
        ((90,), (90,), (10, 0), True),  # the driver compiles PTX
        ((80,), (), (8, 6), True),  # a later minor version
        ((89,), (), (8, 6), False),
        ((80, 90, 100), (100,), (12, 0), True),
        ((80, 90, 100), (100,), (8, 9), True),
        ((90, 100), (100,), (8, 0), False),
        ((), (), (9, 0), True),  # "native": the build does not say
    ],
)
def test_a_build_without_code_for_the_gpu_is_a_reason(gpus, built, ptx, found, runs):
    gpus[0] = found
    cuda.kernels.architectures, cuda.kernels.ptx = built, ptx
    reason = cuda.why_not(PEEPHOLES)
    assert reason is None if runs else f"without code for sm_{found[0]}{found[1]}" in reason


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"B": 2**31}, "at most 2147483647 rows of up to 256 units in all groups, not 2147483648"),
        ({"B": 2**30, "H": 257}, "rows of up to 256 units in all groups, not 2147483648"),
        ({"B": 2**23, "G": 256, "H": 1}, "in all groups, not 2147483648"),
        ({"T": 2**31 - 1}, "at most 2147483646 time steps, not 2147483647"),
    ],
)
def test_more_rows_than_a_grid_has_blocks_are_a_reason(gpus, change, reason):
    """The driver would refuse 2^31 blocks without one, and take 2^32 + 1 for 1."""
    problem = PEEPHOLES._replace(whole_layers=False, H=1)
    assert cuda.why_not(problem._replace(B=2**31 - 1)) is None
    assert reason in cuda.why_not(problem._replace(**change))


def test_the_question_is_about_the_tensors_gpu(gpus):
    """Not about the current one, where a machine has GPUs of several kinds."""
    gpus.append((7, 5))
    gpus.append((12, 0))
    second, third = (PEEPHOLES._replace(number=number) for number in (1, 2))
    for backend in (cuda, triton):
        assert backend.why_not(PEEPHOLES) is None
        assert "not 7.5" in backend.why_not(second)
        assert backend.why_not(third) is None
        assert backend.why_not(PEEPHOLES._replace(number=None)) is None
    assert set(cuda.kernels.asked) == {0, 2}
    assert select.name(select.select(second)) == "reference"


WHOLE = ("NVIDIA H100 80GB HBM3", 132)
OTHERS = [
    ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", 16),  # a slice
    ("NVIDIA H100 80GB HBM3", 66),  # a part that has the name of the whole
    ("NVIDIA H200", 132),  # another memory
]


@pytest.mark.parametrize("other", OTHERS, ids=str)
def test_the_table_is_the_one_of_the_tensors_gpu(gpus, monkeypatch, other):
    """Of that GPU, as it is: not of all GPUs with its compute capability."""
    gpus.append((9, 0))
    kinds = [other, WHOLE]
    properties = [SimpleNamespace(name=name, multi_processor_count=n) for name, n in kinds]
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    measured = Measured("bfloat16", 512, 64, 1, 1, False, "cuda")
    monkeypatch.setitem(timings.TABLES, WHOLE, (measured,))
    assert select.name(select.select(PROBLEM)) == "torch"
    assert select.name(select.select(PROBLEM._replace(number=1))) == "cuda"
    of_pass = MeasuredPass("forward", "bfloat16", 512, 64, 1, 3.0, 9.0)
    monkeypatch.setattr(timings, "PASSES", {WHOLE: (of_pass,)})
    about = ways.Pass("forward", "bfloat16", 64, 1, 512, 100)
    assert ways.measured(about, 0) is None and ways.measured(about, 1) == of_pass


def test_a_wavefront_is_planned_for_the_tensors_gpu(gpus, monkeypatch):
    numbers = []

    def best_plan(kernels, direction, sizes, products, number, layered=False):
        numbers.append(number)
        return None, "too large"

    monkeypatch.setattr(cuda.recurrence, "best_plan", best_plan)
    layers = PEEPHOLES._replace(L=2, number=0, H=333)
    assert select.why_not_stacked(cuda, layers) == "too large"
    assert select.why_not_stacked(cuda, layers._replace(number=1)) == "too large"
    assert numbers == [0, 1]


def test_a_call_asks_about_its_own_device():
    module = fastlstm.LSTM(3, 4, device="meta")
    assert module.problem(torch.empty(2, 1, 3, device="meta")).number is None
    cpu = fastlstm.LSTM(3, 4)
    assert cpu.problem(torch.empty(2, 1, 3)).number is None
    assert gpu.number(cpu.problem(None)) == 0


@pytest.mark.parametrize(
    "change, chosen",
    [
        ({"H": 128}, "triton"),
        ({"H": 129}, "cuda"),
        ({"H": 64, "dtype": torch.float32}, "triton"),
        ({"H": 65, "dtype": torch.float32}, "cuda"),
        ({"H": 128, "T": 1}, "cuda"),  # a product and a cell, and no W_hh to keep
        ({"H": 128, "has_reset": True}, "cuda"),  # which Triton's kernels do not have
        ({"H": 128, "cell_options": ("layer_norm",)}, "cuda"),  # step by step in both
        ({"H": 128, "has_peepholes": False}, "torch"),
    ],
)
def test_few_units_are_for_triton_until_they_are_measured(gpus, change, chosen):
    """By the machine code Triton's step is about four times faster than a single CUDA block's."""
    assert select.name(select.select(PEEPHOLES._replace(**change))) == chosen


def test_few_units_are_for_cuda_where_triton_is_not_installed(gpus, monkeypatch):
    monkeypatch.setattr(triton, "_INSTALLED", False)
    assert select.name(select.select(PEEPHOLES._replace(H=128))) == "cuda"


@pytest.mark.parametrize("H, chosen", [(64, 1.0), (512, 2.0)])
def test_the_choice_can_be_traced(gpus, compiled, H, chosen):
    """A compiler does not trace the question to the driver."""

    def call(x):
        backend = select.name(select.select(PEEPHOLES._replace(H=H)))
        return x + {"triton": 1, "cuda": 2}[backend]

    assert compiled(call)(torch.zeros(())) == chosen
    assert cuda.kernels.asked == []


def test_a_part_of_a_gpu_gets_as_many_blocks_as_it_has_multiprocessors():
    """MIG slices say how many they have; a launch of more blocks than those would be refused."""
    if not _C.cuda.built:
        pytest.skip("the plans are those of the compiled module")
    for multiprocessors in (1, 16, 60):
        device = {"major": 9, "minor": 0, "shared_memory": 227 * 1024}
        device["multiprocessors"] = multiprocessors
        for H, G in ((64, 1), (256, 2), (1024, 1)):
            sizes = ("forward", "bfloat16", 64, G, H)
            plans, reason = _C.cuda.plans(*sizes, products="tf32", device=device)
            assert bool(plans) == (reason == "")
            assert all(G * plan["tiles"] * plan["slices"] <= multiprocessors for plan in plans)
