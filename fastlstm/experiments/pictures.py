"""Figures as the paper draws them: strips of frames, features on a grid, units over time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Images = NDArray[np.float32]


class Strip(NamedTuple):
    """A row of frames: floats in [0, 1], (T, B, h, w) or (T, B, h, w, 3); None leaves a gap."""

    label: str
    past: Images | None
    """In the order of the input."""
    future: Images | None


def strips(rows: Sequence[Strip]) -> Figure:
    """For each video a block of rows, past at the left and future at the right.

    Args:
        rows: the first is the truth and has both halves.
    """
    truth = rows[0]
    assert truth.past is not None and truth.future is not None
    before, after = len(truth.past), len(truth.future)
    samples, height, width = truth.past.shape[1:4]
    colors = truth.past.shape[4:]
    steps, gap = before + after, max(2, width // 10)
    cell = min(0.62, 16 / steps)
    figure = Figure(
        (cell * steps + 2.4, cell * len(rows) * samples + 0.25 * samples + 0.3), layout="compressed"
    )
    axes = figure.subplots(samples, 1, squeeze=False)[:, 0]
    for sample, ax in enumerate(axes):
        canvas = np.ones((len(rows) * height, steps * width + gap, *colors), np.float32)
        for r, row in enumerate(rows):
            place = slice(r * height, (r + 1) * height)
            for images, start in ((row.past, 0), (row.future, before * width + gap)):
                if images is not None:
                    line = np.concatenate(list(images[:, sample]), axis=1).clip(0, 1)
                    canvas[place, start : start + line.shape[1]] = line
        ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for step in range(1, steps):
            x = step * width + (gap if step > before else 0) - 0.5
            if step != before:
                ax.axvline(x, color="0.35", linewidth=0.4)
        for r in range(1, len(rows)):
            ax.axhline(r * height - 0.5, color="0.35", linewidth=0.4)
        ax.set_yticks([(r + 0.5) * height for r in range(len(rows))], [row.label for row in rows])
        ax.set_xticks([])
        ax.tick_params(length=0, labelsize=8)
        ax.set_frame_on(False)
    return figure
