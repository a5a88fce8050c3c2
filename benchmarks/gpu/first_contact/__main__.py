"""The watcher: see the package's docstring. It imports neither torch nor fastlstm."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import first_contact, watcher
from benchmarks.gpu.first_contact import report, tasks

_LEAST = 5.0  # seconds for which nothing is begun
_TABLE_S = 10.0  # kept for the table of what was measured


class Contact:
    """One run: what is known, what is left, and who works.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device, self.small = arguments.device, arguments.small
        self._out, self._end = arguments.out, time.monotonic() + arguments.seconds
        arguments.out.mkdir(parents=True, exist_ok=True)
        self.log = watcher.Log(arguments.out / "first_contact.jsonl")
        self._again = arguments.again
        self._known = {row["task"] for row in self.log.rows if row.get("ok")}
        self.outputs = watcher.Outputs(arguments.out / "logs.txt")
        self._errors = self.outputs.new("worker")
        self.worker = watcher.Worker(self._errors)

    @property
    def left(self) -> float:
        """Seconds until --seconds are over."""
        return self._end - time.monotonic()

    def is_known(self, name: str) -> bool:
        """Whether an earlier run found this task in order, and it is not to be done again."""
        return name in self._known and not any(word in name for word in self._again)

    def ask(self, task: tasks.Task) -> None:
        """Have the worker do a task, if that is not known and there is time."""
        if self.is_known(task.name):
            return
        if self.left < _LEAST:
            self.log.add(task.name, ok=False, ended="not begun: no time left")
            return
        if self.worker.failed_starts > 1:
            self.log.add(task.name, ok=False, ended="not begun: no worker starts")
            return
        begin = time.monotonic()
        answer = self.worker.ask(task.function, task.arguments, min(task.box, self.left))
        self.log.add(task.name, **{"s": round(time.monotonic() - begin, 2), **answer})

    def begin(self, name: str, command: list[str], box: float) -> watcher.Command | None:
        """Start a command beside the others, unless it is known or there is no time."""
        if self.is_known(name):
            return None
        if self.left < _LEAST:
            self.log.add(name, ok=False, ended="not begun: no time left")
            return None
        return watcher.Command(self.outputs, name, command, min(box, self.left))

    def finish(self, commands: Iterable[watcher.Command | None]) -> bool:
        """Wait for commands, and record how they ended. Whether all that were begun are right."""
        right = True
        for command in filter(None, commands):
            row = command.finish()
            self.log.add(command.name, **row)
            right = right and row["ok"]
        return right

    def end(self) -> None:
        """Write the tables of what is known by now."""
        self._end += _TABLE_S
        if any(row["task"].startswith("row") and row.get("ok") for row in self.log.rows):
            how = {"device": self.device, "path": str(self.log.path)}
            answer = self.worker.ask(f"{tasks.TIMES}:table", how, max(self.left, _TABLE_S))
            self.log.add(f"table {time.strftime('%H:%M:%S')}", **answer)
        self.worker.close()
        self.outputs.keep("worker", self._errors)
        self.log.add(f"end {time.strftime('%H:%M:%S')}", ok=True, left=round(self.left, 1))
        found = report.tables(self.log.rows)
        (self._out / "report.txt").write_text(report.plain(found))
        report.show(found)


def _build(contact: Contact) -> watcher.Command | None:
    """Start building the package for this GPU alone; on a CPU without kernels for GPUs."""
    architectures = "90-real" if contact.device == "cuda" else "OFF"
    os.environ.setdefault("FASTLSTM_CUDA_ARCHITECTURES", architectures)
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
    name = f"build {time.strftime('%H:%M:%S')}"  # a build is never known to be in order
    return contact.begin(name, [*pip, "--verbose"], 240)


def _barrier(contact: Contact) -> None:
    """Measure what the blocks of a step wait for."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        contact.log.add("barrier", ok=False, ended="not run: no nvcc")
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(first_contact.__file__).parents[1] / "barrier.cu"
        command = [nvcc, "-std=c++17", "-O3", "-I", str(watcher.ROOT / "csrc"), str(source)]
        arch = "-arch=native" if contact.device == "cuda" else "-arch=sm_90"
        built = contact.begin("compile barrier", [*command, arch, "-o", f"{folder}/barrier"], 60)
        if contact.finish([built]) and built and contact.device == "cuda":
            contact.finish([contact.begin("barrier", [f"{folder}/barrier"], 30)])


def _tests(contact: Contact) -> list[watcher.Command | None]:
    """Start the tests that need a GPU, and compute-sanitizer's tools on small calls."""
    # A line for each test as it ends: the last lines are lost if all of them are stopped. Twice,
    # as pyproject.toml has a -q.
    pytest = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", "-vv", "--tb=line"]
    pytest += ["-p", "no:cacheprovider", "--continue-on-collection-errors"]
    pytest += ["-n", "4"] if find_spec("xdist") else []  # Triton compiles 3 to 5 s a kernel
    if find_spec("pytest_timeout"):  # a thread's, as a call of the driver heeds no signal
        pytest += ["--timeout=60", "--timeout-method=thread"]
    pytest += [f"tests/{name}" for name in tasks.TESTS]
    box = min(120.0, contact.left / 3)
    started = [contact.begin("pytest", pytest, box)]
    calls = [sys.executable, "-m", "benchmarks.gpu.first_contact.checks"]
    calls += ["--device", contact.device]
    sanitizer = shutil.which("compute-sanitizer") or "compute-sanitizer"
    for tool in ("memcheck", "racecheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        command += ["--kernel-regex", "kns=ward_kernel"]  # ours alone, not torch's
        started.append(contact.begin(f"compute-sanitizer {tool}", [*command, *calls], box))
    return started


def run(contact: Contact, install: bool, plant: bool) -> None:
    """Ask everything, the most valuable first."""
    build = _build(contact) if install else None
    if plant:
        for task in tasks.planted():
            contact.ask(task)
            contact.ask(tasks.Task(f"{tasks.PLANTED}:process", {"after": task.name}, 10))
    _barrier(contact)
    for task in tasks.baselines(contact.device, contact.small):
        if build is None or not build.is_running:
            break  # later rows have nn.LSTM beside ours
        contact.ask(task)
    if not contact.finish([build]):
        contact.log.add("stop", ok=False, ended="no build, nothing to test")
        return
    if build is not None:
        contact.worker.close()  # the next one finds what was installed
    contact.ask(tasks.Task(f"{tasks.TIMES}:versions", {"device": contact.device}, 60))
    for task in tasks.checks(contact.device, contact.small):
        contact.ask(task)
    contact.finish(_tests(contact))  # nothing is timed in the meantime
    for task in tasks.times(contact.device, contact.small):
        contact.ask(task)


def main() -> None:
    options = argparse.ArgumentParser(description=(first_contact.__doc__ or "").splitlines()[0])
    options.add_argument("--out", type=Path, required=True, help="folder of the results")
    options.add_argument("--seconds", type=float, default=530, help="start nothing after them")
    options.add_argument("--install", action="store_true", help="build the package first")
    options.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options.add_argument("--small", action="store_true", help="tiny sizes, to test the script")
    options.add_argument("--again", nargs="*", default=[], help="words of tasks to repeat")
    options.add_argument("--plant", action="store_true", help="begin with tasks that go wrong")
    options.add_argument("--report", action="store_true", help="print the tables, ask nothing")
    arguments = options.parse_args()
    if arguments.report:
        report.show(report.tables(watcher.Log.read(arguments.out / "first_contact.jsonl")))
        return
    watcher.stop_all_at_exit()
    contact = Contact(arguments)
    try:
        run(contact, arguments.install, arguments.plant)
    finally:
        contact.end()


if __name__ == "__main__":
    main()
