"""What was right, wrong and measured, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Table(NamedTuple):
    """A title, the names of the columns, and rows of words."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def plain(self) -> str:
        """The table in columns of spaces."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        cells = [
            [word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in lines
        ]
        return "\n".join([self.title, *("  " + "  ".join(line).rstrip() for line in cells), ""])


def latest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each task, in the order in which tasks first came."""
    found: dict[str, Row] = {}
    for row in rows:
        if not (row["task"] in found and found[row["task"]].get("ok") and not row.get("ok")):
            found[row["task"]] = row
    return list(found.values())


def tables(rows: Sequence[Row]) -> list[Table]:
    """The tables of a file of results; those without rows are left out."""
    rows = latest(rows)
    timed = [row for row in rows if "row" in row]
    right = [row for row in rows if row.get("ok") and row not in timed and "left" not in row]
    wrong = [row for row in rows if not row.get("ok")]
    found = [
        Table("right", ("task", "error", "s"), [_right(row) for row in right]),
        Table("wrong", ("task", "s", "what"), [_wrong(row) for row in wrong]),
        _measured("nn.LSTM alone, us a step", [r for r in timed if r["task"][:8] == "baseline"]),
        _measured("us a step", [row for row in timed if row["task"][:3] == "row"]),
        Table("us of a call", ("task", "T: us", "before the first step", "a step"), _startup(rows)),
        Table("layouts", ("problem", "pass", "rank", "us a step", "model", ""), _plans(rows)),
    ]
    return [table for table in found if table.rows]


def _right(row: Row) -> tuple[str, ...]:
    return row["task"], _number(row.get("error")), _number(row.get("s"))


def _wrong(row: Row) -> tuple[str, ...]:
    said = row.get("ended")
    if said is None:
        numbers = {name: _number(row[name]) for name in ("error", "different") if name in row}
        said = ", ".join(f"{name} {number}" for name, number in numbers.items())
    elif row.get("tail"):
        said += f": {row['tail'].strip().splitlines()[-1]}" if row["tail"].strip() else ""
    return row["task"], _number(row.get("s")), " ".join(str(said).split())[:160]


def _measured(title: str, rows: Sequence[Row]) -> Table:
    """A line for each size: the time of each backend, and the ratio to nn.LSTM's."""
    sizes = ("precision", "H", "B", "L", "D", "train")
    ends = (" us", " refused")
    known = {name for row in rows for name in row["row"] if name.endswith(ends)}
    names = sorted({name.rpartition(" ")[0] for name in known})
    columns, lines = [*sizes], []
    for name in names:
        columns += [name] if name == "nn.LSTM" else [name, "nn.LSTM / it", "floor / it"]
    for row in (row["row"] for row in rows):
        line = [str(row[name]) for name in sizes]
        for name in names:
            line.append(_number(row.get(f"{name} us", row.get(f"{name} refused"))))
            if name != "nn.LSTM":
                line += [_number(row.get(f"{name} {what}")) for what in ("ratio", "floor")]
        lines.append(tuple(line))
    return Table(title, tuple(columns), lines)


def _startup(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    found = []
    for row in rows:
        if row.get("ok") and "us before the first" in row:
            each = ", ".join(f"{T}: {_number(us)}" for T, us in row["us"].items())
            ends = (_number(row[name]) for name in ("us before the first", "us of a step"))
            found.append((row["task"], each, *ends))
    return found


def _plans(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """The model's choice, the fastest layout, and no layout, of each problem and pass."""
    found = []
    for row in rows:
        for direction in ("forward", "backward"):
            timed = [r for r in row.get("rows", ()) if r["direction"] == direction and "us" in r]
            persistent = [r for r in timed if "plan" in r]
            kept = [r for r in timed if r["rank"] == "0" or "plan" not in r]
            if persistent:
                kept.append(min(persistent, key=lambda r: r["us"]))
            for r in kept:
                words = " ".join(f"{k}={v}" for k, v in r.get("plan", {}).items() if v)
                line = (r["rank"], _number(r["us"]), _number(r.get("model_us")), words[:70])
                problem = f"{r['precision']} H={r['H']} B={r['B']} G={r['G']}"
                found.append((problem, direction, *line))
    return found


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)[:40]


def plain(found: Sequence[Table]) -> str:
    """All tables as plain text."""
    return "\n".join(table.plain() for table in found)


def show(found: Sequence[Table]) -> None:
    """Print all tables, in colours where rich is installed."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text
    except ImportError:
        print(plain(found))
        return
    console = Console()
    for table in found:
        drawn = RichTable(*table.columns, title=table.title, title_justify="left")
        for row in table.rows:
            style = {"right": "green", "wrong": "red"}.get(table.title, "")
            drawn.add_row(*(Text(word, style) for word in row))
        console.print(drawn)
