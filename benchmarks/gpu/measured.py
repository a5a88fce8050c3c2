"""The entry of ``fastlstm/backends/gpu/timings.py`` for one GPU, from what `compare` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fastlstm.backends.gpu.timings import Measured

# nn.LSTM stays unless another is faster by more than rounds of one and the same call may differ.
_TIE = 0.98


def winners(rows: Sequence[Mapping[str, Any]]) -> Iterator[Measured]:
    """The fastest backend of each row of compare.json that timed any.

    float32 is what was measured in TF32, which is torch's default for cuDNN.
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
    """An entry of ``TABLES``, to be pasted between its braces."""
    lines = [f"    {tuple(capability)}: ("]
    for m in winners(rows):
        values = ", ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in m)
        lines.append(f"        Measured({values}),")
    return "\n".join([*lines, "    ),", ""])
