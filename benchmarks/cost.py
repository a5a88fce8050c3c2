"""The memory and the time of a training step, from its sizes and the constants of a machine.

A step is a list of parts, each of which keeps memory between its forward and its backward pass, and
takes time in both. All functions are pure; nothing is run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from .constants import Constants, Speeds, step_seconds

_CHUNK_BYTES = 2048  # of a column of the rows that the backward kernels multiply at once
_OTHER = 4  # bytes of a number in float32: cells of checkpoints, optimiser states, losses


class Precision(NamedTuple):
    """Bytes of a parameter, and of a number that the kernels compute with."""

    stored: int
    computed: int


PRECISIONS = {
    "32-true": Precision(4, 4),
    "bf16-mixed": Precision(4, 2),
    "bf16-true": Precision(2, 2),
}


class Optimizer(NamedTuple):
    """What an optimiser keeps and moves.

    Args:
        states: numbers that it keeps for each parameter.
        moves: numbers that its fused form reads and writes for each parameter.
        loops: the same for the form that calls a function of torch for each operation.
    """

    states: int
    moves: int
    loops: int


OPTIMIZERS = {
    "SGD": Optimizer(0, 3, 3),
    "SGD with momentum": Optimizer(1, 5, 8),
    "Adam": Optimizer(2, 7, 20),
    "AdamW": Optimizer(2, 7, 22),
}


class How(NamedTuple):
    """How a step is computed.

    Args:
        precision: of ``PRECISIONS``.
        checkpoint_every: k, or 0 for none.
        constants: of the machine; None where no time is to be computed, and all times are 0.
    """

    precision: Precision
    checkpoint_every: int
    constants: Constants | None

    @property
    def casts(self) -> bool:
        """Whether the weights are cast in every step."""
        return self.precision.stored != self.precision.computed

    @property
    def speeds(self) -> Speeds | None:
        """The speeds of the precision that is computed in."""
        c = self.constants
        return None if c is None else c.float32 if self.precision.computed == 4 else c.bfloat16


class Part(NamedTuple):
    """A part of a training step.

    Args:
        name: of the part.
        parameters: how many it has.
        kept: bytes from its forward pass until its backward pass.
        forward_bytes, backward_bytes: further ones during each pass.
        forward_s, backward_s: seconds of each pass.
    """

    name: str
    parameters: int = 0
    kept: int = 0
    forward_bytes: int = 0
    backward_bytes: int = 0
    forward_s: float = 0.0
    backward_s: float = 0.0


class Step(NamedTuple):
    """A training step.

    Args:
        parts: in the order of the forward pass.
        batch: bytes of a batch, as the data module yields it.
        optimizer: of ``OPTIMIZERS``.
        fused: the optimiser is fused.
        clips: gradients are clipped by their norm.
    """

    parts: list[Part]
    batch: int
    optimizer: Optimizer
    fused: bool
    clips: bool


class Cost(NamedTuple):
    """Bytes and seconds of a training step."""

    parameters: int
    gradients: int
    optimizer: int
    batch: int
    activations: int
    workspace: int
    forward_s: float
    backward_s: float
    optimizer_s: float

    @property
    def bytes(self) -> int:
        """All memory at the peak, beside that of the process."""
        return sum(self[:6])

    @property
    def seconds(self) -> float:
        """The time of the step on one device."""
        return sum(self[6:])


class Layer(NamedTuple):
    """The sizes of an LSTM layer.

    Args:
        T, B, I, H: steps, rows, input size and units.
        G: groups: directions, or decoders side by side.
        biases: vectors of biases, 1 or 2.
        peephole: there are peepholes.
        needs_dx: the gradient of the input is computed.
        wide_input: the input comes in float32 although the layer computes in bfloat16.
    """

    T: int
    B: int
    I: int
    H: int
    G: int = 1
    biases: int = 2
    peephole: bool = False
    needs_dx: bool = True
    wide_input: bool = False


def lstm(name: str, layer: Layer, how: How) -> Part:
    """Return the part of one call of the fused op.

    The op keeps the gates and c of every step, 5H numbers, or h and c of every k-th one, and y.
    """
    T, B, I, H, G = layer[:5]
    size, every = how.precision.computed, min(how.checkpoint_every, T)
    weights = G * 4 * H * (I + H)
    parameters = weights + G * H * (4 * layer.biases + 3 * layer.peephole)
    y, x = T * B * G * H * size, T * B * I * size
    packed = weights * size  # the kernels' own copy, which is freed after each pass
    kept = y + G * B * H * size + (parameters * size if how.casts else 0)
    kept += x if layer.wide_input and how.casts else 0
    if every:
        kept += math.ceil(T / every) * G * B * 2 * H * _OTHER
    else:
        kept += T * B * G * 5 * H * size
    block = min(max(_CHUNK_BYTES // size // B, 1), T)
    again = min(block + every + 1, T) * B * G * 6 * H * size + packed if every else 0
    backward = packed - (0 if layer.needs_dx else G * 4 * H * I * size)
    backward += G * (block + 1) * B * 4 * H * size + (5 * H + I) * _CHUNK_BYTES
    backward += y + (x if layer.needs_dx else 0) + again
    part = Part(name, parameters, kept, packed, backward)
    if (speeds := how.speeds) is None:
        return part
    flop = 8.0 * T * B * G * H * I
    forward_s = speeds.weight[0] * weights + flop / speeds.product[0]
    forward_s += T * G * step_seconds(speeds.forward, H, B)
    backward_s = speeds.weight[1] * weights + (1 + layer.needs_dx) * flop / speeds.product[1]
    backward_s += T * G * step_seconds(speeds.backward, H, B) + (forward_s if every else 0)
    return part._replace(forward_s=forward_s, backward_s=backward_s)


def linear(name: str, rows: int, inputs: int, outputs: int, bias: int, how: How) -> Part:
    """Return the part of a linear layer of torch, whose input has a gradient."""
    size, weights = how.precision.computed, inputs * outputs
    kept = rows * outputs * size + (weights * size if how.casts else 0)
    grads = rows * (inputs + outputs) * size + (weights * size if how.casts else 0)
    seconds = 0.0 if how.speeds is None else 2.0 * rows * weights / how.speeds.matmul
    return Part(name, weights + bias, kept, 0, grads, seconds, 2 * seconds)


def moved(name: str, how: How, **sizes: float) -> Part:
    """Return a part that moves memory and computes little.

    Args:
        name: of the part.
        how: how the step is computed.
        **sizes: the bytes ``kept``, ``forward_bytes`` and ``backward_bytes``; and those that each
            pass reads and writes, ``forward`` and ``backward``; and ``elements`` of a loss.
    """
    bytes_of = {n: int(sizes.get(n, 0)) for n in ("kept", "forward_bytes", "backward_bytes")}
    if (c := how.constants) is None:
        return Part(name, **bytes_of)
    forward = sizes.get("forward", 0) / c.bandwidth + sizes.get("elements", 0) * c.element
    backward = sizes.get("backward", 0) / c.bandwidth
    return Part(name, **bytes_of, forward_s=forward, backward_s=backward)


def cost(step: Step, how: How) -> Cost:
    """Return the bytes and seconds of a step.

    The gradients stay while the next step runs forward, as Lightning does it; and what is freed
    stays with the process, so that the largest workspace counts, and all that is kept.
    """
    parameters = sum(part.parameters for part in step.parts)
    stored = how.precision.stored
    workspace = max((max(p.forward_bytes, p.backward_bytes) for p in step.parts), default=0)
    seconds = 0.0
    if (c := how.constants) is not None:
        moves = step.optimizer.moves if step.fused else step.optimizer.loops
        seconds = c.overhead + parameters * stored * (moves + 3 * step.clips) / c.bandwidth
    return Cost(
        parameters * stored,
        parameters * stored,
        parameters * stored * step.optimizer.states,
        step.batch,
        sum(part.kept for part in step.parts),
        workspace,
        sum(part.forward_s for part in step.parts),
        sum(part.backward_s for part in step.parts),
        seconds,
    )


def all_reduced(step: Step, how: How, n: int, latency: float, bandwidth: float) -> float:
    """Return the seconds of a step on n devices, each with a batch of its own.

    The gradients of a part are summed over the devices (a ring all-reduce) while the parts before
    it still run backward:

        2 (n - 1) latency + 2 (n - 1) / n * bytes / bandwidth

    Args:
        step: the step.
        how: how it is computed; with constants.
        n: number of devices.
        latency: seconds of a message between two devices.
        bandwidth: bytes a second between two devices.
    """
    on_one = cost(step, how)
    if n == 1:
        return on_one.seconds
    now = ready = on_one.forward_s
    for part in reversed(step.parts):
        now += part.backward_s
        if part.parameters:
            size = part.parameters * how.precision.stored
            reduction = 2 * (n - 1) * latency + 2 * (n - 1) / n * size / bandwidth
            ready = max(ready, now) + reduction
    return max(now, ready) + on_one.optimizer_s


def fitting(costs: Iterable[tuple[int, Cost]], memory: float) -> int | None:
    """Return the k of the fastest choice that fits into ``memory`` bytes, None if none does."""
    found = [(found.seconds, found.bytes, k) for k, found in costs if found.bytes <= memory]
    return min(found)[2] if found else None
