"""Comparisons of two runs, benchmark by benchmark."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from .chance import PROCESS, Medians, Shift, limit_of, shifts_of, speeds_of, spread_of
from .contests import quartiles
from .storage import Run, by_name
from .tables import Bench, Row, disturbed
from .tables import show as show_table

_SHOWN = 0.1  # a row whose spread hides more than this says so
_BUSY = 0.25  # cores that other programs use before a change is no longer credible
WORDS = ("faster", "slower", "same", "undecided")


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


def paired(both: Sequence[tuple[Bench, Bench]]) -> list[Pair]:
    """Return how far all benchmarks of two runs have moved, without the machine's speed."""
    peers = [_common_peer(*benches) for benches in both]
    found = [tuple(map(_medians, two, (peer, peer))) for two, peer in zip(both, peers, strict=True)]
    seconds = [new["stats"]["median"] for _, new in both]
    theirs = [(old["peer"], new["peer"]) for old, new in found if "peer" in old]
    was, now = speeds_of(theirs)
    own = [(old["own"].without(was), new["own"].without(now)) for old, new in found]
    between = max(math.sqrt(2) * PROCESS, spread_of(theirs))
    own_shifts = shifts_of(own, seconds, between)
    with_peer = [k for k, peer in enumerate(peers) if peer]
    ratios = [(found[k][0]["ratio"], found[k][1]["ratio"]) for k in with_peer]
    # both runs, and both sides of the ratio
    moved = shifts_of(ratios, [seconds[k] for k in with_peer], 2 * PROCESS)
    ratio_shifts = dict(zip(with_peer, moved, strict=True))
    return [
        Pair(*both[k], peer, own_shifts[k], ratio_shifts.get(k)) for k, peer in enumerate(peers)
    ]


def _medians(bench: Bench, peer: str | None) -> dict[str, Medians]:
    """Return the medians of our time ("own"), and of the peer's and the ratio if there is one."""
    stats, info = bench["stats"], bench["extra_info"]
    data = {"own": stats["data"]}
    quarters = {"own": quartiles(stats["data"])}
    if peer is not None:
        data["peer"] = info["peers"][peer]["data"]
        data["ratio"] = [b / a for a, b in zip(data["own"], data["peer"], strict=True)]
        quarters |= {"peer": quartiles(data["peer"]), "ratio": info["peers"][peer]["ratio"]}
    found, parts = {}, counted(bench)
    for name, values in data.items():
        q = quarters[name]
        found[name] = Medians.of(q["median"], q["q75"] - q["q25"], len(values))
        if parts:
            logs = {k: math.log(statistics.median(values[part])) for k, part in parts.items()}
            found[name] = found[name]._replace(logs=logs)
    return found


def counted(bench: Bench) -> dict[int, slice]:
    """Return which rounds are those of which process; {} if the file is older than processes.

    Processes that other programs have disturbed are left out if two others remain.
    """
    processes = bench["extra_info"].get("processes", [])
    ends = list(itertools.accumulate((p["rounds"] for p in processes), initial=0))
    parts = dict(enumerate(itertools.starmap(slice, itertools.pairwise(ends))))
    quiet = [k for k in parts if (processes[k]["other_cores"] or 0.0) <= _BUSY]
    return {k: parts[k] for k in quiet} if len(quiet) > 1 else parts


def other_cores(bench: Bench) -> float:
    """Return the most cores that other programs used in a process that counts."""
    info = bench["extra_info"]
    processes = [info["processes"][k] for k in counted(bench)] or [info]
    return max(process.get("other_cores") or 0.0 for process in processes)


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
    busy = max(map(other_cores, (old, new)))
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
    pairs = paired([(was[name], now[name]) for name in now if name in was])
    limits = (
        limit_of([pair.own for pair in pairs]),
        limit_of([pair.ratio for pair in pairs if pair.ratio]),
    )
    return [judged(pair, *limits) for pair in pairs], sorted(was.keys() ^ now.keys())


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
