"""Bits per byte of a trained ``ByteLSTM``: as a learning curve, by context, and of compressors."""

import bz2
import csv
import lzma
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastlstm import ByteLSTM
from fastlstm.data import LongSequence

_BITS_PER_NAT = 1 / math.log(2)


def compressed_bits(files: Sequence[LongSequence]) -> dict[str, float]:
    """Return the bits per byte that bz2 and xz need at their strongest, for all ``files`` joined.

    A baseline that favours the compressors: they read the test files themselves, of which the model
    has seen none.
    """
    text = b"".join(np.asarray(file[:], np.uint8).tobytes() for file in files)
    sizes = {"bz2 -9": len(bz2.compress(text, 9)), "xz -9": len(lzma.compress(text, preset=9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


@torch.no_grad()
def bits_by_context(
    model: ByteLSTM, files: Sequence[LongSequence], context: int, rows: int = 64
) -> NDArray[np.float64]:
    """Return the mean bits of a byte by the number of bytes read before it, (context,).

    Args:
        model: in eval mode.
        files: text; the first ``rows`` pieces of ``context`` + 1 bytes are read, each from a fresh
            state.
        context: bytes to read in each piece.
        rows: pieces to average over.

    Raises:
        ValueError: no file has ``context`` + 1 bytes.
    """
    starts = [
        (file, start) for file in files for start in range(0, len(file) - context, context + 1)
    ][:rows]
    if not starts:
        raise ValueError(f"context: expected at most the bytes of a file, got {context}")
    text = torch.from_numpy(np.stack([file[s : s + context + 1] for file, s in starts], 1))
    text = text.to(next(model.parameters()).device)
    nats, _ = model.losses(text[:-1], text[1:])
    return nats.double().mean(1).cpu().numpy() * _BITS_PER_NAT


def read_curve(run: Path) -> dict[str, NDArray[np.float64]]:
    """Read a run's ``train/loss`` and ``val/error`` from its metrics: (n, 2), step and bits per
    byte.

    A resumed run has one metrics file per resumption. Where two files have the same step, the later
    file counts: the earlier steps were lost when the run was interrupted.
    """
    points: dict[str, dict[int, float]] = {"train/loss": {}, "val/error": {}}
    versions = sorted((run / "metrics").glob("version_*/metrics.csv"), key=_version)
    for path in versions:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        begin = min((int(row["step"]) for row in rows), default=None)
        for name, found in points.items():
            if begin is not None:
                found = points[name] = {s: bits for s, bits in found.items() if s < begin}
            found |= {
                int(row["step"]): float(row[name]) * _BITS_PER_NAT for row in rows if row.get(name)
            }
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
    """Write a PNG of two plots: the learning curve, and bits per byte by context.

    Args:
        path: the file to write.
        curve: what ``read_curve`` returns.
        by_context: what ``bits_by_context`` returns.
        window: steps through which gradients were propagated, drawn as a line.
        compressors: what ``compressed_bits`` returns, drawn as lines.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    learning, context = figure.subplots(1, 2)
    for name, label in (("train/loss", "training windows"), ("val/error", "validation files")):
        if len(curve[name]):
            learning.plot(*curve[name].T, label=label, marker="o" if name == "val/error" else None)
    for (name, bits), style in zip(compressors.items(), (":", "--"), strict=True):
        learning.axhline(bits, color="gray", linestyle=style, label=name)
    learning.set(xlabel="training step", ylabel="bits per byte", title="Learning curve")
    learning.legend()

    edges = np.unique(np.geomspace(1, len(by_context), 25).astype(int))
    means = [by_context[a - 1 : b - 1].mean() for a, b in pairwise(edges)]
    context.plot(np.sqrt(edges[:-1] * edges[1:]), means, marker="o")
    context.axvline(window, color="gray", linestyle="--", label=f"training window: {window}")
    context.set(
        xscale="log", xlabel="bytes read before", ylabel="bits per byte", title="Value of context"
    )
    context.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
