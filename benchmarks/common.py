"""What the scripts share: options, the line about the machine, JSON, and nn.LSTM's threads."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import fastlstm

ONE_THREAD = ", 1 thread"


def parser(doc: str, rounds: int = 7) -> argparse.ArgumentParser:
    """The options of every script, under the first line of its docstring."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--rounds", type=int, default=rounds, help="samples of each contender")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--json", help="file to write the rows to")
    return options


def begin(arguments: argparse.Namespace, **more: object) -> dict[str, object]:
    """Set threads and seed; print and return what was measured on, with ``more`` of it."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    machine = {
        "machine": platform.machine(),
        "isa": fastlstm.backends.cpu.isas()[0],
        "threads": arguments.threads,
        "torch": torch.__version__,
        **more,
    }
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    return machine


def write(path: str | None, machine: Mapping[str, object], rows: Sequence[object]) -> None:
    """All rows so far as JSON, if there is a path."""
    if path:
        with open(path, "w") as file:
            json.dump({**machine, "rows": rows}, file, indent=1)


def also_on_one_thread(
    calls: Mapping[str, Callable[[], Any]], threads: int
) -> dict[str, Callable[[], Any]]:
    """The contenders, and those of torch once more to be called on one thread."""
    again = {f"{n}{ONE_THREAD}": call for n, call in calls.items() if n.startswith("nn.")}
    return {**calls, **(again if threads > 1 else {})}


def thread_setter(threads: int) -> Callable[[str], None]:
    """For ``paired``: the number of threads that a contender's name asks for."""
    return lambda name: torch.set_num_threads(1 if ONE_THREAD in name else threads)


def better_peer(seconds: Mapping[str, list[float]]) -> str:
    """Which of torch's contenders is the fastest: its better number of threads."""
    peers = [name for name in seconds if name.startswith("nn.")]
    return min(peers, key=lambda name: statistics.median(seconds[name]))
