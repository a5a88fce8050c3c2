"""Does it run, and is it right? Functions for the worker, and for compute-sanitizer.

compute-sanitizer python -m benchmarks.gpu.first_contact.checks --device cuda
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastlstm
from benchmarks.gpu.first_contact import tasks
from fastlstm.backends.cuda import recurrence

# The largest error of any output or gradient, relative to the largest number there.
_LIMITS = {"bfloat16": 4e-2, "float16": 6e-3, "float32": 1e-5, "tf32": 6e-3, "float64": 1e-11}
_MODULE = ("num_layers", "bidirectional", "peephole", "layer_norm")


@contextlib.contextmanager
def one_way(stepwise: bool) -> Iterator[None]:
    """Take a persistent launch wherever one fits, or none, if ``stepwise``: no model decides."""
    before: Any = recurrence.is_stepwise
    recurrence.is_stepwise = lambda *_: stepwise
    try:
        yield
    finally:
        recurrence.is_stepwise = before


def _by_one_way(function: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Make a check run by the way that its argument ``stepwise`` names."""

    @wraps(function)
    def check(**arguments: Any) -> dict[str, Any]:
        with one_way(arguments.get("stepwise", False)):
            return function(**arguments)

    return check


class _Asked(NamedTuple):
    module: fastlstm.LSTM
    x: Tensor
    layout: dict[str, Tensor]
    options: dict[str, Any]

    def outputs(self) -> list[Tensor]:
        """y, h and c, and the gradients of x and of the parameters."""
        y, (h, c) = self.module(self.x, **self.layout)
        loss = y.double().sin().sum() + h.double().sum() + c.double().cos().sum()
        leaves = [self.x, *self.module.parameters()]
        return [y.detach(), h.detach(), c.detach(), *torch.autograd.grad(loss, leaves)]


def ask(device: str, problem: dict[str, Any]) -> _Asked:
    """Make the module and the input of a problem, the same numbers every time."""
    torch.manual_seed(0)
    precision, (T, B, H) = problem["precision"], (problem[name] for name in "TBH")
    dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False
    options = {name: problem[name] for name in _MODULE if name in problem}
    backend = problem.get("backend", "cuda") if device == "cuda" else "cpu"
    new: dict[str, Any] = {"device": device, "dtype": dtype}
    module = fastlstm.LSTM(16, H, backend=backend, **new, **options)
    x = torch.randn(T, B, 16, **new).requires_grad_()
    layout = {}
    if problem.get("lengths"):
        layout["lengths"] = torch.randint(1, T + 1, (B,), device=device)
    if problem.get("reset"):
        layout["reset"] = torch.rand(T, B, device=device) < 0.2
    return _Asked(module, x, layout, options)


@_by_one_way
def contact(device: str, **problem: Any) -> dict[str, Any]:
    """Compare both passes with the reference in float64."""
    asked = ask(device, problem)
    found = asked.outputs()
    if device == "cuda":
        torch.cuda.synchronize()  # an error is this kernel's, not the reference's
    exact: dict[str, Any] = {"backend": "reference", "device": device, "dtype": torch.float64}
    twin = fastlstm.LSTM(16, problem["H"], **exact, **asked.options)
    twin.load_state_dict(asked.module.state_dict())
    x = asked.x.detach().double().requires_grad_()
    truth = asked._replace(module=twin, x=x).outputs()
    each = []
    for f, t in zip(found, truth, strict=True):
        error = (f.double() - t).abs().max() / t.abs().max().clamp_min(1e-30)
        each.append(float(error.nan_to_num(nan=torch.inf)))
    return {"ok": max(each) < _LIMITS[problem["precision"]], "error": max(each), "errors": each}


@_by_one_way
def repeat(device: str, times: int, **problem: Any) -> dict[str, Any]:
    """Count the repeats whose bits are not those of the first call: a race would give some."""
    asked = ask(device, problem)
    first = asked.outputs()
    different = torch.zeros((), device=device, dtype=torch.int64)
    for _ in range(times):
        again = asked.outputs()
        pairs = zip(again, first, strict=True)
        different += torch.stack([(a != b).any() for a, b in pairs]).any()  # a NaN differs too
    return {"ok": int(different) == 0, "different": int(different)}


@_by_one_way
def graph(device: str, **problem: Any) -> dict[str, Any]:
    """Compare replays of a CUDA graph with the eager call: counters are zeroed, memory stays."""
    module, x, layout, _ = ask(device, problem)
    with torch.no_grad():
        eager = module(x, **layout)[0]
        if device != "cuda":
            return {"ok": True}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            module(x, **layout)
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            y = module(x, **layout)[0]
        same = []
        for _ in range(20):
            y.zero_()
            captured.replay()
            same.append(torch.equal(y, eager))
    return {"ok": all(same), "different": same.count(False)}


@_by_one_way
def threads(device: str, times: int, **problem: Any) -> dict[str, Any]:
    """Call two shapes of one kernel from four threads, each on its own stream."""
    made = [ask(device, {**problem, "H": H}) for H in (problem["H"], problem["H"] // 4)]
    expected = [a.module(a.x)[0].detach() for a in made]
    if device == "cuda":
        torch.cuda.synchronize()

    def run(i: int) -> bool:
        module, x, _, _ = made[i % 2]
        stream = torch.cuda.stream(torch.cuda.Stream()) if device == "cuda" else None
        with torch.no_grad(), stream or contextlib.nullcontext():
            outputs = [module(x)[0] for _ in range(times)]
            if device == "cuda":
                torch.cuda.current_stream().synchronize()
        return all(torch.equal(y, expected[i % 2]) for y in outputs)

    with ThreadPoolExecutor(4) as pool:
        same = list(pool.map(run, range(4)))
    return {"ok": all(same), "different": same.count(False)}


def main() -> None:
    """Run the small calls that compute-sanitizer looks at; it needs no more than one step each."""
    options = argparse.ArgumentParser(description=main.__doc__)
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    device = options.parse_args().device
    for H, B in tasks.SANITIZED:
        for precision in ("bfloat16", "float16", "tf32"):
            problem = {"precision": precision, "T": 3, "H": H, "B": B, "peephole": True}
            with one_way(stepwise=False):
                found = ask(device, problem).outputs()
            assert all(tensor.isfinite().all() for tensor in found)
            print(precision, H, B, flush=True)


if __name__ == "__main__":
    main()
