"""Layers run at once, as a wavefront of the emulated CUDA kernels, equal layers run one by one.

This file tests all types, sizes and plans; test_layers_at_once.py tests when a module uses them.
"""

import itertools
from dataclasses import dataclass

import emulation
import pytest
import torch
from helpers import assert_as_close_as_torch, error

import fastlstm
from fastlstm import backends
from fastlstm.backends.cuda import recurrence, wavefront
from fastlstm.call import LSTMWeights

NUMBERS = ["bfloat16", "float16", "tf32", "tf32x3"]
SEEDS = range(8)


@dataclass(frozen=True)
class Stack:
    """One call of ``fastlstm.lstm``: its sizes and options."""

    T: int
    B: int
    H: int
    L: int = 2
    I: int = 5
    peephole: bool = True
    bias: bool = True
    lengths: bool = False
    reset: bool = False
    uses: tuple[str, ...] = ("y", "hy", "cy")

    def inputs(self):
        """Random numbers by name, float64 that float32 holds exactly."""
        T, B, H, L = self.T, self.B, self.H, self.L
        inputs = {"x": (T, B, self.I), "hx": (L, B, H), "cx": (L, B, H)}
        values = {name: torch.randn(size, dtype=torch.float64) for name, size in inputs.items()}
        for layer in range(L):
            sizes = {"weight_ih": (4 * H, H if layer else self.I), "weight_hh": (4 * H, H)}
            if self.bias:
                sizes |= {"bias_ih": (4 * H,), "bias_hh": (4 * H,)}
            if self.peephole:
                sizes["weight_ch"] = (3 * H,)
            for name, size in sizes.items():
                draw = 2 * torch.rand(size, dtype=torch.float64) - 1
                values[f"{name}_l{layer}"] = draw * H**-0.5
        return {name: value.float().double() for name, value in values.items()}

    def cotangents(self):
        """The gradients that arrive at the outputs in ``uses``."""
        state = (self.L, self.B, self.H)
        sizes = {"y": (self.T, self.B, self.H), "hy": state, "cy": state}
        return {n: torch.randn(sizes[n], dtype=torch.float64).float().double() for n in self.uses}

    def way(self):
        """Lengths, with a full row and, if there are two rows, a row of one step; and resets."""
        lengths = (torch.arange(self.B) * 7 + self.T - 1) % self.T + 1
        if self.B > 1:
            lengths[-1] = 1
        reset = (torch.arange(self.T * self.B) * 5 % 7 < 2).view(self.T, self.B)
        return {
            "lengths": lengths if self.lengths else None,
            "reset": reset if self.reset else None,
        }


def run(stack, inputs, cotangents, backend, dtype=torch.float64):
    """All outputs and gradients by name."""
    leaves = {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}
    weights = [
        LSTMWeights(
            **{n: leaves[k] for n in LSTMWeights._fields if (k := f"{n}_l{layer}") in leaves}
        )
        for layer in range(stack.L)
    ]
    y, (hy, cy) = fastlstm.functional.lstm(
        leaves["x"], (leaves["hx"], leaves["cx"]), weights, **stack.way(), backend=backend
    )
    outputs = {"y": y, "hy": hy, "cy": cy}
    gradients = torch.autograd.grad(
        [outputs[name] for name in cotangents],
        list(leaves.values()),
        [value.to(dtype) for value in cotangents.values()],
        allow_unused=True,
        materialize_grads=True,
    )
    named = dict(zip((f"d{name}" for name in leaves), gradients, strict=True))
    return {name: value.detach() for name, value in (outputs | named).items()}


@pytest.fixture
def waves(monkeypatch):
    """The emulated kernels, and the list of wavefronts that ran: direction and plan."""
    kernels = emulation.install(monkeypatch, seed=0)
    monkeypatch.setattr(wavefront, "_why_slower", lambda *_: None)
    kernels.ran = []
    launch = wavefront._launch

    def noted(kernels, direction, *arguments):
        found = launch(kernels, direction, *arguments)
        kernels.ran.append((direction, found.plan))
        return found

    monkeypatch.setattr(wavefront, "_launch", noted)
    yield kernels
    del kernels.ran
    kernels.set_fault("none")
    pretend(kernels)


def pretend(kernels, **device):
    kernels.pretend(**device)
    recurrence.best_plan.cache_clear()


def check(waves, stack, numbers, monkeypatch, plain=None):
    """Assert that forward and all gradients err at most twice as much as plain torch's.

    ``plain`` is what :func:`expected` returns, if the stack is run several times.
    """
    dtype = getattr(torch, numbers, torch.float32)
    if dtype is torch.float32:
        monkeypatch.setattr(backends.gpu, "precision", lambda: numbers)
    given, torchs, truth = plain or emulation.expected(stack, numbers, run)
    waves.ran.clear()
    ours = run(stack, *given, "cuda", dtype)
    assert [direction for direction, _ in waves.ran] == ["forward", "backward"]
    assert_as_close_as_torch(ours, torchs, truth)


OPTIONS = [
    {},
    {"L": 3, "lengths": True},
    {"peephole": False, "reset": True},
    {"L": 3, "lengths": True, "reset": True, "uses": ("hy", "cy")},
    {"bias": False, "lengths": True, "uses": ("y",)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("numbers", NUMBERS)
def test_options(waves, monkeypatch, numbers, options):
    waves.set_schedule(OPTIONS.index(options) + 10)
    check(waves, Stack(T=5, B=9, H=40, **options), numbers, monkeypatch)


SIZES = list(itertools.product([8, 100, 256], [1, 8, 17]))


@pytest.mark.parametrize("H, B", SIZES)
def test_sizes(waves, monkeypatch, H, B):
    """The types and options alternate from size to size."""
    turn = SIZES.index((H, B))
    waves.set_schedule(turn)
    stack = Stack(T=4 if H < 256 else 2, B=B, H=H, **OPTIONS[turn % len(OPTIONS)])
    check(waves, stack, NUMBERS[(turn + turn // 4) % len(NUMBERS)], monkeypatch)


# Devices with few multiprocessors, whose blocks have many units and take the batch in passes, and
# one with a multiprocessor for each layer; weights are then in shared memory too, and operands come
# in chunks.
DEVICES = [
    {"major": 8, "minor": 6, "multiprocessors": 28, "shared_memory": 101376},
    {"multiprocessors": 8},
    {"multiprocessors": 3},
]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("H, B", [(32, 70), (72, 17)])
def test_devices(waves, monkeypatch, device, H, B):
    pretend(waves, **device)
    waves.set_schedule(H)
    check(waves, Stack(T=3, B=B, H=H, L=3, lengths=True), "bfloat16", monkeypatch)


@pytest.mark.parametrize(
    "numbers, stack, device",
    [
        ("bfloat16", Stack(T=2, B=9, H=24, lengths=True), {}),
        ("tf32x3", Stack(T=3, B=3, H=24, L=3, reset=True), {}),
        ("float16", Stack(T=2, B=17, H=40), {"multiprocessors": 6}),
    ],
)
def test_every_plan(waves, monkeypatch, numbers, stack, device):
    """Plans of both passes in pairs, each pair with another order of threads."""
    pretend(waves, **device)
    dtype = numbers if numbers in ("bfloat16", "float16") else "float32"
    products = numbers if numbers in ("tf32", "tf32x3") else "tf32"
    sizes = (dtype, stack.B, stack.L, stack.H)
    how = {"layered": True, "products": products, "device": waves.device(0)}
    plans = {way: waves.plans(way, *sizes, **how)[0] for way in ("forward", "backward")}
    plain = emulation.expected(stack, numbers, run)
    for turn in range(max(map(len, plans.values()))):
        chosen = {way: them[turn % len(them)] for way, them in plans.items()}
        waves.set_schedule(turn)
        with monkeypatch.context() as context:
            context.setattr(recurrence, "best_plan", lambda _, way, *__, of=chosen: (of[way], ""))
            check(waves, stack, numbers, context, plain)
        assert dict(waves.ran) == chosen


def test_the_order_of_threads_changes_no_bit(waves):
    stack = Stack(T=6, B=9, H=40, L=3, lengths=True)
    inputs, cotangents = stack.inputs(), stack.cotangents()
    runs = []
    for seed in SEEDS:
        waves.set_schedule(seed)
        runs.append(run(stack, inputs, cotangents, "cuda", torch.bfloat16))
    for other in runs[1:]:
        assert all(torch.equal(other[name], value) for name, value in runs[0].items())


# One block a layer, several, and sums over k that are split among warps.
FAULTY = [
    Stack(T=6, B=3, H=8, L=3, lengths=True),
    Stack(T=5, B=17, H=64),
    Stack(T=4, B=8, H=200),
]


def found(waves):
    """Whether some order of threads in some case gives a wrong result or an error."""
    for stack in FAULTY:
        inputs = {name: value.bfloat16().double() for name, value in stack.inputs().items()}
        cotangents = {n: value.bfloat16().double() for n, value in stack.cotangents().items()}
        truth = run(stack, inputs, cotangents, "reference")
        for seed in SEEDS:
            waves.set_schedule(seed)
            try:
                ours = run(stack, inputs, cotangents, "cuda", torch.bfloat16)
            except RuntimeError:
                return True
            if any(not error(ours[name], truth[name]) <= 0.1 for name in truth):
                return True
    return False


def test_faults_are_found(waves):
    """Without one wait for other blocks or for copies a test fails; with all of them none does."""
    waves.take_sites("wait_copies")
    assert not found(waves)
    copies = waves.take_sites("wait_copies")
    assert copies
    for fault, sites in [("poll", [None]), ("wait_copies", copies)]:
        for site in sites:
            waves.set_fault(fault, *([] if site is None else [site]))
            assert found(waves), f"nothing misses {fault} at {site}"
