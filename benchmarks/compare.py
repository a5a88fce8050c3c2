"""Comparisons of two runs, benchmark by benchmark."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from .contests import quartiles
from .storage import Run, by_name
from .tables import Bench, Row, disturbed
from .tables import show as show_table

# Standard deviation of the logarithm of a median from process to process: the same code varies by
# 1 to 4%, because its memory lies on other pages.
PROCESS = 0.012
CHANCE = 0.05  # that a comparison of two runs of the same code reports any change
_SHOWN = 0.1  # a row whose spread hides more than this says so
_BUSY = 0.25  # cores that other programs use before a change is no longer credible
_ENOUGH = 5  # benchmarks with a peer, whose times tell how the machine's speed has changed
WORDS = ("faster", "slower", "same", "undecided")
_NORMAL = statistics.NormalDist()


class Shift(NamedTuple):
    """How far the logarithm of a median has moved between two runs, and how far it does by chance.

    Args:
        size: new minus old logarithm.
        error: standard error of ``size``, by the rounds' spread in both runs.
        freedom: degrees of freedom of ``error``.
        between: standard deviation of ``size`` between two processes that run the same code.
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


class Change(NamedTuple):
    """What became of a benchmark.

    Args:
        name: that of the benchmark.
        peer: whose ratio is compared; None: only the medians are.
        old, new: the ratios, peer's time over ours.
        ratio: new over old ratio; above 1 it became faster.
        median: new over old median; above 1 it became slower.
        verdict: "faster" or "slower" if our time and the ratio have both moved that way, "same" if
            neither has moved, else "undecided".
        reason: why it is "undecided"; or how large a change would show, if the spread is wide.
    """

    name: str
    peer: str | None
    old: float | None
    new: float | None
    ratio: float | None
    median: float
    verdict: str
    reason: str = ""


class Pair(NamedTuple):
    """A benchmark of two runs, and how far our time and the ratio to a common peer have moved."""

    old: Bench
    new: Bench
    peer: str | None
    own: Shift
    ratio: Shift | None

    @classmethod
    def of(cls, old: Bench, new: Bench, speed: tuple[float, float]) -> Pair:
        """Compare a benchmark of two runs; ``speed`` as :func:`machine_speed` returns it."""
        peer = _common_peer(old, new)
        rounds = len(old["stats"]["data"]), len(new["stats"]["data"])
        was, now = (quartiles(bench["stats"]["data"]) for bench in (old, new))
        own = _shift(was, now, rounds, max(math.sqrt(2) * PROCESS, speed[1]))
        own = own._replace(size=own.size - speed[0])
        if peer is None:
            return cls(old, new, None, own, None)
        was, now = (bench["extra_info"]["peers"][peer]["ratio"] for bench in (old, new))
        # both runs, and both sides of the ratio
        return cls(old, new, peer, own, _shift(was, now, rounds, 2 * PROCESS))


def judged(pair: Pair, own_limit: float, ratio_limit: float) -> Change:
    """Judge a benchmark.

    Our time alone may change with the machine's speed, and the ratio to the peer that ran in the
    same rounds with the peer's time. A change is credible if both have moved, in the same
    direction, by more than chance, and other programs left the cores to the benchmark.
    """
    old, new, peer, own, ratio = pair
    slower = _direction(own, own_limit)
    verdict, reason = ("same", "slower", "faster")[slower], ""
    numbers: tuple[float | None, float | None, float | None] = (None, None, None)
    if peer is not None and ratio is not None:
        a, b = (bench["extra_info"]["peers"][peer] for bench in (old, new))
        numbers = a["ratio"]["median"], b["ratio"]["median"], math.exp(ratio.size)
        faster = _direction(ratio, ratio_limit)
        if slower != -faster:
            verdict = "undecided"
            reason = _reason(slower, faster, peer, b["median"] / a["median"])
    busy = max(bench["extra_info"].get("other_cores") or 0.0 for bench in (old, new))
    if verdict in ("slower", "faster") and busy > _BUSY:
        verdict, reason = "undecided", f"other programs used {busy:.1f} cores"
    shown = max(own.least(own_limit), ratio.least(ratio_limit) if ratio else 0.0)
    if verdict == "same" and shown > _SHOWN:
        reason = f"only changes above {math.expm1(shown):.0%} would show"
    median = new["stats"]["median"] / old["stats"]["median"]
    return Change(new["name"], peer, *numbers, median, verdict, reason)


def _direction(shift: Shift, limit: float) -> int:
    """Return 1 or -1 if a logarithm has moved up or down by more than chance, else 0."""
    if abs(shift.size) < shift.least(limit):
        return 0
    return 1 if shift.size > 0 else -1


def _reason(slower: int, faster: int, peer: str, theirs: float) -> str:
    """Return which of our time and the ratio has moved alone, and the change of the peer's time."""
    if slower and faster:
        what = "our time and the ratio disagree"
    else:
        what = "only our time moved" if slower else "only the ratio moved"
    return f"{what}; {peer} {theirs - 1:+.0%}"


def _common_peer(old: Bench, new: Bench) -> str | None:
    was, now = (bench["extra_info"]["peers"] for bench in (old, new))
    return next((name for name in now if name in was), None)


def _shift(
    old: dict[str, float], new: dict[str, float], rounds: tuple[int, int], between: float
) -> Shift:
    """Compare two medians, given the quartiles and the number of rounds of each."""
    # of normal numbers: the deviation is the interquartile range over 1.349, and the median's
    # error 1.253 times the mean's
    errors = [
        1.253 / 1.349 * (q["q75"] - q["q25"]) / q["median"] / math.sqrt(n)
        for q, n in zip((old, new), rounds, strict=True)
    ]
    size = math.log(new["median"] / old["median"])
    return Shift(size, math.hypot(*errors), sum(rounds) - 2, between)


def differences(old: Run, new: Run) -> list[str]:
    """Return what makes two runs incomparable: another machine, torch, or number of threads."""
    found = []

    def note(what: str, a: Any, b: Any) -> None:
        if a != b:
            found.append(f"{what}: {a} and {b}")

    note("CPU", *(run["machine_info"]["cpu"].get("brand_raw") for run in (old, new)))
    for name in ("isa", "threads", "torch", "gpu"):
        note(name, *(run["machine_info"]["fastlstm"].get(name) for run in (old, new)))
    return found


def changes(old: Run, new: Run) -> tuple[list[Change], list[str]]:
    """Return the changes of the benchmarks that both runs have, and the names of all others."""
    was, now = by_name(old), by_name(new)
    both = [(was[name], now[name]) for name in now if name in was]
    speed = machine_speed(both)
    pairs = [Pair.of(*benches, speed) for benches in both]
    limits = (
        limit_of([pair.own for pair in pairs]),
        limit_of([pair.ratio for pair in pairs if pair.ratio]),
    )
    return [judged(pair, *limits) for pair in pairs], sorted(was.keys() ^ now.keys())


def machine_speed(both: Sequence[tuple[Bench, Bench]]) -> tuple[float, float]:
    """Return how far the peers' times have moved from one run to the other.

    The peers are the same code in both runs, so that their times tell how much the speed of the
    machine has changed, and how differently from benchmark to benchmark.

    Returns:
        Median and standard deviation (by the median absolute deviation, which leaves out peers that
        were slow once) of the logarithm of new over old time; 0 if there are too few peers.
    """
    logs = []
    for old, new in both:
        if (peer := _common_peer(old, new)) is not None:
            a, b = (bench["extra_info"]["peers"][peer]["median"] for bench in (old, new))
            logs.append(math.log(b / a))
    if len(logs) < _ENOUGH:
        return 0.0, 0.0
    middle = statistics.median(logs)
    return middle, 1.4826 * statistics.median(abs(x - middle) for x in logs)


def fails(found: Change, limit: tuple[str, float]) -> bool:
    """Return whether a change exceeds the limit of ``--fail-if``, and is more than noise."""
    kind, share = limit
    if kind == "median":
        return found.median > 1 + share
    return found.verdict == "slower" and found.ratio is not None and found.ratio < 1 - share


def show(old: Run, new: Run, arguments: argparse.Namespace) -> None:
    """Print a comparison.

    Raises:
        ValueError: the runs have no benchmark in common.
        SystemExit: a change exceeds ``--fail-if``; with status 1.
    """
    found, missing = changes(old, new)
    if not found:
        raise ValueError("expected two runs of the same suite; these have no benchmark in common")
    warnings = differences(old, new)
    for warning in filter(None, map(disturbed, (old, new))):
        print(f"WARNING: {warning}; what seems to have changed may be the same", file=sys.stderr)
    if warnings:
        print(
            f"WARNING: the runs are not comparable, {'; '.join(warnings)}; times differ because of"
            " that, and ratios may",
            file=sys.stderr,
        )
    shown = [c for c in found if c.verdict != "same" or not arguments.only_changed]
    if arguments.format == "json":
        print(json.dumps({"warnings": warnings, "changes": [c._asdict() for c in shown]}))
    else:
        columns = (" benchmark", " peer", "ratio before", "after", "change", "median", " verdict")
        columns += (" reason",)
        show_table(columns, [_row(c) for c in shown], arguments.format)
        count = {word: [c.verdict for c in found].count(word) for word in WORDS}
        text = ", ".join(f"{number} {word}" for word, number in count.items())
        print(f"\n{text}{f'; {len(missing)} in one run only' if missing else ''}")
    bad = [c.name for c in found if arguments.fail_if and fails(c, arguments.fail_if)]
    if bad:
        kind, share = arguments.fail_if
        print(f"exceeds {kind}:{share:.0%}: {', '.join(bad)}", file=sys.stderr)
        raise SystemExit(1)


def _row(c: Change) -> Row:
    numbers = [f"{c.old:.2f}", f"{c.new:.2f}", f"{c.ratio - 1:+.1%}"] if c.ratio else [""] * 3
    kind = {"same": "", "undecided": "~"}.get(c.verdict, c.verdict)
    return Row([c.name, c.peer or "", *numbers, f"{c.median - 1:+.1%}", c.verdict, c.reason], kind)
