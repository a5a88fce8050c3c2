"""Helpers of several test files: cases, their gradients, and errors bounded by torch's own."""

import copy
import io
import pickle
from dataclasses import dataclass

import pytest
import torch

from fastlstm import lstm_sequence
from fastlstm.backends import select
from fastlstm.call import Call, GroupWeights, SequenceLayout
from fastlstm.problem import Problem


def _through_a_file(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# Ways to copy a module.
DUPLICATES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda module: pickle.loads(pickle.dumps(module)), id="pickle"),
    pytest.param(_through_a_file, id="file"),
]


def skip_unless_supported(backend, problem):
    """Skip the test, for the backend's own reason, if it cannot run ``problem``."""
    if backend != "auto" and (reason := select.get(backend).why_not(problem)):
        pytest.skip(f"{backend}: {reason}")


needs_bfloat16_of_torch = pytest.mark.skipif(
    not (torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()),
    reason="torch's LSTM does not compute in bfloat16 on a CPU without AVX-512",
)


def error(ours, truth):
    """The largest difference, divided by the largest number of ``truth``; inf for a NaN."""
    assert ours.shape == truth.shape
    if truth.numel() == 0:
        return 0.0
    difference = (ours.double() - truth.double()).abs().max()
    scale = truth.double().abs().max()
    value = difference if scale == 0 else difference / scale
    return value.nan_to_num(nan=float("inf")).item()


def assert_close(ours, truth, tolerance):
    """Assert that ``ours`` has every tensor of ``truth`` within a relative tolerance."""
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        found = error(ours[name], expected)
        assert found <= tolerance, f"{name}: relative error {found:.1e}, limit {tolerance:.1e}"


def assert_as_close_as_torch(ours, torchs, truth, rounded=None):
    """Assert that ours errs at most twice as much as torch at the dtype, plus a few roundings.

    A result of a few numbers whose sums cancel is ill-conditioned: torch may come close to the
    truth by chance. ``rounded()``, if given, is called for a result outside the limit and returns
    the truth of inputs that are rounded once more: no algorithm can be expected to err less than
    that. The largest change in four such calls then takes the place of one rounding.
    """
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        few_eps = 8 * torch.finfo(ours[name].dtype).eps
        limit = 2 * error(torchs[name], expected) + few_eps
        found = error(ours[name], expected)
        if found > limit and rounded is not None:
            limit += 8 * max(error(rounded()[name], expected) for _ in range(4))
        assert found <= limit, f"{name}: relative error {found:.1e}, limit {limit:.1e}"


@dataclass(frozen=True)
class Case:
    """One call of ``lstm_sequence``: its sizes, its options, and which outputs are used."""

    T: int
    B: int
    H: int
    reverse: tuple[bool, ...] = (False,)
    peephole: bool = True
    lengths: bool = False
    packed: bool = False  # the rows of a PackedSequence, which have lengths
    reset: bool = False
    proj_size: int = 0
    I: int = 0  # columns of x; 0: the input is igates
    shared: bool = True  # all groups read the same x
    biases: tuple[str, ...] = ("bias_ih", "bias_hh")
    broadcast: tuple[int, ...] = ()  # dimensions of the input along which the stride is 0
    uses: tuple[str, ...] = ("y", "hy", "cy")  # and "cells"

    @property
    def P(self):
        """The size of h."""
        return self.proj_size or self.H

    @property
    def rows(self):
        """The leading sizes of the sequences: (T, B), or (N,) if packed."""
        return (int(self.row_lengths().sum()),) if self.packed else (self.T, self.B)

    @property
    def tolerance(self):
        """The tolerance in float64: 8 roundings for each term of the longest sum.

        The longest sum is the gradient of a weight. The sum over T * B products, each after dot
        products of H, P and I terms, errs by at most as many roundings relative to its largest
        term; 8 leaves room for the activations' own.
        """
        terms = self.T * self.B + max(self.H, self.P) + self.I
        return 8 * torch.finfo(torch.float64).eps * terms

    def problem(self, dtype):
        """The problem that a backend is asked about before this case runs."""
        G = len(self.reverse)
        return Problem(
            torch.get_default_device().type,
            dtype,
            self.T,
            self.B,
            G,
            self.H,
            self.I,
            has_peepholes=self.peephole,
            proj_size=self.proj_size,
            has_lengths=self.lengths or self.packed,
            is_packed_sequence=self.packed,
            has_reset=self.reset,
            return_all_cells="cells" in self.uses,
        )

    def inputs(self):
        """Random differentiable inputs by name: float64 numbers that float32 holds exactly."""
        B, G, H, P = self.B, len(self.reverse), self.H, self.P
        size = (*self.rows, G, self.I or 4 * H)
        size = [1 if dim in self.broadcast else n for dim, n in enumerate(size)]
        if self.I and self.shared:
            del size[-2]
        inputs = {"x" if self.I else "igates": _randn(*size)}
        inputs |= {"hx": _randn(G, B, P), "cx": _randn(G, B, H)}
        for group in range(G):
            if self.I:
                inputs[f"weight_ih[{group}]"] = _initial(4 * H, self.I, H=H)
                for bias in self.biases:
                    inputs[f"{bias}[{group}]"] = _initial(4 * H, H=H)
            inputs[f"weight_hh[{group}]"] = _initial(4 * H, P, H=H)
            if self.peephole:
                inputs[f"weight_ch[{group}]"] = _initial(3 * H, H=H)
            if self.proj_size:
                inputs[f"weight_hr[{group}]"] = _initial(P, H, H=H)
        return {name: value.float().double() for name, value in inputs.items()}

    def expand(self, input):
        """The input at its full size, where it was drawn with broadcast dimensions."""
        size = [*self.rows, len(self.reverse), -1]
        return input.expand(*size if input.dim() == len(size) else size[:-2] + size[-1:])

    def row_lengths(self):
        """Lengths (B,), with a full row and, if there are two rows, a row of one step."""
        lengths = (torch.arange(self.B) * 7 + self.T - 1) % self.T + 1
        if self.B > 1:
            lengths[-1] = 1
        return lengths.sort(descending=True).values if self.packed else lengths

    def layout(self):
        """The arguments of ``lstm_sequence`` that say where sequences begin and end."""
        lengths = self.row_lengths()
        reset = (torch.arange(self.T * self.B) * 5 % 7 < 2).view(self.T, self.B)
        steps = torch.arange(self.T).unsqueeze(1)
        return {
            "reverse": self.reverse,
            "lengths": lengths if self.lengths else None,
            "batch_sizes": (steps < lengths).sum(1) if self.packed else None,
            "reset": reset if self.reset else None,
        }

    def call(self, values):
        """The call with these inputs."""
        weights = (weights_of(self, values, name) for name in GroupWeights._fields)
        input = self.expand(values["x" if self.I else "igates"])
        layout = SequenceLayout(**self.layout())
        return Call(input, GroupWeights(*weights), values["hx"], values["cx"], layout)

    def cotangents(self):
        """The gradients that arrive at the outputs in ``uses``."""
        B, G, H, P = self.B, len(self.reverse), self.H, self.P
        sizes = {
            "y": (*self.rows, G, P),
            "hy": (G, B, P),
            "cy": (G, B, H),
            "cells": (*self.rows, G, H),
        }
        return {name: _randn(*sizes[name]).float().double() for name in self.uses}


def _randn(*size):
    return torch.randn(*size, dtype=torch.float64)


def _initial(*size, H):
    """Weights as a module draws them: larger ones make a long sequence chaotic."""
    return (2 * torch.rand(*size, dtype=torch.float64) - 1) * H**-0.5


def weights_of(case, values, name):
    """One of the lists that ``lstm_sequence`` takes: a tensor for each group, or an empty list."""
    return [values[key] for g in range(len(case.reverse)) if (key := f"{name}[{g}]") in values]


def run_case(case, inputs, cotangents, backend, dtype=torch.float64, **layout):
    """All outputs and all gradients of a case by name; a tensor's strides are kept.

    ``layout`` replaces arguments of the case, such as the lengths.

    The reference runs on one thread: its products are small, and more threads only wait for each
    other.
    """
    threads = torch.get_num_threads()
    if backend == "reference":
        torch.set_num_threads(1)
    try:
        return _outputs_and_gradients(case, inputs, cotangents, backend, dtype, layout)
    finally:
        torch.set_num_threads(threads)


def _outputs_and_gradients(case, inputs, cotangents, backend, dtype, layout):
    leaves = {name: _like(value, dtype).requires_grad_() for name, value in inputs.items()}
    outputs = lstm_sequence(
        case.expand(leaves["x" if case.I else "igates"]),
        weights_of(case, leaves, "weight_hh"),
        leaves["hx"],
        leaves["cx"],
        weight_ih=weights_of(case, leaves, "weight_ih"),
        bias_ih=weights_of(case, leaves, "bias_ih"),
        bias_hh=weights_of(case, leaves, "bias_hh"),
        weight_ch=weights_of(case, leaves, "weight_ch"),
        weight_hr=weights_of(case, leaves, "weight_hr"),
        **case.layout() | layout,
        return_all_cells="cells" in case.uses,
        backend=backend,
    )
    names = ("y", "hy", "cy", "cells") if "cells" in case.uses else ("y", "hy", "cy")
    outputs = dict(zip(names, outputs, strict=True))
    gradients = torch.autograd.grad(
        [outputs[name] for name in cotangents],
        list(leaves.values()),
        [value.to(dtype) for value in cotangents.values()],
        allow_unused=True,
        materialize_grads=True,
    )
    named = dict(zip((f"d{name}" for name in leaves), gradients, strict=True))
    return {name: value.detach() for name, value in (outputs | named).items()}


def _like(value, dtype):
    """A copy at another dtype with the same strides."""
    copy = torch.empty_strided(value.size(), value.stride(), dtype=dtype)
    return copy.copy_(value)


def check_case(case, backend, change=None):
    """Compare a backend with the reference: in float64, and in float32 with torch's own error.

    ``change`` may change the memory layout of the inputs first.
    """
    skip_unless_supported(backend, case.problem(torch.float64))
    inputs, cotangents = case.inputs(), case.cotangents()
    if change is not None:
        inputs = {name: change(name, value) for name, value in inputs.items()}
    truth = run_case(case, inputs, cotangents, "reference")
    ours = run_case(case, inputs, cotangents, backend)
    assert_close(ours, truth, case.tolerance)
    ours, torchs = (
        run_case(case, inputs, cotangents, name, torch.float32) for name in (backend, "reference")
    )

    def rounded():
        eps = torch.finfo(torch.float32).eps
        near = [
            {
                name: value * (1 + (torch.rand_like(value) - 0.5) * eps)
                for name, value in values.items()
            }
            for values in (inputs, cotangents)
        ]
        return run_case(case, *near, "reference")

    assert_as_close_as_torch(ours, torchs, truth, rounded)


def check_low_precision(case, backend, dtype):
    """Assert that a backend errs at most twice as much as plain torch in this dtype."""
    skip_unless_supported(backend, case.problem(dtype))
    exact = {name: value.to(dtype).double() for name, value in case.inputs().items()}
    cotangents = case.cotangents()
    cotangents = {name: value.to(dtype).double() for name, value in cotangents.items()}
    truth = run_case(case, exact, cotangents, "reference")
    ours, torchs = (
        run_case(case, exact, cotangents, name, dtype) for name in (backend, "reference")
    )
    assert_as_close_as_torch(ours, torchs, truth)
