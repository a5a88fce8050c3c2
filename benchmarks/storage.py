"""Runs in files: pytest-benchmark's JSON, a line for each benchmark."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastlstm_bench import FOLDER

from .contests import SCHEMA

RESULTS = Path(__file__).with_name("results")
Run = dict[str, Any]  # what a file has
_DIGITS = 5  # of a stored number


def load(word: str) -> Run:
    """Read a run.

    Args:
        word: a file; the name or the number of a saved run; or "latest", the newest saved run.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: the file is damaged, or is no run of ``fastlstm bench``.
    """
    path = Path(word)
    if not path.is_file():
        path = _saved_as(word)
    try:
        run = json.loads(path.read_text())
        schemas = {bench["extra_info"]["schema"] for bench in run["benchmarks"]}
        complete = all(bench["stats"]["data"] and bench["params"] for bench in run["benchmarks"])
        machine = run["machine_info"]["fastlstm"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path}: expected a run of `fastlstm bench`; the file is damaged or another one"
        ) from None
    if schemas - {SCHEMA} or not complete or "version" not in machine:
        found = ", ".join(sorted(map(str, schemas)))
        raise ValueError(
            f"{path}: expected results of the schema {SCHEMA!r}, got {found!r}: another version of"
            " fastlstm wrote the file"
        )
    return {"failed": [], **run}


def _saved_as(word: str) -> Path:
    """Return the file of a saved run."""
    files = saved()
    if word == "latest" and files:
        return files[-1]
    for path in files:
        number, _, name = path.stem.partition("_")
        if word in (path.stem, name) or (word.isdigit() and int(word) == int(number)):
            return path
    known = (
        f"one of {', '.join(path.stem for path in files)}" if files else "of which there is none"
    )
    raise FileNotFoundError(
        f"expected a run, a file or the name of one in {FOLDER}/, {known}; got {word!r}"
    )


def saved() -> list[Path]:
    """Return the files of the saved runs, the oldest first."""
    return sorted(p for p in Path(FOLDER).glob("[0-9]*_*.json") if p.stem.split("_")[0].isdigit())


def next_path(name: str) -> Path:
    """Return the file of a new saved run."""
    last = saved()
    number = int(last[-1].stem.split("_")[0]) + 1 if last else 1
    return Path(FOLDER) / f"{number:04}_{name}.json"


def write(run: Run, path: Path) -> None:
    """Write a run, a line for each benchmark, numbers with ``_DIGITS`` digits."""
    head = {name: value for name, value in run.items() if name != "benchmarks"}
    lines = [json.dumps(_short(bench), separators=(",", ":")) for bench in run["benchmarks"]]
    text = json.dumps(head, indent=1)[:-2]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text + ',\n "benchmarks": [\n' + ",\n".join(lines) + "\n ]\n}\n")
    part.replace(path)


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {name: _short(part) for name, part in value.items() if name != "options"}
    return [_short(part) for part in value] if isinstance(value, list) else value


def results() -> Path:
    """Return the newest checked-in file of results.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted(
        RESULTS.glob("*/*.json"), key=lambda path: json.loads(path.read_text())["datetime"]
    )
    if not found:
        raise FileNotFoundError(f"expected a file of results in {RESULTS}")
    return found[-1]


def by_name(run: Run) -> dict[str, dict[str, Any]]:
    """Return the benchmarks of a run by name."""
    return {bench["name"]: bench for bench in run["benchmarks"]}


def of(run: Run, suite: str) -> Iterator[dict[str, Any]]:
    """Yield the benchmarks of a suite."""
    return (bench for bench in run["benchmarks"] if bench["name"].startswith(f"{suite}["))
