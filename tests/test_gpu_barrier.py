"""Sizes at which the blocks of a persistent launch wait for each other, which few units do not.

The tests marked ``gpu`` have not run on a GPU yet. One without the mark asserts that these sizes,
and those that compute-sanitizer runs, have several blocks on an H100 or H200.
"""

import emulation
import pytest
import torch
from helpers import Case, error, run_case

from benchmarks.gpu.first_contact import tasks
from fastlstm import _C
from fastlstm.backends.cuda import recurrence

H100 = {"major": 9, "minor": 0, "multiprocessors": 132, "shared_memory": 227 * 1024}
UNITS, ROWS = (130, 256, 512, 1024, 2048), (1, 3, 17, 65, 130)
# The dtype of the tensors, and the dtype in which torch errs as much.
PRECISIONS = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "tf32": (torch.float32, torch.float16),  # its mantissa is float16's
    "tf32x3": (torch.float32, torch.float32),
}
LAYOUTS = [
    {"reverse": (True,)},
    {"lengths": True},
    {"reset": True},
    {"reverse": (False, True), "lengths": True, "reset": True},
]


def _best_plan(kernels, direction, precision, B, H, device):
    dtype, products = PRECISIONS[precision][0], "tf32x3" if precision == "tf32x3" else "tf32"
    sizes = (recurrence.DTYPES[dtype], B, 1, H)
    plans, _ = kernels.plans(direction, *sizes, products=products, device=device)
    return plans[0] if plans else None


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_these_sizes_have_several_blocks(precision, direction):
    kernels = _C.cuda if _C.cuda.built else emulation.module("cuda_emulation")
    sizes = [(H, B) for H in UNITS for B in ROWS] + list(tasks.SANITIZED)
    found = {(H, B): _best_plan(kernels, direction, precision, B, H, H100) for H, B in sizes}
    assert all(plan["stages"] > 0 and plan["slices"] > 1 for plan in found.values() if plan)
    with_a_plan = {H for (H, _), plan in found.items() if plan}
    assert with_a_plan >= {130, 160, 256, 512}


@pytest.fixture
def persistent(monkeypatch):
    """Every call for which a persistent launch fits is one; new tensors are on the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    monkeypatch.setattr(recurrence, "is_stepwise", lambda *_: False)
    tf32 = torch.backends.cudnn.allow_tf32
    with torch.device("cuda"):
        yield lambda precision: setattr(
            torch.backends.cudnn, "allow_tf32", precision == "tf32"
        )  # what the products of float32 in the kernels follow
    torch.backends.cudnn.allow_tf32 = tf32


def check(case, precision, backend="cuda"):
    """Assert that outputs and gradients err at most four times as much as torch's."""
    dtype, like = PRECISIONS[precision]
    inputs = {name: value.to(dtype).double() for name, value in case.inputs().items()}
    cotangents = {name: value.to(dtype).double() for name, value in case.cotangents().items()}
    truth = run_case(case, inputs, cotangents, "reference")
    torchs = run_case(case, inputs, cotangents, "reference", like)
    ours = run_case(case, inputs, cotangents, backend, dtype)
    for name, expected in truth.items():
        limit = 4 * error(torchs[name], expected) + 8 * torch.finfo(like).eps
        found = error(ours[name], expected)
        assert found <= limit, f"{name}: relative error {found:.1e}, limit {limit:.1e}"


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("B", ROWS)
@pytest.mark.parametrize("H", UNITS)
def test_sizes(persistent, H, B, precision):
    persistent(precision)
    check(Case(T=7, B=B, H=H), precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("H, B", [(256, 3), (512, 65), (1024, 17)])
def test_layouts(persistent, H, B, layout, precision):
    persistent(precision)
    check(Case(T=9, B=B, H=H, uses=("y", "hy", "cy", "cells"), **layout), precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("H, B", [(256, 17), (512, 3)])
def test_a_thousand_steps(persistent, H, B, precision):
    persistent(precision)
    check(Case(T=1000, B=B, H=H), precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("H, B", [(256, 65), (1024, 17), (2048, 65)])
def test_a_hundred_repeats_have_the_same_bits(persistent, H, B, precision):
    """A race between blocks would give other bits sooner or later."""
    persistent(precision)
    case, dtype = Case(T=50, B=B, H=H), PRECISIONS[precision][0]
    inputs, cotangents = case.inputs(), case.cotangents()
    first = run_case(case, inputs, cotangents, "cuda", dtype)
    different = torch.zeros((), dtype=torch.int64)
    for _ in range(100):
        again = run_case(case, inputs, cotangents, "cuda", dtype)
        different += torch.stack([(again[name] != first[name]).any() for name in first]).any()
    assert int(different) == 0


def test_the_check_sees_a_wrong_result(monkeypatch):
    """The comparison of the tests above, by the emulated kernels at sizes that they can do."""
    emulation.install(monkeypatch, seed=0)
    case = Case(T=3, B=9, H=40, reverse=(False, True), lengths=True)
    check(case, "tf32x3")
    check(case, "bfloat16")
    total = recurrence.gpu.total
    monkeypatch.setattr(recurrence.gpu, "total", lambda *args: 1.1 * total(*args))
    with pytest.raises(AssertionError, match="relative error"):
        check(case, "bfloat16")
