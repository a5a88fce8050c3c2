"""What the benchmark scripts share: options, the line about the machine, and JSON files."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Mapping, Sequence

import torch

import fastlstm


def parser(doc: str, rounds: int = 7) -> argparse.ArgumentParser:
    """Return a parser with the options of every script; the first line of ``doc`` describes it."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--rounds", type=int, default=rounds, help="samples of each contender")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--json", help="file to write the rows to")
    return options


def begin(arguments: argparse.Namespace, **more: object) -> dict[str, object]:
    """Set threads and seed; print and return a description of the machine, with ``more`` of it."""
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
    """Write all rows so far to a JSON file, if there is a path."""
    if path:
        with open(path, "w") as file:
            json.dump({**machine, "rows": rows}, file, indent=1)
