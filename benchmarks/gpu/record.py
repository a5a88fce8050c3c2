"""What the GPU scripts share: options, a description of the machine, and files of results."""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import watcher
from benchmarks.gpu.worker import do
from fastlstm.backends import gpu
from fastlstm.cli import info

ROUNDS = 5  # samples of each contender


class Here:
    """Does tasks in this process, as :class:`watcher.Worker` does in another one."""

    def ask(self, function: str, arguments: dict[str, Any], box: float) -> dict[str, Any]:
        """Call a function; the answer may take longer than ``box`` seconds."""
        return do(function, arguments)

    def close(self) -> None:
        """There is nothing to end."""


def worker(arguments: argparse.Namespace) -> Here | watcher.Worker:
    """Return what does the tasks of a script: on a GPU a process that a task may end."""
    if arguments.device == "cpu":
        return Here()
    watcher.stop_all_at_exit()
    return watcher.Worker(arguments.out / "errors.txt")


def parser(doc: str, minutes: float) -> argparse.ArgumentParser:
    """Return a parser with the options of every script; the first line of ``doc`` describes it."""
    options = argparse.ArgumentParser(description=doc.splitlines()[0])
    options.add_argument("--out", type=Path, required=True, help="folder of the results")
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options.add_argument("--minutes", type=float, default=minutes, help="start nothing after them")
    options.add_argument("--small", action="store_true", help="tiny sizes, to test the script")
    return options


def command_output(*command: str) -> str | None:
    """Return the output of a command; None if it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def kind(device: str) -> tuple[str, int]:
    """Return what the current GPU's measurements are entered under; see ``gpu.kind``."""
    return gpu.kind(torch.cuda.current_device()) if device == "cuda" else ("cpu", 0)


def machine(device: str) -> dict[str, Any]:
    """Describe what the numbers depend on: GPU, driver, torch, commit."""
    query = "--query-gpu=name,driver_version,clocks.max.sm,power.limit"
    name, multiprocessors = kind(device)
    return {
        "device": name,
        "multiprocessors": multiprocessors,
        "capability": torch.cuda.get_device_capability() if device == "cuda" else (0, 0),
        "nvidia_smi": command_output("nvidia-smi", query, "--format=csv,noheader"),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if device == "cuda" else None,
        "commit": command_output("git", "rev-parse", "HEAD"),
        "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        "info": info().splitlines(),
    }


class Results:
    """Rows of results that are written to a file whenever one is added.

    Args:
        arguments: arguments of a script, from :func:`parser`.
        name: name of the file without ``.json``.
        resume: whether to keep the rows that the file has already.
    """

    def __init__(self, arguments: argparse.Namespace, name: str, resume: bool = False) -> None:
        if arguments.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("--device cuda: torch finds no CUDA device; cpu tries the script only")
        arguments.out.mkdir(parents=True, exist_ok=True)
        self.path = arguments.out / f"{name}.json"
        self.machine = machine(arguments.device)
        kept = resume and self.path.exists()
        self.rows: list[dict[str, Any]] = read(self.path)["rows"] if kept else []
        self._end = time.monotonic() + 60 * arguments.minutes
        print(", ".join(f"{k} {v}" for k, v in self.machine.items() if k != "info"), flush=True)

    @property
    def seconds_left(self) -> float:
        """Seconds until --minutes are over."""
        return self._end - time.monotonic()

    def add(self, **row: Any) -> dict[str, Any]:
        """Add a row, print it, and write all rows to the file."""
        self.rows.append(row)
        print("  ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps({**self.machine, "rows": self.rows}, indent=1))
        part.replace(self.path)
        return row


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read(path: Path) -> dict[str, Any]:
    """Read a file of :class:`Results`."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
