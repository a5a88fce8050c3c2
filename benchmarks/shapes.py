"""Shapes of LSTMs: their names, words such as "T,B,I,H", grids, and random ones."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from torch import nn

LARGEST = {"T": 500, "B": 256, "I": 1024, "H": 2048}
GFLOP = 4.0  # the most of a random shape's forward pass
GRID = {"T": "50", "B": "1,8,32", "H": "32:1024:x2"}


class Shape(NamedTuple):
    """The sizes of an LSTM and its input, as nn.LSTM names them."""

    T: int
    B: int
    I: int
    H: int
    L: int = 1
    bidirectional: bool = False
    name: str = ""

    @property
    def D(self) -> int:
        """The number of directions."""
        return 2 if self.bidirectional else 1

    @property
    def words(self) -> str:
        """The sizes as ``fastlstm bench run --shape`` takes them."""
        layers = f",{self.L}" if self.L > 1 or self.bidirectional else ""
        return f"{self.T},{self.B},{self.I},{self.H}{layers}{',bi' * self.bidirectional}"

    def params(self) -> dict[str, Any]:
        """Return what a benchmark of this shape stores as its parameters."""
        return {**{n: getattr(self, n) for n in "TBIHLD"}, "shape": self.name or self.words}

    def module(self, kind: type[nn.RNNBase]) -> nn.RNNBase:
        """Create an LSTM of these sizes."""
        return kind(self.I, self.H, self.L, bidirectional=self.bidirectional)

    def flop(self, train: bool) -> float:
        """Return the operations of all matrix products; a multiply-add is two.

        Training, a forward and a backward pass, has three times those of a forward pass.
        """
        columns = sum(
            (self.I if layer == 0 else self.D * self.H) + self.H for layer in range(self.L)
        )
        return (3 if train else 1) * 8.0 * self.T * self.B * self.D * self.H * columns

    def bytes(self, train: bool, size: int) -> float:
        """Return the bytes of weights, input and output, each read or written once in a pass."""
        weights = (
            4
            * self.D
            * self.H
            * sum((self.I if layer == 0 else self.D * self.H) + self.H for layer in range(self.L))
        )
        ends = self.T * self.B * (self.I + self.D * self.H)
        return (3.0 if train else 1.0) * size * (weights + ends)


@cache
def named() -> dict[str, dict[str, Any]]:
    """Return shapes.yaml."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(
        Path(__file__).with_name("shapes.yaml").read_text()
    )
    return found


def parse(text: str) -> Shape:
    """Return the shape of a name in shapes.yaml or of the words "T,B,I,H[,L][,bi]".

    Raises:
        ValueError: ``text`` is neither, in a sentence that says what a shape is.
    """
    sizes = named()[text]["sizes"] if text in named() else text
    numbers = sizes.split(",")
    bidirectional = numbers[-1] == "bi"
    numbers = numbers[: len(numbers) - bidirectional]
    if len(numbers) not in (4, 5) or not all(n.isdigit() and int(n) > 0 for n in numbers):
        raise ValueError(
            "expected a shape, T,B,I,H[,L][,bi] (steps, batch, input size, hidden size, layers,"
            f" both directions) or one of {', '.join(named())}; got {text!r}"
        )
    return Shape(*map(int, [*numbers, "1"][:5]), bidirectional, text if text in named() else "")


def of_suite(key: str) -> list[Shape]:
    """Return the shapes that have a key in shapes.yaml: "quick", or "row" for README's table."""
    return [parse(name) for name, entry in named().items() if entry.get(key)]


def grid(words: Sequence[str]) -> list[Shape]:
    """Return all combinations of "X=VALUES"; VALUES are "1,32" or "128:2048:x2".

    Raises:
        ValueError: a word is none of these.
    """
    values = {name: _values(text) for name, text in GRID.items()}
    for word in words:
        name, _, text = word.partition("=")
        if name not in ("T", "B", "I", "H", "L"):
            raise ValueError(f"expected a grid's size, one of T, B, I, H and L; got {word!r}")
        values[name] = _values(text)
    found = []
    for sizes in itertools.product(*values.values()):
        size = dict(zip(values, sizes, strict=True))
        I = size.get("I", size["H"])
        found.append(Shape(size["T"], size["B"], I, size["H"], size.get("L", 1)))
    return found


def _values(text: str) -> list[int]:
    first, *rest = text.split(":")
    numbers = [*first.split(","), *rest[:1], *(step.removeprefix("x") for step in rest[1:])]
    if not all(n.isdigit() and int(n) > 0 for n in numbers) or len(rest) not in (0, 2):
        raise ValueError(f"expected values as in H=128,256 or H=128:2048:x2, got {text!r}")
    if not rest:
        return [int(number) for number in numbers]
    low, high, step = map(int, numbers)
    if not rest[1].startswith("x"):
        return list(range(low, high + 1, step))
    if step < 2:
        raise ValueError(f"expected a factor from 2 on, as in H=128:2048:x2, got {text!r}")
    return list(
        itertools.takewhile(lambda n: n <= high, (low * step**k for k in itertools.count()))
    )


def draw(seed: int) -> Iterator[Shape]:
    """Yield random shapes: sizes are log-uniform, some have two layers, some two directions.

    T and B are reduced so that a forward pass has at most ``GFLOP``.
    """
    generator = random.Random(seed)
    while True:
        T, B, I, H = (round(math.exp(generator.uniform(0, math.log(n)))) for n in LARGEST.values())
        kind = generator.random()
        L, bidirectional = (2 if 0.8 <= kind < 0.9 else 1), kind >= 0.9
        a_step = Shape(1, B, I, H, L, bidirectional).flop(False) / 1e9
        T = max(1, min(T, int(GFLOP / a_step)))
        B = max(1, min(B, int(B * GFLOP / a_step)))
        yield Shape(T, B, I, H, L, bidirectional)
