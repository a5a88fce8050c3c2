"""The choice of the backend that runs a problem, and the reasons for it."""

from __future__ import annotations

from types import ModuleType

import torch

from fastlstm import backends
from fastlstm.backends import BACKENDS
from fastlstm.backends.gpu import choice, timings
from fastlstm.problem import Problem
from fastlstm.tracing import Mode


def name(backend: ModuleType) -> str:
    """The word a user writes: "cpu" for ``fastlstm.backends.cpu``."""
    return backend.__name__.rpartition(".")[2]


def get(backend: str) -> ModuleType:
    """The backend of that name.

    Raises:
        ValueError: there is none.
    """
    for module in BACKENDS:
        if name(module) == backend:
            return module
    known = ", ".join(repr(name(module)) for module in BACKENDS)
    raise ValueError(f"backend: expected 'auto', {known}, got {backend!r}")


def check_backend(backend: str) -> str:
    """The name as it came; ValueError if it is neither "auto" nor that of a backend."""
    if backend != "auto":
        get(backend)
    return backend


def select(problem: Problem, backend: str = "auto", mode: Mode = Mode.NONE) -> ModuleType:
    """The backend that runs ``problem``: the named one, or the fastest that can.

    An ONNX export has a backend of its own, whatever is asked for. "auto" takes the first of
    :data:`BACKENDS` that can run the problem, but torch before cpu where cpu is known to be slower;
    on a GPU it asks :mod:`choice`.

    Raises:
        ValueError: the name is unknown, or the named backend cannot run the problem.
        RuntimeError: an export has no node for the problem.
    """
    if mode is Mode.ONNX:
        reason = backends.onnx.why_not(problem)
        if reason is not None:
            raise RuntimeError(f"torch.onnx.export: the LSTM {reason}")
        return backends.onnx
    if backend == "auto":
        if problem.device == "cuda":
            able = [name(b) for b in BACKENDS if b.why_not(problem) is None]
            return get(choice.choose(problem, able))
        if backends.cpu.why_not(problem) is None:
            slower = backends.cpu.why_slower(problem) is not None
            if slower and backends.torch.why_not(problem) is None:
                return backends.torch
            return backends.cpu
        for module in BACKENDS:
            if module.why_not(problem) is None:
                return module
    module = get(backend)
    reason = module.why_not(problem)
    if reason is not None:
        raise ValueError(f"backend={backend!r} cannot run this LSTM: {reason}")
    return module


def why_not_stacked(
    backend: ModuleType, problem: Problem, direction: str = "forward"
) -> str | None:
    """Why ``backend`` runs the layers of ``problem`` one after the other; None if all in one call.

    A backend that can run them in one call has ``why_not_stacked``, ``forward_stacked`` and
    ``backward_stacked``; in its backward pass it may still run one after the other.
    """
    if problem.L == 1:
        return "there is a single layer"
    if not hasattr(backend, "why_not_stacked"):
        return "a call of its kernels runs one layer"
    if problem.options:
        return f"{problem.options[0]} is drawn for each layer"
    if torch.compiler.is_compiling():
        return "torch.compile needs one op for each layer"
    reason: str | None = backend.why_not_stacked(problem, direction)
    return reason


def describe(problem: Problem, backend: str = "auto") -> str:
    """A table of the backends: the one that would run, and why each other one would not."""
    chosen = select(problem, backend)
    dtype = str(problem.dtype).removeprefix("torch.")
    lines = [
        f"T={problem.T} B={problem.B} G={problem.G} H={problem.H} {dtype} on {problem.device}"
        f"{', peepholes' if problem.has_peepholes else ''}"
        f"{f', {problem.num_heads} heads' if problem.num_heads > 1 else ''}"
        f": runs on {name(chosen)!r}"
    ]
    reasons = {module: module.why_not(problem) for module in BACKENDS}
    able = [name(module) for module, reason in reasons.items() if reason is None]
    for module, reason in reasons.items():
        if module is chosen and backend == "auto" and problem.device == "cuda":
            reason = f"chosen {choice.reason(problem, able)}"
        elif module is chosen:
            reason = "chosen" if backend == "auto" else "chosen, as asked for"
        elif reason is not None:
            reason = f"no: {reason}"
        elif backend != "auto":
            reason = "could run it, not asked for"
        else:
            slower = backends.cpu.why_slower(problem) if module is backends.cpu else None
            reason = f"could run it, {slower}" if slower else "could run it"
        if problem.L > 1 and not reason.startswith("no: ") and hasattr(module, "why_not_stacked"):
            reason += f"; layers {_describe_stacking(module, problem)}"
        unrun = module in (backends.cuda, backends.triton) and not timings.TABLES
        if unrun and not reason.startswith("no: "):
            reason += "; it has not yet run on a GPU"
        lines.append(f"  {name(module):<10} {reason}")
    return "\n".join(lines)


def _describe_stacking(backend: ModuleType, problem: Problem) -> str:
    reason = why_not_stacked(backend, problem)
    if reason is not None:
        return f"one after the other: {reason}"
    if problem.requires_grad:
        reason = why_not_stacked(backend, problem, direction="backward")
    return "in one launch" + (f", backward one after the other: {reason}" if reason else "")
