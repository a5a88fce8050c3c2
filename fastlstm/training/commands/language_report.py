"""What a model of bytes has learnt, in numbers and pictures."""

import bz2
import csv
import lzma
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fastlstm.data import LongSequence
from fastlstm.models.byte_lstm import ByteLSTM

_BITS = 1 / math.log(2)  # a nat


def compressed_bits(files: Sequence[LongSequence]) -> dict[str, float]:
    """Bits a byte that bz2 and lzma, at their strongest, need for all `files` as one stream.

    What a model of the same files has to beat; it learnt from other files, they from none.
    """
    text = b"".join(np.asarray(file[:], np.uint8).tobytes() for file in files)
    sizes = {"bz2 -9": len(bz2.compress(text, 9)), "xz -9": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


@torch.no_grad()
def bits_by_context(
    model: ByteLSTM, files: Sequence[LongSequence], context: int, rows: int = 64
) -> NDArray[np.float64]:
    """Bits of each byte by how many were read before it, (context,).

    Args:
        model: in eval mode.
        files: the first `rows` stretches of `context` + 1 bytes in them are read, each from a
            fresh state.
        context: bytes to read.
        rows: stretches to average over.

    Raises:
        ValueError: no file has `context` + 1 bytes.
    """
    starts = [
        (file, start) for file in files for start in range(0, len(file) - context, context + 1)
    ][:rows]
    if not starts:
        raise ValueError(f"context: expected at most the bytes of a file, got {context}")
    text = torch.from_numpy(np.stack([file[s : s + context + 1] for file, s in starts], 1))
    text = text.to(next(model.parameters()).device)
    nats, _ = model.losses(text[:-1], text[1:])
    return nats.double().mean(1).cpu().numpy() * _BITS


def read_curve(run: Path) -> dict[str, NDArray[np.float64]]:
    """Steps and bits of a run's `train/loss` and `val/error`, of all its resumptions: (n, 2)."""
    points: dict[str, dict[int, float]] = {"train/loss": {}, "val/error": {}}
    versions = sorted((run / "metrics").glob("version_*/metrics.csv"), key=_version)
    for path in versions:  # a later one has the steps that were trained again, if not all of them
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        begin = min((int(row["step"]) for row in rows), default=None)
        for name, found in points.items():
            if begin is not None:
                found = points[name] = {s: bits for s, bits in found.items() if s < begin}
            found |= {int(row["step"]): float(row[name]) * _BITS for row in rows if row.get(name)}
    return {name: np.array(sorted(found.items())) for name, found in points.items()}


def _version(path: Path) -> int:
    return int(path.parent.name.removeprefix("version_"))


def draw_report(
    path: Path,
    curve: dict[str, NDArray[np.float64]],
    by_context: NDArray[np.float64],
    window: int,
    compressors: dict[str, float],
) -> None:
    """Two plots in one PNG: the learning curve, and bits by context with the window marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    learning, context = figure.subplots(1, 2)
    for name, label in (("train/loss", "training windows"), ("val/error", "validation files")):
        if len(curve[name]):
            learning.plot(*curve[name].T, label=label, marker="o" if name == "val/error" else None)
    for (name, bits), style in zip(compressors.items(), (":", "--"), strict=True):
        learning.axhline(bits, color="gray", linestyle=style, label=name)
    learning.set(xlabel="training step", ylabel="bits a byte", title="Learning curve")
    learning.legend()

    edges = np.unique(np.geomspace(1, len(by_context), 25).astype(int))
    means = [by_context[a - 1 : b - 1].mean() for a, b in pairwise(edges)]
    context.plot(np.sqrt(edges[:-1] * edges[1:]), means, marker="o")
    context.axvline(window, color="gray", linestyle="--", label=f"window of training: {window}")
    context.set(
        xscale="log",
        xlabel="bytes read before",
        ylabel="bits a byte",
        title="What context is worth",
    )
    context.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
