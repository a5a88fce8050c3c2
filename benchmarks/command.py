"""What ``fastlstm bench`` does; ``fastlstm_bench`` has its words and its help."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytest_benchmark  # noqa: F401  (the engine; without it pytest would find no fixture)

import fastlstm_bench

from . import compare, peers, processes, storage, suites, tables

HERE = Path(__file__).parent


class _Session:
    """A plugin of pytest that writes progress, and remembers what failed."""

    def __init__(self) -> None:
        self.failed: list[dict[str, str]] = []
        self._count = self._done = 0

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._count = len(session.items)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._done += 1
        name = nodeid.partition("[")[2].rstrip("]")
        self._write(f"[{self._done}/{self._count}] {name}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            name = report.nodeid.partition("[")[2].rstrip("]")
            lines = str(report.longrepr).strip().splitlines()
            found = [line[1:].strip() for line in lines if line.startswith("E ")]
            self.failed.append({"name": name, "error": (found or lines or ["?"])[0]})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.failed.append({"name": "collection", "error": str(report.longrepr)})

    def pytest_sessionfinish(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif text:
            print(text, file=sys.stderr, flush=True)


def measure(words: list[str]) -> storage.Run:
    """Measure what the words of ``fastlstm bench run`` ask for, and return the run.

    Raises:
        SystemExit: every benchmark failed, or there was none; or a process was killed.
    """
    options = fastlstm_bench.parse(["run", *words])
    number = processes.count(options)
    if number == 1:
        return measure_here(words)
    run = processes.measure(measure_here, [*words, *processes.share(options, number)], number)
    return {**run, "words": words}


def measure_here(words: list[str]) -> storage.Run:
    """Run pytest in this process with the words of ``fastlstm bench run``, and return the run.

    Raises:
        SystemExit: every benchmark failed, or there was none.
    """
    session = _Session()
    # Plug-ins and options of the environment, such as coverage, would change what is measured.
    alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": ""}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, alone):
        path = Path(folder) / "run.json"
        status = pytest.main(
            [
                str(HERE / "test_suites.py"),
                *("-c", str(HERE / "pytest.ini"), "-s", "-p", "no:cacheprovider"),
                *("-p", "no:terminal", "-p", "pytest_benchmark.plugin"),
                f"--benchmark-storage={folder}",
                *(f"--bench={shlex.join(words)}", f"--benchmark-json={path}", "--benchmark-quiet"),
            ],
            plugins=[session],
        )
        run = storage.load(str(path)) if path.exists() else None
    if run is None:
        reasons = [f"{failed['name']}: {failed['error']}" for failed in session.failed]
        raise SystemExit("\n".join(["fastlstm bench: nothing was timed", *reasons]))
    run["failed"] = session.failed
    run["words"] = words
    if status == pytest.ExitCode.INTERRUPTED:
        print("interrupted: the run has what was measured before", file=sys.stderr)
    return run


def _run(arguments: argparse.Namespace, words: list[str]) -> None:
    if arguments.fail_if and not arguments.against:
        raise ValueError("--fail-if: expected --against RUN with it")
    suites.cases(arguments)  # the words of --shape and --grid may be wrong
    for name in arguments.peer or ():
        if reason := peers.absent(name, arguments):
            print(f"fastlstm bench run: {name} does not take part: {reason}", file=sys.stderr)
    against = storage.load(arguments.against) if arguments.against else None
    words = words[1:] if words[:1] == ["run"] else words
    run = measure(words)
    commit = run.get("commit_info", {}).get("id", "")[:7]
    name = arguments.save or commit or run["machine_info"]["fastlstm"]["version"]
    path = Path(arguments.json) if arguments.json else storage.next_path(name)
    storage.write(run, path)
    tables.show_run(run, arguments.format)
    if arguments.format != "json":
        print(f"saved {os.path.relpath(path)}")
    if against:
        compare.show(against, run, arguments)
    if run["failed"]:
        raise SystemExit(1)


def _list() -> None:
    rows = []
    for path in storage.saved():
        try:
            run = storage.load(str(path))
        except ValueError as error:
            rows.append(tables.Row([path.stem, f"damaged: {error}", "", "", "", ""], "failed"))
            continue
        ours: dict[str, Any] = run["machine_info"]["fastlstm"]
        cpu = run["machine_info"]["cpu"].get("brand_raw", "")
        commit = run.get("commit_info", {}).get("id", "")[:7]
        cells = [path.stem, run["datetime"][:16].replace("T", " "), ours["version"], commit]
        rows.append(tables.Row([*cells, f"{cpu}, {ours['isa']}", ours["torch"]]))
    if not rows:
        print(f"no run is saved in {storage.FOLDER}/")
        return
    tables.show((" run", " date", " version", " commit", " CPU", " torch"), rows)


def run(arguments: argparse.Namespace, words: list[str]) -> None:
    """Do what the words of ``fastlstm bench`` ask for.

    Raises:
        SystemExit: a word is wrong, in one sentence; or a benchmark failed, or ``--fail-if`` found
            a change, with status 1.
    """
    try:
        if arguments.command == "run":
            _run(arguments, words)
        elif arguments.command == "compare":
            compare.show(storage.load(arguments.old), storage.load(arguments.new), arguments)
        elif arguments.command == "plot":
            from . import plots

            plots.draw(arguments)
        elif arguments.command == "list":
            _list()
        else:
            tables.show_run(storage.load(arguments.run), arguments.format)
    except (ValueError, OSError) as error:
        raise SystemExit(f"fastlstm bench: {error}") from None
