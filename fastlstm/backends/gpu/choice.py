"""Which backend "auto" takes on a GPU.

1. Where a table of measurements for that GPU is checked in (``gpu_measured``), what was fastest at
   the nearest sizes.
2. Else, where cuDNN can run the LSTM, cuDNN, by the backend ``torch``: kernels that have never run
   on a GPU are not taken unasked in its place.
3. Else, with peepholes and the like, ``cuda``, and ``triton`` where that was not built: of few
   units both keep W_hh on one multiprocessor, of more only ``cuda`` keeps it on chip.

:func:`expected` is a model of what 1 will say, for ``explain`` and for the choice of what to
measure first. It counts, for one step of one group: multiplications at the tensor cores' peak, and
bytes that come from L2 at its bandwidth, whichever takes longer, and waiting. A persistent kernel
reads h in every block, and waits at one barrier; a step by cuDNN reads W_hh once, and waits for two
launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import torch

from fastlstm.backends import gpu
from fastlstm.backends.gpu import timings
from fastlstm.call import Problem

# H100 SXM. Dense bfloat16 at 989 TFLOP/s is of NVIDIA's data sheet; that products of one step reach
# 0.6 of it, and the other numbers, are assumptions to be measured.
_FLOPS = 0.6 * 989e12
_L2 = 5.5e12  # bytes a second, read by all multiprocessors together
_UNITS = 16  # of a block of the persistent kernel
_BARRIER = 1.3e-6
_LAUNCH = 2e-6  # from one kernel's end to the next one's work


def choose(problem: Problem, able: Sequence[str]) -> str:
    """The backend for ``problem``, among those that are ``able`` to run it, the safest last."""
    measured = _nearest(problem)
    if measured is not None and measured.backend in able:
        return measured.backend
    if "torch" in able:
        return "torch"
    return next((name for name in ("cuda", "triton") if name in able), able[-1])


def reason(problem: Problem, able: Sequence[str]) -> str:
    """Why :func:`choose` chooses as it does."""
    measured = _nearest(problem)
    if measured is not None and measured.backend in able:
        return f"measured fastest at H={measured.H} B={measured.B}"
    if "torch" not in able:
        return "by a model, not measured on this GPU"
    return f"until this GPU is measured; a model expects {expected(problem)!r} to be fastest"


def expected(problem: Problem) -> str:
    """The backend that should be fastest on an H100, "cuda" or "torch", for an LSTM of both."""
    if cudnn_is_persistent(problem):
        return "torch"
    size, (B, H) = problem.dtype.itemsize, (problem.B, problem.H)
    products = 8 * B * H * H / (_FLOPS * 2 / size)
    persistent = _BARRIER + max(products, H / _UNITS * B * H * size / _L2)
    stepwise = 2 * _LAUNCH + max(products, 4 * H * H * size / _L2)
    return "cuda" if persistent < stepwise else "torch"


def cudnn_is_persistent(problem: Problem) -> bool:
    """Whether PyTorch asks cuDNN for a kernel that keeps the weights on chip.

    As get_algo in PyTorch's aten/src/ATen/native/cudnn/RNN.cpp has it, on large GPUs.
    """
    p = problem
    if p.proj_size or p.lengths:
        return False
    few_units = p.H <= 128 or (p.H <= 192 and not p.requires_grad)
    if few_units and p.dtype != torch.float64:
        return True
    fits = p.H <= 1024 and p.H % 128 == 0 and p.I % 128 == 0 and p.B % 8 == 0 and p.B <= 128
    return p.dtype == torch.float16 and p.L == 1 and p.G == 1 and fits


def _nearest(problem: Problem) -> timings.Measured | None:
    """What was measured at the nearest sizes on a GPU like the current one; None if nothing was.

    A compiler is not asked for B, or it would compile anew for every other answer.
    """
    if problem.peephole or not problem.whole_layers or not timings.TABLES:
        return None
    dtype = str(problem.dtype).removeprefix("torch.")
    B = 32 if torch.compiler.is_compiling() else problem.B

    def distance(m: timings.Measured) -> float:
        sizes = abs(log2(m.H / problem.H)) + abs(log2(m.B / B))
        return sizes + 4 * ((m.L > 1) != (problem.L > 1)) + 4 * (m.G != problem.G)

    table = timings.TABLES.get(gpu.capability(), ())
    alike = [m for m in table if m.dtype == dtype and m.train == problem.requires_grad]
    return min(alike, key=distance) if alike else None
