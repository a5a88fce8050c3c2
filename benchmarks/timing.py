"""Paired timings: every contender in turn, round after round, and the medians.

On a machine whose speed drifts, two measurements minutes apart cannot be compared. Here all
contenders run once in every round, and a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

_SAMPLE_S = 0.03  # a sample is the median of as many calls as fit
_PAUSE_S = 0.01  # after which the threads of the contender before no longer spin on the cores


def _seconds(call: Callable[[], object], sample_s: float) -> float:
    """The median of calls, at least one, that begin within that time."""
    calls = []
    begin = start = time.perf_counter()
    while not calls or start - begin < sample_s:
        call()
        end = time.perf_counter()
        calls.append(end - start)
        start = end
    return statistics.median(calls)


def paired(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    before: Callable[[str], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds a call, by contender and in the order of the rounds.

    Each sample follows one that is not counted: it wakes the threads that the contender before let
    sleep, and finds its own data in the cache as it would in a program that runs nothing else.

    Args:
        contenders: name to callable.
        rounds: samples of each.
        before: called with the name before each sample, for what shall not be timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for counts in [False] + rounds * [True]:
        for name, call in contenders.items():
            if before:
                before(name)
            time.sleep(_PAUSE_S)
            _seconds(call, _SAMPLE_S)
            if counts:
                seconds[name].append(_seconds(call, _SAMPLE_S))
    return seconds


def median_ms(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return 1e3 * statistics.median(seconds)


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times faster ``fast`` is than ``slow``: the median of the rounds' ratios."""
    rounds = zip(seconds[slow], seconds[fast], strict=True)
    return statistics.median(a / b for a, b in rounds)
