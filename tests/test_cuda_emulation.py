"""The CUDA kernels, emulated on the CPU, are right under any order of threads.

All sizes of the kernels' plans, all types, both directions; every barrier in them is needed.
"""

import itertools

import emulation
import pytest
import torch
from helpers import (
    Case,
    assert_as_close_as_torch,
    check_low_precision,
    error,
    run_case,
)

from fastlstm import backends

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
    yield module
    module.set_fault("none")
    pretend(module)


def pretend(module, **device):
    """Plans are made for that device, an H100 unless told otherwise."""
    module.pretend(**device)
    backends.cuda_recurrence._plan.cache_clear()


def case_of(H, B, options):
    """Fewer steps for the larger ones."""
    T = 8 if H * B <= 1700 else 4 if H * B <= 8192 else 3
    return Case(T=T, B=B, H=H, **options)


def check(case, numbers, monkeypatch):
    """Forward and all gradients err at most twice as much as plain torch does."""
    if numbers not in ("tf32", "tf32x3"):
        return check_low_precision(case, "cuda", getattr(torch, numbers))
    monkeypatch.setattr(backends.gpu, "precision", lambda: numbers)
    # Products of tf32 have float16's mantissa, and only products do.
    like = torch.float16 if numbers == "tf32" else torch.float32
    inputs, cotangents = case.inputs(), case.cotangents()
    if numbers == "tf32":
        inputs = {name: value.half().double() for name, value in inputs.items()}
        cotangents = {name: value.half().double() for name, value in cotangents.items()}
    truth = run_case(case, inputs, cotangents, "reference")
    ours = run_case(case, inputs, cotangents, "cuda", torch.float32)
    torchs = run_case(case, inputs, cotangents, "reference", like)
    assert_as_close_as_torch(ours, torchs, truth)


@pytest.mark.parametrize("index, size", enumerate(SIZES), ids=str)
def test_sizes(kernels, monkeypatch, index, size):
    """Each with one of the types, options and orders of threads, which come round in turn."""
    case = case_of(*size, OPTIONS[index % len(OPTIONS)])
    kernels.set_schedule(index)
    check(case, NUMBERS[(index + index // 4) % len(NUMBERS)], monkeypatch)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_options(kernels, monkeypatch, numbers, options):
    kernels.set_schedule(OPTIONS.index(options) + 100)
    check(case_of(40, 9, options), numbers, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("H, B", SIZES)
def test_everything(kernels, monkeypatch, H, B, numbers, options, seed):
    kernels.set_schedule(seed)
    check(case_of(H, B, options), numbers, monkeypatch)


@pytest.mark.slow
def test_largest(kernels, monkeypatch):
    """The paper's layer: 128 blocks of 256 threads."""
    check(Case(T=2, B=1, H=2048), "bfloat16", monkeypatch)


# From a device of few multiprocessors: blocks of many units, in passes; to one of little memory.
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


@pytest.mark.parametrize(
    "numbers, H, B", [("bfloat16", 64, 9), ("float16", 256, 17), ("tf32x3", 100, 8)]
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


# Shapes whose plans differ: one block, several that meet, sums over k split among warps or not.
FAULTY = [(16, 3), (64, 17), (256, 8)]


def found(kernels, cases):
    """Whether some schedule of some case shows that the kernels are at fault."""
    for case, inputs, cotangents, truth in cases:
        for seed in SEEDS:
            kernels.set_schedule(seed)
            try:
                ours = run_case(case, inputs, cotangents, "cuda", torch.bfloat16)
            except RuntimeError:
                return True
            if any(not error(ours[name], truth[name]) <= 0.1 for name in truth):
                return True
    return False


@pytest.fixture
def faulty(kernels):
    """The cases in which faults are looked for; without one nothing is found."""
    cases = []
    for H, B in FAULTY:
        case = Case(T=4, B=B, H=H)
        inputs = {name: value.bfloat16().double() for name, value in case.inputs().items()}
        cotangents = {k: value.bfloat16().double() for k, value in case.cotangents().items()}
        cases.append((case, inputs, cotangents, run_case(case, inputs, cotangents, "reference")))
    for fault in ("syncthreads", "syncwarp", "wait_copies"):
        kernels.take_sites(fault)
    assert not found(kernels, cases)
    return cases


@pytest.mark.parametrize("fault", ["poll", "wait_copies", "load_matrices", "multiply_add"])
def test_a_planted_fault_is_found(kernels, faulty, fault):
    kernels.set_fault(fault)
    assert found(kernels, faulty)


@pytest.mark.parametrize("fault", ["syncthreads", "syncwarp", "wait_copies"])
def test_each_barrier_and_each_wait_is_needed(kernels, faulty, fault):
    """Left out at one place in the kernels, it is missed."""
    missed = []
    for site in kernels.take_sites(fault):
        kernels.set_fault(fault, site)
        if not found(kernels, faulty):
            missed.append(site)
    assert missed == []
