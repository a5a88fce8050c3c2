"""Runs whose rounds are divided among several processes, one after the other.

The same code varies from process to process, because its memory lies on other pages. The spread of
a benchmark's medians over the processes measures by how much.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
import signal
import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from pytest_benchmark.stats import Stats

from .contests import quartiles
from .storage import Run
from .tables import Bench

COUNT = 5  # processes of a run by default
_ROUNDS = 3  # of each process at least, if so many are asked for


def count(options: argparse.Namespace) -> int:
    """Return the number of processes: by default ``COUNT``, 1 for suites that take minutes."""
    is_short = set(options.suite or ()) <= {"quick"} and not options.grid
    return options.processes or (COUNT if is_short else 1)


def share(options: argparse.Namespace, number: int) -> list[str]:
    """Return the words that give one of ``number`` processes its share of rounds and seconds."""
    rounds = max(min(_ROUNDS, options.rounds), -(-options.rounds // number))
    words = ["--processes", "1", "--rounds", str(rounds)]
    return [*words, "--max-seconds", str(options.max_seconds / number)]


def measure(run: Callable[[list[str]], Run], words: list[str], number: int) -> Run:
    """Call ``run`` with the words in ``number`` new processes, and return the joined run.

    After Ctrl-C the run has what was measured before.

    Raises:
        SystemExit: ``run`` raised it, or a process was killed.
    """
    runs: list[Run] = []
    for index in range(number):
        print(f"process {index + 1} of {number}", file=sys.stderr)
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawn, initializer=_end_with_parent) as pool:
            future = pool.submit(run, words)
            try:
                runs.append(future.result())
            except BrokenProcessPool:
                raise SystemExit("fastlstm bench: the process that measured was ended") from None
            except KeyboardInterrupt:  # the process got it too, and returns what it has measured
                if found := [future.result()] if future.exception() is None else []:
                    runs += found
                elif not runs:
                    raise
                break
    return joined(runs)


def _end_with_parent() -> None:
    """Have Linux end this process as soon as its parent has ended, however that was."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def joined(runs: Sequence[Run]) -> Run:
    """Join runs of the same benchmarks."""
    found: dict[str, list[Bench]] = {}
    for run in runs:
        for bench in run["benchmarks"]:
            found.setdefault(bench["name"], []).append(bench)
    failed = {failure["name"]: failure for run in runs for failure in run["failed"]}
    benches = [_joined(benches) for benches in found.values()]
    return {**runs[0], "benchmarks": benches, "failed": list(failed.values())}


def _joined(benches: Sequence[Bench]) -> Bench:
    """Join one benchmark's rounds; ``processes`` says how many each process has."""
    infos = [bench["extra_info"] for bench in benches]
    stats = Stats()
    for bench in benches:
        for seconds in bench["stats"]["data"]:
            stats.update(seconds)
    peers = {}
    for name, peer in infos[0]["peers"].items():
        if all(name in info["peers"] for info in infos):
            data = [seconds for info in infos for seconds in info["peers"][name]["data"]]
            ratio = quartiles([a / b for a, b in zip(data, stats.data, strict=True)])
            peers[name] = {**peer, "data": data, "median": statistics.median(data), "ratio": ratio}
    first = next(iter(peers), None)
    busy = [info["other_cores"] for info in infos if info.get("other_cores") is not None]
    info = {
        **infos[0],
        "peers": peers,
        "best_peer": first,
        "ratio": peers[first]["ratio"] if first else None,
        "other_cores": max(busy, default=None),
        "processes": [
            {"rounds": len(bench["stats"]["data"]), "other_cores": info.get("other_cores")}
            for bench, info in zip(benches, infos, strict=True)
        ],
    }
    all_stats = {**benches[0]["stats"], **stats.as_dict(), "data": stats.data}
    return {**benches[0], "stats": all_stats, "extra_info": info}
