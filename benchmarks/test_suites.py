"""All benchmarks: each contender of each case is one benchmark of pytest-benchmark.

pytest-benchmark times one function, and has a fixed number of rounds where a function runs before
each of them. The paired rounds, of which there are as many as the ratios need, are therefore timed
by timing.py, and pytest-benchmark is given the samples: its clock is advanced by them.
"""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case
from .contests import Measured


class Clock:
    """A clock that a list of samples moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.samples: list[float] = []

    def __call__(self) -> float:
        return self.now

    def next(self) -> None:
        """Let the time of the next sample pass."""
        self.now += self.samples.pop(0)


CLOCK = Clock()


@pytest.mark.benchmark(timer=CLOCK)
def test_benchmark(benchmark: Any, case: Case, contender: str, result: Measured) -> None:
    if contender in result.failed:
        pytest.fail(result.failed[contender], pytrace=False)
    benchmark.group = case.group
    benchmark.name = f"{case.suite}[{case.name}-{contender}]"
    benchmark.fullname = benchmark.name
    benchmark.param = f"{case.name}-{contender}"
    benchmark.params = {**case.params, "backend": contender}
    benchmark.extra_info.update(result.info(contender))
    CLOCK.now, CLOCK.samples = 0.0, list(result.best(contender)[1])
    benchmark.pedantic(CLOCK.next, rounds=len(CLOCK.samples))
