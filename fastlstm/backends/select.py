"""Which backend runs which problem, and why."""

from __future__ import annotations

from types import ModuleType, NoneType

import torch
from torch.nn.utils.rnn import PackedSequence

from fastlstm import backends
from fastlstm.backends.gpu import choice, timings
from fastlstm.call import Problem
from fastlstm.op import wavefront

# Fastest first. "auto" takes the first one that supports the problem, but torch before cpu where
# cpu is known to be slower; on a GPU it asks choice.
BACKENDS: tuple[ModuleType, ...] = (
    backends.cpu,
    backends.torch,
    backends.cuda,
    backends.triton,
    backends.reference,
)


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


def has_checkpoints(backend: ModuleType) -> bool:
    """Whether its backward pass can do with the state before every k-th step."""
    return getattr(backend, "CHECKPOINTS", False)


def select(problem: Problem, backend: str = "auto") -> ModuleType:
    """The backend that runs ``problem``: the named one, or the fastest that can.

    An ONNX export has one of its own, whatever is asked for.

    Raises:
        ValueError: the name is unknown, or the named backend does not support the problem.
        RuntimeError: an export has no node for the problem.
    """
    if backends.onnx.is_exporting():
        reason = backends.onnx.supports(problem)
        if reason is not None:
            raise RuntimeError(f"torch.onnx.export: the LSTM {reason}")
        return backends.onnx
    if backend == "auto":
        able = [b for b in BACKENDS if b.supports(problem) is None]
        if problem.device == "cuda":
            return get(choice.choose(problem, [name(b) for b in able]))
        if able[0] is backends.cpu and backends.cpu.slower(problem) is not None:
            return able[1] if able[1] is backends.torch else able[0]
        return able[0]
    module = get(backend)
    reason = module.supports(problem)
    if reason is not None:
        raise ValueError(f"backend={backend!r} cannot run this LSTM: {reason}")
    return module


def describe(problem: Problem, backend: str = "auto") -> str:
    """A table of the backends: the one that would run, and why each other one would not."""
    chosen = select(problem, backend)
    dtype = str(problem.dtype).removeprefix("torch.")
    lines = [
        f"T={problem.T} B={problem.B} G={problem.G} H={problem.H} {dtype} on {problem.device}"
        f"{', peepholes' if problem.peephole else ''}: runs on {name(chosen)!r}"
    ]
    reasons = {module: module.supports(problem) for module in BACKENDS}
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
            slower = backends.cpu.slower(problem) if module is backends.cpu else None
            reason = f"could run it, {slower}" if slower else "could run it"
        if problem.L > 1 and not reason.startswith("no: ") and hasattr(module, "layers_refusal"):
            reason += f"; layers {wavefront.describe(module, problem)}"
        unrun = module in (backends.cuda, backends.triton) and not timings.TABLES
        if unrun and not reason.startswith("no: "):
            reason += "; it has not yet run on a GPU"
        lines.append(f"  {name(module):<10} {reason}")
    return "\n".join(lines)


def explain(module: torch.nn.Module, input: torch.Tensor | PackedSequence | None = None) -> str:
    """Say which backend runs ``module`` on ``input``, and why the others do not.

    Args:
        module: a fastlstm module, or any module that contains some.
        input: what it will be called with; sizes only matter. Default: T=100, B=32.

    Returns:
        One table for each LSTM inside, headed by its name: of a call made here, which records
        gradients unless it is made under ``torch.no_grad()``, whatever the module's mode. Of a
        module in eval mode it adds what runs without them, where that differs.

    Raises:
        TypeError: what came is no module, or the input no tensor.
        ValueError: there is no fastlstm module inside.

    Example:
        >>> print(fastlstm.explain(fastlstm.LSTM(64, 64, peephole=True)))  # doctest: +SKIP
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    if not isinstance(input, (torch.Tensor, PackedSequence, NoneType)):
        raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
    tables = []
    for path, child in module.named_modules():
        if hasattr(child, "problem"):
            title = f"{path or type(child).__name__}: {child}".split("\n")[0]
            problem = child.problem(input)
            tables.append(f"{title}\n{describe(problem, child.backend)}")
            with torch.no_grad():
                in_inference = child.problem(input)
            if not child.training and in_inference != problem:
                chosen = name(select(in_inference, child.backend))
                tables.append(
                    "  this call records gradients, which eval mode does not turn off; under "
                    f"torch.no_grad() it runs on {chosen!r}"
                )
    if not tables:
        raise ValueError(f"module: expected one with a fastlstm LSTM inside, got {type(module)}")
    return "\n".join(tables)
