"""The choice of a backend on a GPU, for "auto".

1. Where a table of measurements for that GPU is checked in (:mod:`timings`), the backend that was
   fastest at the nearest sizes.
2. Else, where cuDNN can run the LSTM, cuDNN, by the backend ``torch``: kernels that have never run
   on a GPU are not chosen in its place.
3. Else (with peepholes and so on) ``triton`` where its kernels keep W_hh on one multiprocessor, up
   to 128 units in 16 bits: a step of its loop at H=128 has 1,500 cycles of machine code, and waits
   for memory; one of the CUDA kernel with a single block takes 9,000. With more units, resets,
   layer norm or a single step ``cuda``, or ``triton`` if the CUDA kernels were not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import torch

from fastlstm.backends import gpu
from fastlstm.backends.gpu import timings
from fastlstm.kernels.configurations import single_launch
from fastlstm.problem import Problem


def choose(problem: Problem, able: Sequence[str]) -> str:
    """Choose among the backends that are ``able`` to run ``problem``, the safest last."""
    measured = _nearest(problem)
    if measured is not None and measured.backend in able:
        return measured.backend
    if "torch" in able:
        return "torch"
    if "triton" in able and _is_single_launch(problem):
        return "triton"
    return next((name for name in ("cuda", "triton") if name in able), able[-1])


def _is_single_launch(problem: Problem) -> bool:
    """Whether Triton's kernels keep W_hh on one multiprocessor for a whole sequence."""
    if problem.T == 1 or "layer_norm" in problem.cell_options:
        return False
    capability = gpu.capability(gpu.number(problem))
    return single_launch(capability, problem.dtype.itemsize, problem.H) is not None


def reason(problem: Problem, able: Sequence[str]) -> str:
    """Say why :func:`choose` chooses as it does."""
    measured = _nearest(problem)
    if measured is not None and measured.backend in able:
        return f"measured fastest at H={measured.H} B={measured.B}"
    if "torch" not in able:
        return "by a fixed order, not measured on this GPU"
    return "until this GPU is measured"


def _nearest(problem: Problem) -> timings.Measured | None:
    """The measurement at the nearest sizes on such a GPU; None if there is none.

    A compiler is not asked for B, or it would compile anew for every other answer.
    """
    like_torchs = problem.whole_layers and not problem.has_peepholes and problem.num_heads == 1
    if not like_torchs or not timings.TABLES:
        return None
    dtype = str(problem.dtype).removeprefix("torch.")
    B = 32 if torch.compiler.is_compiling() else problem.B

    def distance(m: timings.Measured) -> float:
        sizes = abs(log2(m.H / problem.H)) + abs(log2(m.B / B))
        return sizes + 4 * ((m.L > 1) != (problem.L > 1)) + 4 * (m.G != problem.G)

    table = timings.TABLES.get(gpu.kind(gpu.number(problem)), ())
    alike = [m for m in table if m.dtype == dtype and m.train == problem.requires_grad]
    return min(alike, key=distance) if alike else None
