"""Paired timings: every contender in turn, round after round, and the medians.

On a machine whose speed drifts, two measurements minutes apart cannot be compared. Here all
contenders run once in every round, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def paired(
    contenders: Mapping[str, Callable[[], object]], rounds: int = 9, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of every call, by contender and in the order of the rounds; warm-ups left out."""
    for _ in range(warmup):
        for call in contenders.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ms(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return 1e3 * statistics.median(seconds)


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster ``fast`` is than ``slow``: the median of the rounds' ratios."""
    rounds = zip(seconds[slow], seconds[fast], strict=True)
    return statistics.median(a / b for a, b in rounds)
