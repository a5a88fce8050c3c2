"""Write a GPU's entry for ``fastlstm/backends/gpu/timings.py`` from the rows of ``compare``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastlstm.backends.gpu.timings import Measured

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


def source(rows: Sequence[Mapping[str, Any]], capability: Sequence[int]) -> str:
    """Return the source text of an entry of ``TABLES``."""
    lines = [f"    {tuple(capability)}: ("]
    for m in winners(rows):
        values = ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in m)
        lines.append(f"        Measured({values}),")
    return "\n".join([*lines, "    ),", ""])
