"""Pictures of runs, as SVG that is the same for the same run."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .storage import Run, load, of
from .tables import Bench

# Okabe and Ito's colours, which colour-blind readers can tell apart; black is for reference.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
DASHES = ("-", "--", ":", "-.")  # one for each run
MODES = ("inference", "training")


def ratio(runs: Sequence[Run]) -> Any:
    """Draw the speed-up over H: a line for each B, and a band from the first to the third quartile.

    Raises:
        ValueError: the runs have no grid.
    """
    figure, axes = _panels(2, (9, 3.8), sharey=True)
    for run, dash in zip(runs, itertools.cycle(DASHES)):
        commit = run["commit_info"]["id"][:7] or run["machine_info"]["fastlstm"]["version"]
        name = f", {commit}" if len(runs) > 1 else ""
        benches = [b for b in of(run, "grid") if b["params"]["backend"] != "frozen"]
        benches = [b for b in benches if b["extra_info"]["ratio"]]
        _need(benches, "the suite grid, or --grid")
        lines = sorted({_line(bench) for bench in benches})
        for axis, mode in zip(axes, MODES, strict=True):
            for index, line in enumerate(lines):
                chosen = [b for b in benches if _line(b) == line and b["params"]["mode"] == mode]
                chosen.sort(key=lambda b: b["params"]["H"])
                x = [b["params"]["H"] for b in chosen]
                low, mid, high = (
                    [b["extra_info"]["ratio"][key] for b in chosen]
                    for key in ("q25", "median", "q75")
                )
                style = {"color": COLOURS[index % 6], "marker": MARKERS[index % 6]}
                axis.plot(
                    x, mid, label=_label(line, lines) + name, markersize=4, linestyle=dash, **style
                )
                axis.fill_between(x, low, high, color=style["color"], alpha=0.25, linewidth=0)
    for axis, mode in zip(axes, MODES, strict=True):
        axis.axhline(1, color="black", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="hidden size H (= input size)", title=mode)
        ticks = sorted({b["params"]["H"] for run in runs for b in of(run, "grid")})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xticks([], minor=True)
    _ratio_ticks(axes[0])
    axes[0].set_ylabel("time of nn.LSTM / ours")
    axes[1].legend()
    return figure


def sweep(runs: Sequence[Run]) -> Any:
    """Draw the sorted speed-ups of random shapes.

    Raises:
        ValueError: the runs have no sweep.
    """
    figure, axes = _panels(2, (9, 3.2), sharey=True)
    benches = [b for run in runs for b in of(run, "sweep") if b["extra_info"]["ratio"]]
    _need(benches, "the suite sweep")
    for axis, mode in zip(axes, MODES, strict=True):
        values = sorted(
            b["extra_info"]["ratio"]["median"] for b in benches if b["params"]["mode"] == mode
        )
        colours = [COLOURS[0] if value >= 1 else COLOURS[1] for value in values]
        heights = [value - 1 for value in values]
        axis.bar(range(1, len(values) + 1), heights, bottom=1, width=1, color=colours)
        axis.axhline(1, color="black", linewidth=1)
        axis.set(xlabel=f"{len(values)} random shapes, sorted", title=mode, yscale="log")
        axis.set_ylim(bottom=min([0.8, *values]))
    _ratio_ticks(axes[0])
    axes[0].set_ylabel("time of nn.LSTM / ours")
    return figure


def roofline(runs: Sequence[Run]) -> Any:
    """Draw GFLOP/s over operations per byte, below the machine's two limits.

    Raises:
        ValueError: the runs have no benchmark of known operations.
    """
    figure, (axis,) = _panels(1, (6.5, 4.2))
    benches = [b for run in runs for b in run["benchmarks"] if b["extra_info"]["bytes"]]
    _need(benches, "the suite quick, table, sweep or grid")
    x = [b["extra_info"]["flop"] / b["extra_info"]["bytes"] for b in benches]
    ends = [min(x) / 2, max(x) * 2]
    machine = runs[0]["machine_info"]["fastlstm"]
    peak, bandwidth = machine["peak_gflops"], machine["bandwidth_gbs"]
    points = [ends[0], peak / bandwidth, max(ends[1], peak / bandwidth)]
    axis.plot(
        points,
        [min(peak, bandwidth * point) for point in points],
        color="black",
        label=f"{peak:.0f} GFLOP/s in float32, {bandwidth:.0f} GB/s of memory",
    )
    groups = sorted({b["group"] for b in benches})
    for index, group in enumerate(groups):
        chosen = [(a, b) for a, b in zip(x, benches, strict=True) if b["group"] == group]
        y = [b["extra_info"]["flop"] / b["stats"]["median"] / 1e9 for _, b in chosen]
        style = {"color": COLOURS[index % 6], "marker": MARKERS[index % 6], "linestyle": ""}
        axis.plot([a for a, _ in chosen], y, label=group, markersize=4, **style)
    axis.set(xscale="log", yscale="log", ylabel="GFLOP/s")
    axis.set_xlabel("operations per byte of weights, input and output")
    axis.legend(fontsize=8)
    return figure


def scaling(runs: Sequence[Run]) -> Any:
    """Draw the time on n threads as a share of that on one.

    Raises:
        ValueError: the runs do not have the suite threads.
    """
    figure, axes = _panels(2, (9, 3.8), sharey=True)
    benches = [b for run in runs for b in of(run, "threads")]
    _need(benches, "the suite threads")
    shapes = list(dict.fromkeys(b["params"]["shape"] for b in benches))
    for axis, mode in zip(axes, MODES, strict=True):
        counts = sorted({b["extra_info"]["threads"] for b in benches})
        axis.plot(
            counts, [1 / n for n in counts], color="black", linestyle=":", label="1 / threads"
        )
        for index, shape in enumerate(shapes):
            times = {
                b["extra_info"]["threads"]: b["stats"]["median"]
                for b in benches
                if b["params"]["shape"] == shape and b["params"]["mode"] == mode
            }
            share = [seconds / times[min(times)] for seconds in times.values()]
            style = {"color": COLOURS[index % 6], "marker": MARKERS[index % 6]}
            axis.plot(list(times), share, label=shape, markersize=4, **style)
        axis.set(xlabel="threads", title=mode, ylim=(0, 1.1), xticks=counts)
    axes[0].set_ylabel("time / time on one thread")
    axes[1].legend(fontsize=8)
    return figure


def memory(runs: Sequence[Run]) -> Any:
    """Draw time a step and peak memory of training over the number of steps.

    Raises:
        ValueError: the runs do not have the suite long.
    """
    figure, axes = _panels(2, (9, 3.8))
    benches = [b for run in runs for b in of(run, "long")]
    _need(benches, "the suite long")
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for bench in benches:
        T, info = bench["params"]["T"], bench["extra_info"]
        found = lines.setdefault(bench["params"]["backend"], [])
        found.append((T, bench["stats"]["median"], info["peak_rss"]))
        peer = info["peers"].get("nn.LSTM")
        if peer and bench["params"]["backend"] == "auto":
            lines.setdefault("nn.LSTM", []).append((T, peer["median"], info["peer_rss"]))
    for index, (name, points) in enumerate(lines.items()):
        points.sort()
        steps = [T for T, _, _ in points]
        style = {"color": COLOURS[index % 6], "marker": MARKERS[index % 6], "label": name}
        axes[0].plot(steps, [1e6 * s / T for T, s, _ in points], markersize=4, **style)
        axes[1].plot(steps, [size / 2**30 for _, _, size in points], markersize=4, **style)
    axes[0].set(xscale="log", xlabel="steps T", ylabel="us a step, training")
    axes[0].set_ylim(bottom=0)
    axes[1].set(xscale="log", yscale="log", xlabel="steps T", ylabel="peak memory, GiB")
    _ratio_ticks(axes[1], (1, 1.5, 2, 3, 4, 5, 7))
    axes[1].legend(fontsize=8)
    return figure


DRAWN: dict[str, Callable[[Sequence[Run]], Any]] = {
    "ratio": ratio,
    "sweep": sweep,
    "roofline": roofline,
    "scaling": scaling,
    "memory": memory,
}


def write(kind: str, runs: Sequence[Run], path: Path) -> None:
    """Draw runs into an SVG file, without a date.

    Raises:
        ValueError: the runs do not have what is drawn.
    """
    import matplotlib as mpl

    style = {"svg.hashsalt": "fastlstm", "font.size": 9, "axes.grid": True, "grid.alpha": 0.3}
    with mpl.rc_context(style):
        figure = DRAWN[kind](runs)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw(arguments: argparse.Namespace) -> None:
    """Do what ``fastlstm bench plot`` is asked for."""
    path = Path(arguments.output or f"{arguments.kind}.svg")
    if path.suffix != ".svg":
        raise ValueError(f"expected a file that ends in .svg, got {str(path)!r}")
    write(arguments.kind, [load(word) for word in arguments.runs], path)
    print(path)


def _panels(count: int, size: tuple[float, float], **how: Any) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False, **how)[0]


def _ratio_ticks(axis: Any, digits: Sequence[float] = (1, 2, 5)) -> None:
    """Write numbers such as 0.5, 1 and 2 on a logarithmic axis instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.yaxis.set_major_locator(LogLocator(10, subs=digits))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _need(benches: Sequence[Bench], what: str) -> None:
    if not benches:
        raise ValueError(f"expected a run of {what}, of which this one has no benchmark")


def _line(bench: Bench) -> tuple[int, int, str]:
    return bench["params"]["B"], bench["params"]["T"], bench["params"]["dtype"]


def _label(line: tuple[int, int, str], lines: Sequence[tuple[int, int, str]]) -> str:
    """Return B, and what else differs between the lines."""
    words = [f"B = {line[0]}"]
    words += [f"T = {line[1]}"] * (len({other[1] for other in lines}) > 1)
    return ", ".join(words + [line[2]] * (len({other[2] for other in lines}) > 1))
