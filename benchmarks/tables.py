"""Tables of runs for a terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .storage import Run

Bench = dict[str, Any]
STYLES = {"slower": "red", "~": "bright_black", "failed": "bold red", "faster": "green"}


class Row(NamedTuple):
    """A row of a table: its cells, and what it is: a word of ``STYLES``, or nothing."""

    cells: list[str]
    kind: str = ""


def show(columns: Sequence[str], rows: Sequence[Row], how: str = "table") -> None:
    """Print a table; without colours where the output is no terminal.

    Args:
        columns: names; all but those that begin with a space are aligned to the right.
        rows: what it has.
        how: "table" or "markdown".
    """
    names = [name.strip() for name in columns]
    left = [name.startswith(" ") for name in columns]
    if how == "markdown":
        print("| " + " | ".join(names) + " |")
        print("|" + "|".join("---" if is_left else "---:" for is_left in left) + "|")
        for row in rows:
            print("| " + " | ".join(row.cells) + " |")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, is_left in zip(names, left, strict=True):
        table.add_column(name, justify="left" if is_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row.cells), style=STYLES.get(row.kind))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:  # a pipe has no width
        console = Console(file=sys.stdout, highlight=False, width=240)
        with console.capture() as captured:
            console.print(table)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
        return
    console.print(table)


def duration(seconds: float) -> str:
    """Return a duration with three digits and its unit."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1, 1e3, "ms"), (math.inf, 1, "s")):
        if seconds < limit:
            text = f"{seconds * factor:.3g}"
            return f"{seconds * factor:.0f} {unit}" if "e" in text else f"{text} {unit}"
    return str(seconds)


def speed_up(ratio: dict[str, float]) -> str:
    """Return a ratio with its interquartile range, and "~" in front if that holds 1."""
    text = f"{ratio['median']:.2f}x [{ratio['q25']:.2f}, {ratio['q75']:.2f}]"
    return f"~ {text}" if verdict(ratio) == "~" else text


def verdict(ratio: dict[str, float] | None) -> str:
    """Return "faster", "slower", or "~" if the interquartile range holds 1."""
    if ratio is None:
        return ""
    if ratio["q25"] <= 1 <= ratio["q75"]:
        return "~"
    return "faster" if ratio["median"] > 1 else "slower"


def machine_line(run: Run) -> str:
    """Return one line that describes what measured a run."""
    info, ours = run["machine_info"], run["machine_info"]["fastlstm"]
    commit = run.get("commit_info", {}).get("id", "")[:7]
    cpu = info.get("cpu", {}).get("brand_raw", info.get("machine", ""))
    return (
        f"fastlstm {ours['version']}{f' ({commit})' if commit else ''}  torch {ours['torch']}"
        f"  {cpu}, {ours['cores']} cores, {ours['isa']}  {ours['threads']} threads"
        f"  peak {ours['peak_gflops']:.0f} GFLOP/s  load {ours['load']}"
    )


def disturbed(run: Run) -> str | None:
    """Return a warning if other programs ran when the run began, or None."""
    load, cores = (run["machine_info"]["fastlstm"][name] for name in ("load", "cores"))
    if load < cores / 2:
        return None
    return (
        f"other programs used {load:.1f} of {cores} cores before the run of {run['datetime'][:16]}"
    )


def title(bench: Bench) -> str:
    """Return the name of a benchmark's shape, and its sizes if it has a name."""
    p = bench["params"]
    if not all(size in p for size in "TBIH"):
        return str(p["shape"])
    sizes = f"T{p['T']} B{p['B']} I{p['I']} H{p['H']}"
    sizes += f" L{p['L']}" * (p["L"] > 1) + " bi" * (p["D"] > 1)
    return sizes if "," in p["shape"] else f"{p['shape']}  {sizes}"


COLUMNS = (" shape", " mode", " dtype", " ours", "time", " peer", "time", "speed-up [IQR]")
COLUMNS += ("GFLOP/s", "peak", "error / peer's")


def rows_of(bench: Bench) -> list[Row]:
    """Return the rows of a benchmark: one for each peer, the first with its own numbers."""
    p, stats, info = bench["params"], bench["stats"], bench["extra_info"]
    spread = stats["iqr"] / 2 / stats["median"] if stats["median"] else 0
    first = [title(bench), p["mode"], p["dtype"], p["backend"]]
    first.append(f"{duration(stats['median'])} ±{spread:.{1 if spread < 0.1 else 0}%}")
    gflops = info["flop"] / stats["median"] / 1e9 if info["flop"] else None
    peak = info["peak_gflops"]
    last = [f"{gflops:.3g}" if gflops else "", f"{gflops / peak:.0%}" if gflops and peak else ""]
    error = info["error"]
    good = bool(error and error["peer"])
    last.append(f"{error['ours'] / error['peer']:.1f}" if good else "ok" if error else "")
    rows = []
    for name, peer in info["peers"].items():
        cells = [f"{name} ({peer['threads']})", duration(peer["median"]), speed_up(peer["ratio"])]
        kind = verdict(peer["ratio"])
        rows.append(
            Row((first if not rows else [""] * 5) + cells + (last if not rows else [""] * 3), kind)
        )
    return rows or [Row([*first, "", "", "", *last])]


def summary(run: Run) -> list[str]:
    """Return the geometric mean, and the lists of what is slower, inconclusive, and failed."""
    found: list[tuple[str, str, dict[str, float]]] = []
    for bench in run["benchmarks"]:
        peers = bench["extra_info"]["peers"].items()
        found += [(bench["name"], n, peer["ratio"]) for n, peer in peers if not peer["own"]]
    lines = [f"WARNING: {warning}"] if (warning := disturbed(run)) else []
    for peer in dict.fromkeys(name for _, name, _ in found):
        ratios = [ratio for _, name, ratio in found if name == peer]
        mean = statistics.geometric_mean([ratio["median"] for ratio in ratios])
        kinds = [verdict(ratio) for ratio in ratios]
        lines.append(
            f"{peer}: geometric mean {mean:.2f}x over {len(ratios)};"
            f" {kinds.count('slower')} slower, {kinds.count('~')} inconclusive"
        )
    losses = sorted((r["median"], n, p, r) for n, p, r in found if verdict(r) == "slower")
    if losses:
        lines.append("slower than the peer:")
        lines += [f"  {name}  {peer}  {speed_up(ratio)}" for _, name, peer, ratio in losses]
    for failed in run["failed"]:
        lines.append(f"failed, not timed: {failed['name']}: {failed['error']}")
    for bench in run["benchmarks"]:
        for peer, error in bench["extra_info"].get("failed_peers", {}).items():
            lines.append(f"failed, not timed: {peer} beside {bench['name']}: {error}")
    return lines


def show_run(run: Run, how: str) -> None:
    """Print the table of a run and its summary."""
    if how == "json":
        print(json.dumps(run))
        return
    print(machine_line(run))
    rows = [row for bench in run["benchmarks"] for row in rows_of(bench)]
    show(COLUMNS, rows, how)
    print()
    print("\n".join(summary(run)))
