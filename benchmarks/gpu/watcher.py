"""Processes that may hang, crash or lose the GPU, and the one that watches them.

This module imports neither torch nor fastlstm, so that nothing that happens on the GPU can stop
the process that uses it. Each process it starts leads a session of its own and is ended with the
whole group: pytest and compute-sanitizer leave children behind, which hold the GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_TAIL = 1500  # characters of the output of a command that are recorded with its result
_KEPT = 100_000  # characters that are kept in the file of all outputs
_START_S = 90.0  # for importing torch
_running: set[subprocess.Popen[Any]] = set()


def start(command: list[str], output: Path, **options: Any) -> subprocess.Popen[Any]:
    """Start a process in a session of its own; its errors are appended to a file."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # cuBLAS promises the same bits on several streams only with a setting: 32 MB, as torch takes on
    # an H100 without it.
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | os.environ
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": path}
    with output.open("ab") as file:
        options = {"stdout": file, "stdin": subprocess.DEVNULL} | options
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stderr=file, **options
        )
    _running.add(process)
    return process


def stop(process: subprocess.Popen[Any]) -> int | None:
    """End a process with all that it has started, and return its exit status, if it has one.

    A process that the driver does not let go is left behind.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    _running.discard(process)
    return process.returncode


def stop_all_at_exit() -> None:
    """End every process with this one, also when this one is asked to terminate."""
    atexit.register(lambda: [stop(process) for process in list(_running)])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


class Log:
    """Rows of a file, one line of JSON each, that are on disk as soon as they are known.

    Args:
        path: a file to continue, or a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.rows, self._begin = path, self.read(path), time.monotonic()
        text = path.read_text() if path.exists() else ""
        self._file = path.open("a")
        if text and not text.endswith("\n"):  # the process was killed while it wrote
            self._file.write("\n")

    @staticmethod
    def read(path: Path) -> list[dict[str, Any]]:
        """The rows of a file; none if there is no file."""
        rows = []
        for line in path.read_text().splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # the last line may be half a line
                rows.append(json.loads(line))
        return rows

    def add(self, task: str, **row: Any) -> None:
        """Add a row, and print its beginning."""
        row = {"t": round(time.monotonic() - self._begin, 1), "task": task, **row}
        self.rows.append(row)
        line = json.dumps(row, default=str)
        self._file.write(line + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        print(line[:200], flush=True)


class Outputs:
    """The outputs of all processes, in one file in the end.

    Args:
        path: that file; what it has already is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._folder = path, Path(tempfile.mkdtemp(prefix="outputs"))

    def new(self, name: str) -> Path:
        """A file for the output of one process."""
        return self._folder / name.replace(" ", "_").replace("/", "_")

    def keep(self, name: str, output: Path) -> str:
        """Append the end of an output to the file, and return the last lines."""
        text = output.read_text(errors="replace") if output.exists() else ""
        with self._path.open("a") as file:
            file.write(f"==== {name}\n{text[-_KEPT:]}\n")
        return text[-_TAIL:]


class Command:
    """A program that runs beside others until :meth:`finish`.

    Args:
        outputs: where its output is kept.
        name: its name there.
        command: program and arguments.
        box: the seconds after which it is stopped.
    """

    def __init__(self, outputs: Outputs, name: str, command: list[str], box: float) -> None:
        self._outputs, self.name = outputs, name
        self._begin, self._end = time.monotonic(), time.monotonic() + box
        self._output = outputs.new(name)
        self._refusal, self._process = "", None
        try:
            self._process = start(command, self._output)
        except OSError as error:
            self._refusal = f"not run: {error}"

    @property
    def is_running(self) -> bool:
        """Whether it has not ended by itself."""
        return self._process is not None and self._process.poll() is None

    def finish(self) -> dict[str, Any]:
        """Wait until it ends or its time is over; the row that says how it ended."""
        if self._process is None:
            return {"ok": False, "ended": self._refusal}
        ended = None
        try:
            code = self._process.wait(max(0.1, self._end - time.monotonic()))
            ended = f"exit {code}"
        except subprocess.TimeoutExpired:
            code = -1
        stop(self._process)  # its children too, where it ended by itself
        took = round(time.monotonic() - self._begin, 1)
        tail = self._outputs.keep(self.name, self._output)
        ended = ended or f"stopped after {took:.0f} s"
        return {"ok": code == 0, "ended": ended, "s": took, "tail": tail}


class Worker:
    """A process that does tasks, and is replaced when one of them has ended it.

    Args:
        output: the file to which its standard error is appended.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._process: subprocess.Popen[Any] | None = None
        self._answers: queue.Queue[str | None] = queue.Queue()
        self.failed_starts = 0
        """how many processes in turn did not even import torch"""

    def ask(self, function: str, arguments: dict[str, Any], box: float) -> dict[str, Any]:
        """Have a function called; its answer within ``box`` seconds, or how it came to none.

        Args:
            function: ``module:function``; see :mod:`benchmarks.gpu.worker`.
            arguments: of that function, as far as JSON can write them.
            box: seconds; those in which torch is imported do not count.
        """
        if self._process is None or self._process.poll() is not None:
            refusal = self._start()
            if refusal is not None:
                return {"ok": False, "ended": f"no worker: {refusal}"}
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([function, arguments]) + "\n")
            self._process.stdin.flush()
        except OSError:
            return {"ok": False, "ended": f"the worker ended before: {self._end()}"}
        answer = self._answer(box)
        if answer.get("lost"):
            self._end()
        return answer

    def close(self) -> None:
        """End the process; the next task starts another."""
        self._end()

    def _start(self) -> str | None:
        """Start a process; why there is none, or None."""
        self.close()
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = start([sys.executable, "-m", "benchmarks.gpu.worker"], self._output, **options)
        self._process, answers = process, queue.Queue()
        self._answers = answers

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                answers.put(line)
            answers.put(None)

        threading.Thread(target=read, daemon=True).start()
        ready = self._answer(_START_S)
        self.failed_starts = 0 if "ready" in ready else self.failed_starts + 1
        return None if "ready" in ready else str(ready["ended"])

    def _answer(self, box: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=max(0.1, box))
        except queue.Empty:
            self._end()
            return {"ok": False, "ended": f"no answer after {box:.0f} s", "lost": True}
        if line is None:
            return {"ok": False, "ended": f"the worker ended: {self._end()}", "lost": True}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> str:
        """End the process; its exit status and the last it wrote."""
        if self._process is None:
            return "it never began"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)  # one that is about to end has a status of its own
        status = stop(self._process)
        self._process = None
        said = self._output.read_text(errors="replace") if self._output.exists() else ""
        last = said.strip().splitlines()[-1:] or [""]
        return f"status {status} {last[0][:200]}".strip()
