"""Write a GPU's entries for ``fastlstm/backends/gpu/timings.py``.

The table of backends is from the rows of ``compare``, that of passes from the rows of ``tune``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fastlstm.backends.gpu.timings import Measured, MeasuredPass

# Another backend must take less than this share of nn.LSTM's time to replace it; repeated
# measurements of the same call differ by less than that.
_TIE = 0.98


def winners(rows: Sequence[Mapping[str, Any]]) -> Iterator[Measured]:
    """Yield the fastest backend of each row of ``compare.json`` that has a time.

    Rows measured in TF32, torch's default for cuDNN, are entered as float32.
    """
    for row in rows:
        us = {name[:-3]: time for name, time in row.items() if name.endswith(" us")}
        if not us:
            continue
        best = min(us, key=lambda name: us[name])
        if "nn.LSTM" in us and us[best] > _TIE * us["nn.LSTM"]:
            best = "nn.LSTM"
        dtype = "float32" if row["precision"] == "tf32" else row["precision"]
        sizes = (row["H"], row["B"], row["L"], row["D"], row["train"])
        yield Measured(dtype, *sizes, backend="torch" if best == "nn.LSTM" else best)


def source(rows: Sequence[Mapping[str, Any]], kind: tuple[str, int]) -> str:
    """Return the source text of an entry of ``TABLES``.

    ``kind`` is the GPU's, by :func:`fastlstm.backends.gpu.kind`.
    """
    return _entry(kind, winners(rows))


def _entry(kind: tuple[str, int], items: Iterable[NamedTuple]) -> str:
    name, multiprocessors = kind
    lines = [f'    ("{name}", {multiprocessors}): (']
    for item in items:
        values = ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in item)
        lines.append(f"        {type(item).__name__}({values}),")
    return "\n".join([*lines, "    ),", ""])


def passes(rows: Sequence[Mapping[str, Any]]) -> Iterator[MeasuredPass]:
    """Yield each pass of ``tune.json`` of which the first plan and the way step by step are timed.

    The first plan is the one that a call takes, whether another one is faster or not.
    """
    sizes = ("direction", "dtype", "H", "B", "G")
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in rows:
        if "us" in row:
            kind = tuple(row[name] for name in ("precision", *sizes))
            times.setdefault(kind, {})[row["rank"]] = row["us"]
    for (_, *kind), us in times.items():
        if "0" in us and "step by step" in us:
            yield MeasuredPass(*kind, round(us["0"], 2), round(us["step by step"], 2))


def source_of_passes(rows: Sequence[Mapping[str, Any]], kind: tuple[str, int]) -> str:
    """Return the source text of an entry of ``PASSES``; ``kind`` as in :func:`source`."""
    return _entry(kind, passes(rows))
