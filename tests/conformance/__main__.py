"""Runs torch's own tests with our classes: what passes with torch's must pass with them.

    python tests/conformance FOLDER [FILE ...] [-k EXPRESSION]

FOLDER is ``test`` of a torch source tree, at best of the installed version: tests that fail with
torch's classes too do not count. Each file runs in processes of its own, first with torch's
classes, which also shows the tests that make an LSTM, then those again with ours. A file of which
nothing can be compared is a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

from known import KNOWN
from selection import SELECTION

HERE = Path(__file__).resolve().parent
LIMIT = 1800  # seconds for one file with one side's classes


def run(folder: Path, file: str, lstm: str, record: Path, *options: str) -> dict[str, dict]:
    """Run one file with one side's classes; what the plugin recorded, by test."""
    record.unlink(missing_ok=True)
    paths = [HERE.parent.parent, HERE, folder, folder.parent, os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-p", "plugin", "--noconftest", "-q", "--tb=line"]
    command += ["-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
    command += ["--lstm", lstm, "--record", str(record), *options, Path(file).name]
    try:
        process = subprocess.run(
            command,
            cwd=(folder / file).parent,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
        )
        errors = [line for line in process.stdout.splitlines() if line.startswith("E ")]
        error = (errors or [f"pytest ended with {process.returncode}"])[-1]
        nothing_selected = process.returncode == 5
    except subprocess.TimeoutExpired:
        error, nothing_selected = f"not done after {LIMIT} s", False
    entries: dict[str, dict] = {}
    for line in record.read_text().splitlines() if record.exists() else ():
        entry = json.loads(line)
        entries[entry["test"]] = entry
    if not entries and not nothing_selected:
        print(f"{file}: not run with {lstm}'s classes: {error}", flush=True)
    return entries


def error_of(entry: dict | None) -> str:
    """Why a test did not pass with our classes, in one line; empty where it passed."""
    if entry is None:
        return "not run: the process had ended before"
    if entry["event"] == "start":
        return "took the process down"
    return "" if entry["outcome"] == "passed" else f"{entry['outcome']}: {entry['error']}"


def reason_of(test: str) -> str | None:
    return next((reason for pattern, reason in KNOWN.items() if fnmatch(test, pattern)), None)


def compare(folder: Path, file: str, expression: str, scratch: Path) -> dict[str, str] | None:
    """Print one row of the table; the tests that pass with torch's classes only, with the error.

    None: no test made an LSTM with torch's classes, so nothing was compared.
    """
    record, only = scratch / "record", scratch / "only"
    torchs = run(folder, file, "torch", record, "-k", expression)
    makers = [test for test, entry in torchs.items() if entry.get("makes_lstm")]
    passed = [test for test in makers if torchs[test]["outcome"] == "passed"]
    only.write_text("\n".join(passed))
    ours = run(folder, file, "fastlstm", record, "--only", str(only)) if passed else {}
    errors = {test: error for test in passed if (error := error_of(ours.get(test)))}
    known = sum(reason_of(test) is not None for test in errors)
    # Rows are printed as they come, with errors below them: the whole run takes a while.
    row = (len(torchs), len(makers), len(passed), len(passed) - len(errors), known)
    print(f"{file:<50}" + "".join(f"{number:>9}" for number in row), flush=True)
    for test, error in errors.items():
        print(f"  {test}\n      {error}\n      {reason_of(test) or 'NOT KNOWN'}", flush=True)
    return errors if makers else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder test of a torch source tree")
    parser.add_argument("files", nargs="*", help="of that folder; default: those of selection.py")
    parser.add_argument("-k", dest="expression", help="pytest's; default: those of selection.py")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    print(
        f"{'file':<50}"
        + "".join(f"{name:>9}" for name in ("run", "lstm", "torch", "ours", "known"))
    )
    errors: dict[str, str] = {}
    nothing_compared: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        for file in arguments.files or SELECTION:
            expression = arguments.expression or SELECTION.get(file, "")
            found = compare(folder, file, expression, Path(scratch))
            if found is None:
                nothing_compared.append(file)
            errors |= found or {}
    new = [test for test in errors if reason_of(test) is None]
    if not (arguments.files or arguments.expression):
        for pattern in KNOWN:
            if not any(fnmatch(test, pattern) for test in errors):
                print(f"known, but nothing fails so any more: {pattern}")
    print(f"\n{len(errors)} pass with torch's classes only, {len(new)} of them for unknown reasons")
    for file in nothing_compared:
        print(f"nothing was compared in {file}: no test of it made an LSTM")
    return 1 if new or nothing_compared else 0


if __name__ == "__main__":
    sys.exit(main())
