"""Write the tables and pictures of README.md and docs/ anew from the newest file of results.

    python -m benchmarks.figures                      # make bench-figures
    python -m benchmarks.figures --measure [--short]  # make bench-results: 14 minutes on 2 cores

The text between ``<!-- begin: bench NAME -->`` and ``<!-- end: bench NAME -->`` is replaced;
``TEXTS`` has the names. With ``--measure`` the results are measured first, and written to
``benchmarks/results/<cpu>-<isa>/<version>.json``; ``--short`` tries that in a few minutes.
"""

from __future__ import annotations

import argparse
import re
import shlex
import statistics
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from . import machine, plots, storage
from .shapes import LARGEST, named
from .storage import Run
from .tables import Bench, speed_up, verdict

ROOT = Path(__file__).parents[1]
PICTURES = {"speedup.svg": "ratio", "sweep.svg": "sweep"}
# What the results consist of. A bfloat16 LSTM has one row in all: that of the table.
PARTS = (
    "--suite table --dtype float32 bfloat16 --max-seconds 5",
    "--suite sweep --rounds 5 --max-seconds 2",
    "--suite grid --rounds 5 --max-seconds 2",
    "--suite cell --rounds 5 --max-seconds 3",
    "--suite options --mode training --rounds 5 --max-seconds 10",
)
SHORT = "--rounds 3 --max-seconds 1 --count 25"
_MARK = re.compile(r"(<!-- begin: bench (\S+) -->\n)(.*?)(<!-- end: bench \2 -->)", re.DOTALL)
CELL_COLUMNS = {
    "`nn.LSTM`": ("LSTM", "nn.LSTM"),
    "`nn.LSTMCell`": ("LSTM", "nn.LSTMCell"),
    "ONNX Runtime": ("LSTM", "ONNX IoBinding"),
    "`LSTM`": ("LSTM", ""),
    "`LSTMCell`": ("LSTMCell", ""),
    "`step`, float32": ("Stream float32", ""),
    "`step`, bfloat16": ("Stream bfloat16", ""),
    "`step`, int8": ("Stream int8", ""),
}


def table(run: Run) -> str:
    """Return README.md's table of ratios to nn.LSTM and ONNX Runtime."""
    found = {}
    for bench in storage.of(run, "table"):
        p, info = bench["params"], bench["extra_info"]
        if p["backend"] == "auto" and "nn.LSTM" in info["peers"]:
            found[p["shape"], p["mode"], p["dtype"]] = _ratio(info["peers"]["nn.LSTM"])
        if p["backend"] == "frozen" and "onnxruntime" in info["peers"]:
            found[p["shape"], "onnxruntime", p["dtype"]] = _ratio(info["peers"]["onnxruntime"])
    columns = [
        ("inference", "float32"),
        ("training", "float32"),
        ("inference", "bfloat16"),
        ("training", "bfloat16"),
        ("onnxruntime", "float32"),
    ]
    heads = ["inference", "training", "inference, bfloat16", "training, bfloat16"]
    rows = [
        [entry["row"], *(found.get((name, *column), "") for column in columns)]
        for name, entry in named().items()
        if "row" in entry
    ]
    return _markdown(["T, B, I, H", *heads, "ONNX Runtime / ours, frozen"], rows)


def cell(run: Run) -> str:
    """Return the table of microseconds of one step a call, in inference."""
    return _cells(run, [name for name in CELL_COLUMNS if "bfloat16" not in name])


def stream(run: Run) -> str:
    """Return the table of microseconds of a step of a stream, in inference."""
    return _cells(run, ["ONNX Runtime", *(name for name in CELL_COLUMNS if "step" in name)])


def _cells(run: Run, columns: list[str]) -> str:
    rows: dict[int, dict[str, Bench]] = {}
    for bench in storage.of(run, "cell"):
        p = bench["params"]
        if p["mode"] == "inference" and p["T"] == p["B"] == 1:
            rows.setdefault(p["H"], {})[p["backend"]] = bench

    def microseconds(benches: dict[str, Bench], name: str) -> str:
        ours, peer = CELL_COLUMNS[name]
        if ours not in benches or (peer and peer not in benches[ours]["extra_info"]["peers"]):
            return ""
        bench = benches[ours]
        source = bench["extra_info"]["peers"][peer] if peer else bench["stats"]
        value = 1e6 * source["median"]
        digits = 0 if value >= 10 else 1 if value >= 1 else 2
        return f"{value:,.{digits}f}"

    lines = [[str(H), *(microseconds(rows[H], name) for name in columns)] for H in sorted(rows)]
    return _markdown(["H", *columns], lines, "---:")


def options(run: Run) -> str:
    """Return the table of what the options of cells cost in training, beside a plain LSTM."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for bench in storage.of(run, "options"):
        p = bench["params"]
        if p["mode"] == "training" and p["dtype"] == "float32":
            sizes = ", ".join(str(p[name]) for name in "TBIH")
            found.setdefault(p["backend"], {})[sizes] = bench["extra_info"]["peers"]
    shapes = {sizes: None for by_shape in found.values() for sizes in by_shape}
    rows = []
    for name, by_shape in found.items():
        cells = [f"`{name}`"]
        for shape in shapes:
            peers = by_shape[shape]
            loop = peers[f"loop, {name}"]["ratio"]["median"]
            cells += [f"{1 / peers['plain']['ratio']['median']:.2f}", f"{loop:.1f}"]
        rows.append(cells)
    heads = [head for shape in shapes for head in (f"cost at {shape}", "loop / ours")]
    return _markdown(["Option", *heads], rows)


def sweep(run: Run) -> str:
    """Return a sentence on the ratios of random shapes."""
    ratios: dict[str, list[float]] = {"inference": [], "training": []}
    for bench in storage.of(run, "sweep"):
        ratios[bench["params"]["mode"]].append(bench["extra_info"]["ratio"]["median"])
    means = [statistics.geometric_mean(values) for values in ratios.values()]
    return (
        f"Over {len(ratios['inference'])} random shapes (H up to {LARGEST['H']}, B up to"
        f" {LARGEST['B']}) the geometric mean of `nn.LSTM`'s time over ours is {means[0]:.2f} in"
        f" inference and {means[1]:.2f} in training; the lowest ratios are"
        f" {min(ratios['inference']):.2f} and {min(ratios['training']):.2f}."
    )


def machine_sentence(run: Run) -> str:
    """Return a sentence on what the numbers were measured with, and when."""
    info, ours = run["machine_info"], run["machine_info"]["fastlstm"]
    runtime = ours["packages"].get("onnxruntime")
    beside = f" and ONNX Runtime {runtime}" if runtime else ""
    date = datetime.fromisoformat(run["datetime"])
    return (
        f"Measured on {date.day} {date:%B %Y} with fastlstm {ours['version']} on {ours['cores']}"
        f" cores of {info['cpu'].get('brand_raw', info['machine'])} ({ours['isa']}), with torch"
        f" {ours['torch'].split('+')[0]}{beside}; the peak in float32 is"
        f" {ours['peak_gflops']:.0f} GFLOP/s."
    )


def losses(run: Run) -> str:
    """Return a list of all benchmarks that are slower than another library."""
    found = []
    for bench in run["benchmarks"]:
        for name, peer in bench["extra_info"]["peers"].items():
            if not peer["own"] and verdict(peer["ratio"]) == "slower":
                line = f"- `{bench['name']}` beside {name}: {speed_up(peer['ratio'])}"
                found.append((peer["ratio"]["median"], line))
    return "\n".join(line for _, line in sorted(found)) or "None."


TEXTS: dict[str, Callable[[Run], str]] = {
    "table": table,
    "sweep": sweep,
    "machine": machine_sentence,
    "cell": cell,
    "stream": stream,
    "options": options,
    "losses": losses,
}


def replaced(text: str, run: Run) -> str:
    """Return a page with its generated parts made anew.

    Raises:
        ValueError: the page has a name that is not in ``TEXTS``.
    """

    def part(match: re.Match[str]) -> str:
        begin, name, _, end = match.groups()
        if name not in TEXTS:
            raise ValueError(f"bench {name}: expected one of {', '.join(TEXTS)}")
        return f"{begin}{TEXTS[name](run)}\n{end}"

    return _MARK.sub(part, text)


def pages() -> Iterator[Path]:
    """Yield the pages that may have generated parts."""
    yield ROOT / "README.md"
    yield from sorted((ROOT / "docs").glob("*.md"))


def measure(short: bool) -> Path:
    """Measure all parts, and return the file of results."""
    from .command import measure as run_words  # needs pytest

    run: dict[str, Any] | None = None
    for part in PARTS:
        words = shlex.split(f"{part} {SHORT}" if short else part)
        found = run_words(words)
        if run is None:
            run = {**found, "words": [found["words"]]}
            continue
        run["benchmarks"] += found["benchmarks"]
        run["failed"] += found["failed"]
        run["words"].append(found["words"])
    assert run is not None
    info = run["machine_info"]
    path = storage.RESULTS / machine.slug(info) / f"{info['fastlstm']['version']}.json"
    storage.write(run, path)
    for failed in run["failed"]:
        print(f"failed, not timed: {failed['name']}: {failed['error']}")
    return path


def main() -> None:
    """Measure if asked to, and write pages and pictures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--measure", action="store_true", help="measure the results first")
    options.add_argument("--short", action="store_true", help="with fewer rounds and shapes")
    arguments = options.parse_args()
    path = measure(arguments.short) if arguments.measure else storage.results()
    print(path.relative_to(ROOT))
    run = storage.load(str(path))
    for page in pages():
        before = page.read_text()
        if (after := replaced(before, run)) != before:
            page.write_text(after)
            print(page.relative_to(ROOT))
    for name, kind in PICTURES.items():
        plots.write(kind, [run], ROOT / "docs" / "figures" / name)


def _ratio(peer: dict[str, Any]) -> str:
    sign = "~ " if verdict(peer["ratio"]) == "~" else ""
    return f"{sign}{peer['ratio']['median']:.2f}"


def _markdown(heads: list[str], rows: list[list[str]], first: str = "---") -> str:
    lines = [heads, [first, *["---:"] * (len(heads) - 1)], *rows]
    texts = ["| " + " | ".join(cells) + " |" for cells in lines]
    texts[1] = texts[1].replace(" ", "")
    return "\n".join(texts)


if __name__ == "__main__":
    main()
