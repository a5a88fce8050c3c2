"""The constants of a machine from which ``fastlstm plan`` computes times, and their measurement.

``constants.json`` has those of one known machine, which serve where nothing was measured.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

import fastlstm
from fastlstm import _C
from fastlstm.models.losses import frame_loss

from .machine import copy_bandwidth
from .timing import median_seconds

SHIPPED = Path(__file__).with_name("constants.json")
HIDDEN, BATCH = (32, 128, 256, 512, 1024), (1, 8, 32, 128)  # of the measured steps
_INPUT = 16  # columns of their W_ih, so few that the products with x take no time
_FLOP = 3e8  # of the recurrent products in a measured forward pass; 4 to 200 steps
_SAMPLE_S = 0.08  # of a measurement
_MESSAGE = 2**24  # bytes of the all-reduce that measures the bandwidth


class Speeds(NamedTuple):
    """The speeds of an LSTM in one precision; pairs are of the forward and the backward pass.

    Args:
        product: FLOP/s of the products with the input of a layer, and of their gradients.
        matmul: FLOP/s of torch's linear layers, both passes together.
        weight: seconds that a call takes for each weight, however many steps it has: it casts and
            packs the weights, and writes their gradients.
        forward: seconds of a step without the products with the input: a row for each of
            ``HIDDEN``, a column for each of ``BATCH``.
        backward: likewise, with the gradient of W_hh.
    """

    product: tuple[float, float]
    matmul: float
    weight: tuple[float, float]
    forward: list[list[float]]
    backward: list[list[float]]


class Constants(NamedTuple):
    """What was measured on a machine.

    Args:
        machine: its processor, instruction set and number of threads.
        overhead: seconds of the smallest training step, almost all of it Python's.
        bandwidth: bytes a second that all threads read and write together.
        element: seconds of the loss of one number, and of its gradient.
        latency: seconds of a message between two processes (gloo over the loopback).
        network: bytes a second between them.
        process: bytes of a process that has run a training step of a tiny model.
        float32, bfloat16: the speeds of float32, and of bfloat16 under autocast.
    """

    machine: str
    overhead: float
    bandwidth: float
    element: float
    latency: float
    network: float
    process: float
    float32: Speeds
    bfloat16: Speeds


def step_seconds(table: Sequence[Sequence[float]], H: int, B: int) -> float:
    """Interpolate the seconds of a step: the logarithm of time is linear in those of H and B.

    Beyond the largest size the time grows with the operations, below the smallest it is constant.
    """
    more = max(H / HIDDEN[-1], 1) ** 2 * max(B / BATCH[-1], 1)
    (row, down), (column, right) = _place(HIDDEN, H), _place(BATCH, B)
    corners = [
        ((1 - down) * (1 - right), table[row][column]),
        ((1 - down) * right, table[row][column + 1]),
        (down * (1 - right), table[row + 1][column]),
        (down * right, table[row + 1][column + 1]),
    ]
    return more * math.exp(sum(share * math.log(seconds) for share, seconds in corners))


def _place(sizes: Sequence[int], size: int) -> tuple[int, float]:
    """Return the number of the measured size below ``size``, and the share of the next one."""
    size = min(max(size, sizes[0]), sizes[-1])
    index = min(bisect_right(sizes, size), len(sizes) - 1) - 1
    return index, math.log(size / sizes[index]) / math.log(sizes[index + 1] / sizes[index])


def _passes(module: nn.Module, x: torch.Tensor, autocast: bool) -> tuple[float, float]:
    """Return the seconds of the forward and of the backward pass of a module.

    They are the first quartile: other programs only make passes longer.
    """
    forward, backward = list[float](), list[float]()
    begin = time.perf_counter()
    dy = None
    while len(forward) < 4 or time.perf_counter() - begin < _SAMPLE_S:
        for parameter in module.parameters():
            parameter.grad = None
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = module(x)
        y = y[0] if isinstance(y, tuple) else y
        between = time.perf_counter()
        dy = torch.ones_like(y) if dy is None else dy
        torch.autograd.backward(y, dy)
        backward.append(time.perf_counter() - between)
        forward.append(between - start)
    early = (len(forward) - 1) // 4
    return sorted(forward[1:])[early], sorted(backward[1:])[early]  # the first one warms up


def _lstm(T: int, B: int, I: int, H: int, autocast: bool, dx: bool = False) -> tuple[float, float]:
    return _passes(fastlstm.LSTM(I, H), torch.randn(T, B, I, requires_grad=dx), autocast)


def _speeds(autocast: bool) -> Speeds:
    short, long = (_lstm(T, 32, _INPUT, 512, autocast) for T in (4, 36))
    weights = 4 * 512 * (512 + _INPUT)
    weight = [max(a - 4 * (b - a) / 32, 0) / weights for a, b in zip(short, long, strict=True)]
    narrow, wide = (_lstm(20, 32, I, 256, autocast, dx=True) for I in (128, 2048))
    flop = 8 * 20 * 32 * 256 * (2048 - 128)
    fixed = [seconds * 4 * 256 * (2048 - 128) for seconds in weight]
    product = [
        passes * flop / max(b - a - c, 1e-9)
        for passes, a, b, c in zip((1, 2), narrow, wide, fixed, strict=True)
    ]
    layer, h = nn.Linear(512, 1024), torch.randn(512, 512, requires_grad=True)
    matmul = 3 * 2 * 512 * 512 * 1024 / sum(_passes(layer, h, autocast))
    tables: list[list[list[float]]] = [[], []]
    for H in HIDDEN:
        rows: list[list[float]] = [[], []]
        for B in BATCH:
            T = round(min(max(_FLOP / (8 * B * H * H), 4), 200))
            seconds = _lstm(T, B, _INPUT, H, autocast)
            for row, total, once in zip(rows, seconds, weight, strict=True):
                row.append(max(total - once * 4 * H * (H + _INPUT), total / 2) / T)
        for table, row in zip(tables, rows, strict=True):
            table.append(row)
    return Speeds((product[0], product[1]), matmul, (weight[0], weight[1]), *tables)


def smallest_step() -> Callable[[], None]:
    """Return a training step of a tiny model, whose time is that of Python."""
    module, x = fastlstm.LSTM(8, 8), torch.randn(2, 2, 8)
    optimizer = torch.optim.Adam(module.parameters(), fused=True)

    def step() -> None:
        loss = F.mse_loss(module(x)[0], x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _element() -> float:
    readout, frames = torch.randn(20, 32, 2048, requires_grad=True), torch.rand(20, 32, 2048)
    call = lambda: torch.autograd.grad(frame_loss(readout, frames, "binary"), readout)  # noqa: E731
    return median_seconds(call, _SAMPLE_S) / readout.numel()


def _all_reduce(rank: int, path: str, answer: torch.Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for place, size in enumerate((1024, _MESSAGE)):
        message, seconds = torch.ones(size // 4), []
        for _ in range(8):  # the first one sets up connections
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(message)
            seconds.append(time.perf_counter() - start)
        if rank == 0:
            answer[place] = statistics.median(seconds[1:])
    dist.destroy_process_group()


def _network() -> tuple[float, float]:
    """Return the seconds of a message and the bytes a second between two processes (gloo)."""
    answer = torch.zeros(2, dtype=torch.float64).share_memory_()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_all_reduce, (os.path.join(folder, "rendezvous"), answer), nprocs=2)
    small, large = answer.tolist()
    return small / 2, _MESSAGE / max(large - small, 1e-9)


def measure() -> Constants:
    """Measure the constants of this machine, with the threads that torch uses; in half a minute."""
    step = smallest_step()
    step()
    process = psutil.Process().memory_info().rss
    overhead = median_seconds(step, _SAMPLE_S)
    latency, network = _network()
    return Constants(
        machine(),
        overhead,
        copy_bandwidth(),
        _element(),
        latency,
        network,
        process,
        _speeds(False),
        _speeds(True),
    )


def machine() -> str:
    """Return the processor, its instruction set and the number of threads."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    threads = torch.get_num_threads()
    isa = (_C.isas() or ["no kernels"])[0]
    return f"{names[0] if names else 'CPU'} ({isa}), {threads} thread{'s' * (threads > 1)}"


def cache() -> Path:
    """Return the file in which ``fastlstm plan --measure`` keeps what it measured."""
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "fastlstm" / "plan.json"


def save(constants: Constants, path: Path) -> None:
    """Write constants as JSON, with four digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = constants._asdict()
    for name in ("float32", "bfloat16"):
        fields[name] = fields[name]._asdict()
    text = json.dumps(fields, default=str)
    rounded = json.loads(text, parse_float=lambda word: float(f"{float(word):.4g}"))
    path.write_text(json.dumps(rounded, indent=1) + "\n")


def load(path: Path) -> Constants:
    """Read constants.

    Raises:
        ValueError: the file has other contents.
    """
    try:
        fields: dict[str, Any] = json.loads(path.read_text())
        for name in ("float32", "bfloat16"):
            fields[name] = Speeds(**fields[name])
        return Constants(**fields)
    except (TypeError, KeyError, ValueError):
        raise ValueError(
            f"{path}: expected the constants of fastlstm plan, got other contents; run"
            " `fastlstm plan --measure` to write them anew"
        ) from None


def find() -> Constants:
    """Return the constants of this machine if they were measured, else those of a known one."""
    if cache().exists() and (own := load(cache())).machine == machine():
        return own
    return load(SHIPPED)
