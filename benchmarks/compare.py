"""Comparisons of two runs, benchmark by benchmark."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, NamedTuple

import numpy as np

from .storage import Run, by_name
from .tables import Bench, Row, disturbed
from .tables import show as show_table

# A smaller change is the machine's: the same code varies by 1 to 4% from process to process,
# because its memory lies on other pages. A change of 10% is well above.
NOISE = 0.04
WORDS = ("faster", "slower", "same", "peer")


class Change(NamedTuple):
    """What became of a benchmark.

    Args:
        name: that of the benchmark.
        peer: whose ratio is compared; None: only the medians are.
        old, new: the ratios, peer's time over ours.
        ratio: new over old ratio; above 1 it became faster.
        median: new over old median; above 1 it became slower.
        verdict: "faster", "slower" or "same", by the ratio if there is one, else by the median;
            "peer" if the ratio has changed because of the peer's time alone.
    """

    name: str
    peer: str | None
    old: float | None
    new: float | None
    ratio: float | None
    median: float
    verdict: str


def change(old: Bench, new: Bench) -> Change:
    """Compare a benchmark of two runs.

    The ratio to the peer that ran in the same rounds counts, because the machine's speed is the
    same for both. It has changed if the two interquartile ranges do not overlap, and the medians
    differ by more than ``NOISE``; and if our own median is the same, it is the peer that changed.
    """
    was, now = old["extra_info"], new["extra_info"]
    medians = new["stats"]["median"] / old["stats"]["median"]
    absolute = _verdict(*(_range([1 / s for s in b["stats"]["data"]]) for b in (old, new)))
    peer = next((name for name in now["peers"] if name in was["peers"]), None)
    if peer is None:
        return Change(new["name"], None, None, None, None, medians, absolute)
    a, b = was["peers"][peer]["ratio"], now["peers"][peer]["ratio"]
    verdict = _verdict(*((r["q25"], r["median"], r["q75"]) for r in (a, b)))
    if verdict != "same" and 1 / (1 + NOISE) < medians < 1 + NOISE:
        verdict = "peer"
    return Change(
        new["name"],
        peer,
        a["median"],
        b["median"],
        b["median"] / a["median"],
        medians,
        verdict,
    )


def _range(data: list[float]) -> tuple[float, float, float]:
    low, median, high = np.percentile(data, [25, 50, 75])
    return float(low), float(median), float(high)


def _verdict(old: tuple[float, float, float], new: tuple[float, float, float]) -> str:
    """Judge quartiles of a number that is better if it is larger."""
    if new[0] > old[2] and new[1] > old[1] * (1 + NOISE):
        return "faster"
    if new[2] < old[0] and new[1] < old[1] / (1 + NOISE):
        return "slower"
    return "same"


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
    both = [change(was[name], now[name]) for name in now if name in was]
    return both, sorted(was.keys() ^ now.keys())


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
    kind = {"same": "", "peer": "~"}.get(c.verdict, c.verdict)
    return Row([c.name, c.peer or "", *numbers, f"{c.median - 1:+.1%}", c.verdict], kind)
