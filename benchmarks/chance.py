"""How far the numbers of two runs differ by chance.

The same code varies from process to process, because its memory lies on other pages, and a process
may meet a slow minute of the machine. A run's number is therefore the trimmed mean of the medians
of its processes, and its error is found from their spread (Yuen, 1974). Two runs of five processes
leave four degrees of freedom, and a spread of so few numbers is often too small by accident: the
variance is averaged with the median variance of the benchmarks of similar duration, which counts as
``PRIOR`` degrees of freedom (Smyth, 2004, for the same problem). Duration matters, because calls of
microseconds vary ten times as much as long ones. Where a run has one process, the variation between
processes is the constant ``PROCESS``.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# Standard deviation of the logarithm of a median from process to process: 1 to 4% of the time.
PROCESS = 0.012
CHANCE = 0.05  # that a comparison of two runs of the same code reports any change
PRIOR = 8  # degrees of freedom of the variance of similar benchmarks
_SIMILAR = math.log(4)  # of two durations
_MOST = 6  # benchmarks of the most similar durations
_ENOUGH = 5  # benchmarks with a peer, whose times tell how the machine's speed has changed
_NORMAL = statistics.NormalDist()


class Shift(NamedTuple):
    """How far the logarithm of a median has moved between two runs, and how far it does by chance.

    Args:
        size: new minus old logarithm.
        error: standard error of ``size``, by the spread of the rounds or of the processes.
        freedom: degrees of freedom of ``error``.
        between: standard deviation of what ``error`` does not know.
    """

    size: float
    error: float
    freedom: int
    between: float

    def least(self, limit: float) -> float:
        """Return the least size that is no chance, if ``limit`` deviations of a normal one are."""
        n = max(self.freedom, 1)  # Student's t: the spread of few rounds is itself uncertain
        t = limit + (limit**3 + limit) / (4 * n)
        t += (5 * limit**5 + 16 * limit**3 + 3 * limit) / (96 * n * n)
        return math.hypot(t * self.error, limit * self.between)

    def deviations(self) -> float:
        """Return the limit that ``size`` just reaches."""
        low, high = 0.0, 40.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (low, middle) if self.least(middle) > abs(self.size) else (middle, high)
        return low


def limit_of(shifts: Sequence[Shift]) -> float:
    """Return how many deviations a shift has to exceed, given that there are several.

    By Benjamini and Hochberg (1995): of n shifts, those with the k smallest probabilities count for
    the largest k whose k-th probability is at most ``CHANCE`` k / n. If nothing has changed, a
    shift counts with the probability ``CHANCE``.
    """
    found = sorted((shift.deviations() for shift in shifts), reverse=True)
    limits = [_NORMAL.inv_cdf(1 - CHANCE * (k + 1) / len(found) / 2) for k in range(len(found))]
    reached = [limit for z, limit in zip(found, limits, strict=True) if z >= limit]
    return min(reached, default=max(limits, default=0.0))


class Medians(NamedTuple):
    """The logarithms of a number's medians in a run.

    Args:
        logs: by process.
        error: standard error of a single one, by the spread of its rounds.
        rounds: their number.
    """

    logs: dict[int, float]
    error: float
    rounds: int

    @property
    def _cut(self) -> int:
        """Return how many processes are left out at both ends."""
        return len(self.logs) // 5

    @property
    def freedom(self) -> int:
        """Return the degrees of freedom of :attr:`variance`."""
        return len(self.logs) - 2 * self._cut - 1

    @property
    def center(self) -> float:
        """Return the mean without the lowest and the highest fifth."""
        logs = sorted(self.logs.values())
        return statistics.mean(logs[self._cut : len(logs) - self._cut])

    @property
    def variance(self) -> float:
        """Return the variance of :attr:`center` (Yuen, 1974); 0 of one process."""
        logs, cut = sorted(self.logs.values()), self._cut
        kept = logs[cut : len(logs) - cut]
        logs[:cut], logs[len(logs) - cut :] = kept[:1] * cut, kept[-1:] * cut
        mean = statistics.mean(logs)
        squares = sum((x - mean) ** 2 for x in logs)
        return squares / max(1, len(kept) * (len(kept) - 1))

    @classmethod
    def of(cls, median: float, iqr: float, rounds: int) -> Medians:
        """Return those of a run of one process; ``iqr`` is the interquartile range."""
        # of normal numbers: the deviation is the interquartile range over 1.349, and the median's
        # error 1.253 times the mean's
        return cls({0: math.log(median)}, 1.253 / 1.349 * iqr / median / math.sqrt(rounds), rounds)

    def without(self, speeds: Mapping[int, float]) -> Medians:
        """Return the logarithms less those of the machine's speed in each process."""
        return self._replace(logs={k: x - speeds.get(k, 0.0) for k, x in self.logs.items()})


Two = tuple[Medians, Medians]  # of the old and the new run


def speeds_of(peers: Sequence[Two]) -> tuple[dict[int, float], dict[int, float]]:
    """Return how much slower the machine was in each process of both runs.

    The peers are the same code in both runs, so that their times tell how much the speed of the
    machine has changed.

    Returns:
        Median over the peers of the logarithm of their time over their mean time, by process; none
        where there are too few peers.
    """
    off: tuple[dict[int, list[float]], dict[int, list[float]]] = ({}, {})
    for two in peers:
        center = (two[0].center + two[1].center) / 2
        for medians, found in zip(two, off, strict=True):
            for process, log in medians.logs.items():
                found.setdefault(process, []).append(log - center)
    old, new = (
        {
            process: statistics.median(logs)
            for process, logs in found.items()
            if len(logs) >= _ENOUGH
        }
        for found in off
    )
    return old, new


def spread_of(peers: Sequence[Two]) -> float:
    """Return how differently the peers' times have moved: a standard deviation.

    It is found from the median absolute deviation, which leaves out peers that were slow once; 0 if
    there are too few peers.
    """
    if len(peers) < _ENOUGH:
        return 0.0
    moved = [new.center - old.center for old, new in peers]
    middle = statistics.median(moved)
    return 1.4826 * statistics.median(abs(size - middle) for size in moved)


def shifts_of(numbers: Sequence[Two], seconds: Sequence[float], between: float) -> list[Shift]:
    """Return how far numbers have moved.

    Args:
        numbers: of the benchmarks.
        seconds: durations of the benchmarks, by which some are similar.
        between: ``Shift.between`` of a benchmark that has one process in a run.
    """
    variances = [old.variance + new.variance for old, new in numbers]
    freedom = [old.freedom + new.freedom for old, new in numbers]
    shifts = []
    for k, (old, new) in enumerate(numbers):
        size = new.center - old.center
        if not (old.freedom and new.freedom):
            n = old.rounds + new.rounds - 2
            shifts.append(Shift(size, math.hypot(old.error, new.error), n, between))
            continue
        apart = {j: abs(math.log(s / seconds[k])) for j, s in enumerate(seconds) if j != k}
        near = sorted(
            (j for j in apart if freedom[j] and apart[j] < _SIMILAR), key=apart.__getitem__
        )
        similar = [variances[j] for j in near[:_MOST]]
        prior = min(PRIOR, sum(freedom[j] for j in near[:_MOST]))
        variance = prior * statistics.median(similar or [0.0]) + freedom[k] * variances[k]
        n = prior + freedom[k]
        shifts.append(Shift(size, math.sqrt(variance / n), n, 0.0))
    return shifts
