"""The CUDA kernels, emulated on the CPU, are right under any order of threads.

All sizes, all types, all plans of a few sizes, both directions; every barrier is needed.
"""

import itertools
import zlib

import emulation
import pytest
import torch
from helpers import (
    Case,
    assert_as_close_as_torch,
    error,
    run_case,
)

from fastlstm import backends, layout_checks

SIZES = list(itertools.product([32, 64, 100, 256, 512], [1, 8, 17, 64]))
OPTIONS = [
    {},
    {"peephole": False, "lengths": True},
    {"reverse": (True,), "reset": True},
    {"reverse": (False, True), "peephole": False},
    {"reverse": (False, True), "lengths": True, "uses": ("y", "hy", "cy", "cells")},
    {"reverse": (True, True, False), "lengths": True, "reset": True},
    {"broadcast": (0, 1), "uses": ("hy", "cy")},
    {"lengths": True, "uses": ("y",)},
]
NUMBERS = ["bfloat16", "float16", "tf32", "tf32x3"]
SEEDS = range(8)


@pytest.fixture
def kernels(monkeypatch):
    """The emulated kernels, which the cuda backend runs."""
    module = emulation.install(monkeypatch, seed=0)
    # Rows may have no steps where lengths cannot be checked, as in a captured graph.
    monkeypatch.setattr(layout_checks, "can_read_values", lambda *_: False)
    yield module
    module.set_fault("none")
    pretend(module)


def pretend(module, **device):
    """Make plans for this device; by default an H100."""
    module.pretend(**device)
    backends.cuda.recurrence.best_plan.cache_clear()


def case_of(H, B, options):
    """A case with fewer steps if it is large."""
    T = 8 if H * B <= 1700 else 4 if H * B <= 8192 else 2
    return Case(T=T, B=B, H=H, **options)


def check(case, numbers, monkeypatch, plain=None):
    """Assert that forward and all gradients err at most twice as much as plain torch's.

    ``plain`` is what :func:`expected` returns, if the case is run several times.
    """
    dtype = getattr(torch, numbers, torch.float32)
    if dtype is torch.float32:
        monkeypatch.setattr(backends.gpu, "precision", lambda: numbers)
    given, torchs, truth = plain or emulation.expected(case, numbers, run_case)
    assert_as_close_as_torch(run_case(case, *given, "cuda", dtype), torchs, truth)


@pytest.mark.parametrize("H, B", SIZES)
def test_sizes(kernels, monkeypatch, H, B):
    """The types, options and orders of threads alternate from size to size."""
    turn = SIZES.index((H, B))
    kernels.set_schedule(turn)
    numbers = NUMBERS[(turn + turn // 4 + 1) % len(NUMBERS)]
    check(case_of(H, B, OPTIONS[turn % len(OPTIONS)]), numbers, monkeypatch)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_options(kernels, monkeypatch, numbers, options):
    kernels.set_schedule(OPTIONS.index(options) + 100)
    check(case_of(40, 9, options), numbers, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("H, B", SIZES)
def test_everything(kernels, monkeypatch, H, B, numbers, options):
    """All combinations, each with another order of threads."""
    kernels.set_schedule(zlib.crc32(f"{H} {B} {numbers} {options}".encode()))
    check(case_of(H, B, options), numbers, monkeypatch)


@pytest.mark.slow
def test_largest(kernels, monkeypatch):
    """The paper's layer: 128 blocks of 256 threads."""
    check(Case(T=2, B=1, H=2048), "bfloat16", monkeypatch)


# From a device with few multiprocessors, whose blocks have many units, to one with little memory.
DEVICES = [
    {"major": 8, "minor": 0, "multiprocessors": 108, "shared_memory": 166912},  # A100
    {"major": 8, "minor": 6, "multiprocessors": 28, "shared_memory": 101376},  # RTX 3060
    {"multiprocessors": 4},
    {"multiprocessors": 1},
    {"shared_memory": 49152},
]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("H, B", [(32, 70), (100, 17), (256, 9)])
def test_devices(kernels, monkeypatch, device, H, B):
    pretend(kernels, **device)
    kernels.set_schedule(H)
    check(Case(T=3, B=B, H=H, reverse=(False, True), lengths=True), "bfloat16", monkeypatch)


FEW = {"multiprocessors": 5}  # weights are in shared memory too, operands come in chunks


@pytest.mark.parametrize(
    "numbers, case, device",
    [
        ("bfloat16", Case(T=3, B=9, H=40, lengths=True), {}),
        ("float16", Case(T=3, B=12, H=48, reverse=(False, True), peephole=False), {}),
        ("tf32", Case(T=3, B=3, H=100, reset=True), {}),
        ("tf32x3", Case(T=3, B=8, H=48, reverse=(True,)), {}),
        ("bfloat16", Case(T=2, B=17, H=136, lengths=True), FEW),
    ],
)
def test_every_plan(kernels, monkeypatch, numbers, case, device):
    """Plans of both passes in pairs, each pair with another order of threads."""
    pretend(kernels, **device)
    dtype = numbers if numbers in ("bfloat16", "float16") else "float32"
    products = numbers if numbers in ("tf32", "tf32x3") else "tf32"
    sizes = (dtype, case.B, len(case.reverse), case.H)
    plans = {
        direction: kernels.plans(direction, *sizes, products=products, device=kernels.device(0))[0]
        for direction in ("forward", "backward")
    }
    plain = emulation.expected(case, numbers, run_case)
    for turn in range(max(map(len, plans.values()))):
        chosen = {direction: them[turn % len(them)] for direction, them in plans.items()}
        kernels.set_schedule(turn)
        with monkeypatch.context() as context:
            context.setattr(
                backends.cuda.recurrence,
                "best_plan",
                lambda _, way, *__, of=chosen: (of[way], ""),
            )
            check(case, numbers, context, plain)


@pytest.mark.parametrize(
    "numbers, H, B", [("bfloat16", 64, 9), ("float16", 72, 9), ("tf32x3", 100, 8)]
)
def test_the_order_of_threads_changes_no_bit(kernels, monkeypatch, numbers, H, B):
    dtype = getattr(torch, numbers, torch.float32)
    case = Case(T=4, B=B, H=H, reverse=(False, True), lengths=True)
    inputs, cotangents = case.inputs(), case.cotangents()
    runs = []
    for seed in SEEDS:
        kernels.set_schedule(seed)
        runs.append(run_case(case, inputs, cotangents, "cuda", dtype))
    for run in runs[1:]:
        assert all(torch.equal(run[name], value) for name, value in runs[0].items())


def test_rows_without_steps(kernels):
    """The output of a row without steps is zero; its state passes through unchanged."""
    lengths = torch.tensor([0, 4, 2, 0, 1])
    for H, reverse in [(16, (False, True)), (256, (True,))]:
        case = Case(T=4, B=5, H=H, reverse=reverse, lengths=True)
        inputs, cotangents = case.inputs(), case.cotangents()
        truth, torchs, ours = (
            run_case(case, inputs, cotangents, name, dtype, lengths=lengths)
            for name, dtype in [
                ("reference", torch.float64),
                ("reference", torch.float32),
                ("cuda", torch.float32),
            ]
        )
        assert_as_close_as_torch(ours, torchs, truth)


# Shapes whose plans differ: one block, several that meet, sums over k split among warps or not.
FAULTY = [
    (Case(T=4, B=3, H=16, lengths=True), {"lengths": torch.tensor([4, 0, 2])}),
    (Case(T=4, B=17, H=64), {}),
    (Case(T=4, B=8, H=256), {}),
]


@pytest.fixture
def faulty(kernels):
    """The cases that are run with faults, with the correct results."""
    cases = []
    for case, layout in FAULTY:
        inputs = {name: value.bfloat16().double() for name, value in case.inputs().items()}
        cotangents = {k: value.bfloat16().double() for k, value in case.cotangents().items()}
        arguments = (case, inputs, cotangents)
        cases.append((arguments, layout, run_case(*arguments, "reference", **layout)))
    return cases


def found(kernels, cases):
    """Whether some order of threads in some case gives a wrong result or an error."""
    for arguments, layout, truth in cases:
        for seed in SEEDS:
            kernels.set_schedule(seed)
            try:
                ours = run_case(*arguments, "cuda", torch.bfloat16, **layout)
            except RuntimeError:
                return True
            if any(not error(ours[name], truth[name]) <= 0.1 for name in truth):
                return True
    return False


@pytest.mark.parametrize("fault", ["poll", "wait_copies", "load_matrices", "multiply_add"])
def test_a_planted_fault_is_found(kernels, faulty, fault):
    kernels.set_fault(fault)
    assert found(kernels, faulty)


def test_each_barrier_and_each_wait_is_needed(kernels, faulty):
    """Without one barrier or wait a test fails; with all of them no test does."""
    faults = ["syncthreads", "syncwarp", "wait_copies"]
    for fault in faults:
        kernels.take_sites(fault)
    assert not found(kernels, faulty)
    planted = [(fault, site) for fault in faults for site in kernels.take_sites(fault)]
    assert planted
    for fault, site in planted:
        kernels.set_fault(fault, site)
        assert found(kernels, faulty), f"nothing misses {fault} at {site}"
