"""Measure how much slower fastlstm and nn.LSTM are while every core is busy with other work.

    python -m benchmarks.busy [--shape T,B,I,H,L[,bi] ...] [--mode inference training]
        [--processes N] [--rounds 7] [--threads N] [--json FILE]

The other work is one process per core that runs a Python loop. It is paused while the calls of the
columns without "busy" are timed. A kernel whose threads wait for each other at every step is slowed
down most when one of them loses its core. nn.LSTM runs on all threads and on one; the table has its
better time, with and without the other work. All in float32.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks import common
from benchmarks.lstm import Pair, Shape
from benchmarks.timing import fastest_of_torch, median_ms, paired_with_torch, ratio

SHAPES = ["100,32,256,256,1", "1000,8,128,128,1", "128,1,256,256,1", "1000,1,512,512,1"]
BUSY = ", busy"


def burn(busy: Any, started: Any) -> None:
    """Compute while the event ``busy`` is set; never return."""
    started.wait()
    while True:
        busy.wait()
        while busy.is_set():
            for _ in range(10_000):
                pass


@contextmanager
def other_work(processes: int) -> Iterator[Any]:
    """Start processes that compute while the yielded event is set, and end them on exit."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    busy, started = context.Event(), context.Barrier(processes + 1)
    others = [
        context.Process(target=burn, args=(busy, started), daemon=True) for _ in range(processes)
    ]
    try:
        for other in others:
            other.start()
        started.wait(120)
        yield busy
    finally:
        for other in others:
            if other.pid is not None:
                other.kill()
                other.join()


def measure(shape: Shape, train: bool, rounds: int, threads: int, busy: Any) -> dict[str, Any]:
    """Measure one row of the table."""
    pair = Pair(shape, train)
    quiet = {"fastlstm": lambda: pair.call(pair.ours), "nn.LSTM": lambda: pair.call(pair.theirs)}
    calls = quiet | {f"{name}{BUSY}": call for name, call in quiet.items()}

    def before(name: str) -> None:
        busy.set() if BUSY in name else busy.clear()

    seconds, _ = paired_with_torch(calls, rounds, threads, before)
    busy.clear()
    peers = {
        suffix: fastest_of_torch({n: s for n, s in seconds.items() if (BUSY in n) == bool(suffix)})
        for suffix in ("", BUSY)
    }
    return {
        "shape": shape._asdict(),
        "mode": "training" if train else "inference",
        "ms": {name: median_ms(s) for name, s in seconds.items()},
        "nn.LSTM ms": {name: median_ms(seconds[name]) for name in peers.values()},
        "slowdown": {
            "fastlstm": ratio(seconds, f"fastlstm{BUSY}", "fastlstm"),
            "nn.LSTM": ratio(seconds, peers[BUSY], peers[""]),
        },
        "nn.LSTM / fastlstm": ratio(seconds, peers[""], "fastlstm"),
        "nn.LSTM / fastlstm, busy": ratio(seconds, peers[BUSY], f"fastlstm{BUSY}"),
    }


def line(shape: str, row: dict[str, Any]) -> str:
    """Format a row of the table."""
    text = f"{shape:<20}{row['mode']:<10}"
    theirs = list(row["nn.LSTM ms"].values())
    ours = [row["ms"]["fastlstm"], row["ms"][f"fastlstm{BUSY}"]]
    for name, (quiet, busy) in (("fastlstm", ours), ("nn.LSTM", theirs)):
        text += f"{quiet:>11.3f}{busy:>10.3f}{row['slowdown'][name]:>9.2f}"
    return text + f"{row['nn.LSTM / fastlstm']:>8.2f}{row['nn.LSTM / fastlstm, busy']:>7.2f}"


def main() -> None:
    """Parse arguments, measure, print a table, and write JSON if asked to."""
    parser = common.parser(__doc__)
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="T,B,I,H,L or T,B,I,H,L,bi")
    parser.add_argument("--mode", nargs="+", default=["inference", "training"])
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="one per core")
    arguments = parser.parse_args()
    machine = common.begin(arguments, processes=arguments.processes)
    print(f"{'':<30}{'fastlstm ms':>11}{'busy':>10}{'slower':>9}", end="")
    print(f"{'nn.LSTM ms':>11}{'busy':>10}{'slower':>9}{'ratio':>8}{'busy':>7}")
    rows = []
    with other_work(arguments.processes) as busy:
        for shape in arguments.shape:
            for mode in arguments.mode:
                sizes, train = Shape.parse(shape), mode == "training"
                rows.append(measure(sizes, train, arguments.rounds, arguments.threads, busy))
                print(line(shape, rows[-1]), flush=True)
                common.write(arguments.json, machine, rows)


if __name__ == "__main__":
    main()
