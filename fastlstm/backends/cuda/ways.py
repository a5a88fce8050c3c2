"""How long the two ways through a sequence should take: a persistent launch, or step by step.

A persistent launch reads W_hh once and has a barrier a step; step by step W_hh is read from L2 in
each. So the first is faster while its part of W_hh and of the batch is small: in bfloat16 on an
H100 up to about H=1024, and at H=2048 for few rows. A measurement in
:data:`fastlstm.backends.gpu.timings.PASSES` overrules the model here and the one of
csrc/cuda/plan.cpp, which gives the time of a persistent step.
"""

from __future__ import annotations

from functools import lru_cache
from math import log2
from typing import NamedTuple

from fastlstm.backends import gpu
from fastlstm.backends.gpu import timings


class Costs(NamedTuple):
    """Constants of the model, in ns, or bytes or operations a ns, for an H100.

    From data sheets, and counts of instructions in machine code; none is measured yet.
    """

    launch: float = 1_500  # of a kernel after another, in a CUDA graph
    product: float = 3_000  # the least time of a matrix product
    cell: float = 2_000
    memory: float = 2_500
    l2: float = 5_500
    load: float = 0.045  # ns a byte of W_hh that a block takes on chip before the first step
    start: float = 5_000  # of a persistent launch: memory is zeroed, then all blocks begin
    eager_step: tuple[float, float] = (20_000, 25_000)  # of the CPU, forward and backward
    eager_call: float = 15_000
    graph_call: float = 80_000  # of the CPU: copies to and from a graph's memory, and its launch


COSTS = Costs()
_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
# Operations a ns; float32 products of torch do not use TF32 unless asked to.
_RATES = {"bfloat16": 500_000, "float16": 500_000, "float32": 50_000, "float64": 30_000}
_L2_BYTES = 40 * 2**20
_GRAPH_BYTES = 128 * 2**20  # of memory of its own that a graph may have
_NEAR = 1.0  # of a measurement: a factor of two in H or B


class Pass(NamedTuple):
    """One pass, "forward" or "backward", of a call of T steps."""

    direction: str
    dtype: str
    B: int
    G: int
    H: int
    T: int


def persistent_ns(p: Pass, plan: dict[str, int], step_ns: float, layered: bool = False) -> float:
    """The time of a persistent launch whose steps take ``step_ns``.

    The layers of a ``layered`` launch, G of them, do G - 1 more steps, and W_ih is loaded too.
    """
    block = plan["units"] * 4 * p.H * _SIZES[p.dtype] * (2 if layered else 1)
    return COSTS.start + COSTS.load * block + (p.T + (p.G - 1) * layered) * step_ns


def stepwise_ns(p: Pass, captured: bool = False) -> float:
    """The time step by step: by a user's CUDA graph if ``captured``, else as is faster."""
    if captured:
        return p.T * gpu_step_ns(p)
    return min(_eager_ns(p), _graph_ns(p))


@lru_cache(maxsize=1024)
def wants_graph(p: Pass) -> bool:
    """Whether a CUDA graph of all steps is faster than their launches one by one."""
    return _graph_ns(p) < 0.8 * _eager_ns(p)


def gpu_step_ns(p: Pass) -> float:
    """The time of a step on the GPU alone: a matrix product and a cell."""
    size, rows, weights = _SIZES[p.dtype], p.G * p.B * p.H, p.G * 4 * p.H * p.H
    read = weights * size / (COSTS.l2 if weights * size < _L2_BYTES else COSTS.memory)
    product = max(COSTS.product, read, 2 * p.B * weights / _RATES[p.dtype])
    # Forward: igates, hgates twice, h, y and the reserve; c is float32. Backward: the reserve with
    # the c before, dgates three times, dy and dh.
    numbers = 4 + 8 + 2 + 5 if p.direction == "forward" else 6 + 12 + 4
    cell = max(COSTS.cell, rows * (numbers * size + 8) / COSTS.memory)
    added = p.direction == "backward" and size == 2  # the product to dh, which is float32
    return product + cell + (3 if added else 2) * COSTS.launch + added * COSTS.cell


def _eager_ns(p: Pass) -> float:
    cpu = COSTS.eager_step[p.direction == "backward"]
    return COSTS.eager_call + p.T * max(cpu, gpu_step_ns(p))


def _graph_ns(p: Pass) -> float:
    """The time by a graph of ours, which works in memory of its own."""
    copied = (10 * p.T * p.B * p.G * p.H + p.G * 4 * p.H * p.H) * _SIZES[p.dtype]
    if copied > _GRAPH_BYTES:
        return float("inf")
    return COSTS.graph_call + 2 * copied / COSTS.memory + p.T * gpu_step_ns(p)


def measured(p: Pass, number: int) -> timings.MeasuredPass | None:
    """The nearest measurement of both ways on a GPU, if there is one within a factor of two."""
    if not timings.PASSES:
        return None

    def distance(m: timings.MeasuredPass) -> float:
        return abs(log2(m.H / p.H)) + abs(log2(m.B / p.B))

    kind = (p.direction, p.dtype, p.G)
    table = timings.PASSES.get(gpu.kind(number), ())
    alike = [m for m in table if (m.direction, m.dtype, m.G) == kind]
    nearest = min(alike, key=distance, default=None)
    return nearest if nearest is not None and distance(nearest) <= _NEAR else None
