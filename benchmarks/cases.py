"""Cases: contests that have not been made yet."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .contests import Contest, Effort, Measured, measure


@dataclass(eq=False, frozen=True)
class Case:
    """A contest that has not been made yet.

    Args:
        suite, name: they and the name of a contender are the name of a benchmark.
        params: shape, mode, dtype, and sizes.
        ours: names of the contenders that become benchmarks.
        build: makes the contest.
        measured: measures it in another way than ``measure``.
    """

    suite: str
    name: str
    params: dict[str, Any]
    ours: tuple[str, ...]
    build: Callable[[Effort], Contest]
    measured: Callable[[Effort], Measured] | None = None

    def measure(self, effort: Effort) -> Measured:
        """Make the contest and measure it."""
        return self.measured(effort) if self.measured else measure(self.build(effort), effort)

    @property
    def group(self) -> str:
        """The mode and the dtype, by which pytest-benchmark's own tables group benchmarks."""
        return f"{self.params['mode']}-{self.params['dtype']}"


def case(
    suite: str,
    params: dict[str, Any],
    ours: Sequence[str],
    build: Callable[[Effort], Contest],
) -> Case:
    """Return a case whose name is made of its shape, mode and dtype."""
    name = f"{params['shape']}-{params['mode']}-{params['dtype']}"
    return Case(suite, name, params, tuple(ours), build)


def ways(options: argparse.Namespace, dtypes: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return all modes and dtypes that the options ask for, of the ``dtypes`` that a suite has."""
    chosen = [dtype for dtype in options.dtype if not dtypes or dtype in dtypes]
    pairs = itertools.product(options.mode or ("inference", "training"), chosen)
    return [{"mode": mode, "dtype": dtype} for mode, dtype in pairs]
