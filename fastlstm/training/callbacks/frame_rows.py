"""Draw videos as rows of frames, one block of rows per video."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Images = NDArray[np.float32]
_LINE = {"color": "0.35", "linewidth": 0.5}  # between frames


class FrameRow(NamedTuple):
    """A row of frames of B videos.

    Args:
        label: text at the left of the row.
        left: frames from the left edge on: floats in [0, 1], (T, B, h, w) or (T, B, h, w, 3). None:
            an empty space.
        right: frames after the left ones of the longest row and a gap. Default (None): none.
    """

    label: str
    left: Images | None
    right: Images | None = None


def draw_frame_rows(rows: Sequence[FrameRow], title: str = "", time_label: str = "") -> Figure:
    """Return a figure with a block of the given rows for each video, time from left to right.

    Args:
        rows: from top to bottom; at least one has frames.
        title: text above. Default: none.
        time_label: text below; with it, frames are numbered. Default: none.
    """
    parts = [images for row in rows for images in row[1:] if images is not None]
    samples, height, width, *colors = parts[0].shape[1:]
    before, after = (
        max((len(images) for images in side if images is not None), default=0)
        for side in ([row.left for row in rows], [row.right for row in rows])
    )
    steps, gap = before + after, max(2, width // 10) if after else 0
    cell = min(0.62, 16 / steps)  # inches
    margin = 0.3 + (0.4 if title else 0)
    size = (cell * steps + 2.0, cell * len(rows) * samples + 0.25 * samples + margin)
    figure = Figure(size, layout="compressed")
    if title:
        figure.suptitle(title, fontsize=11)
    axes = figure.subplots(samples, 1, squeeze=False)[:, 0]
    for sample, ax in enumerate(axes):
        canvas = np.ones((len(rows) * height, steps * width + gap, *colors), np.float32)
        for r, row in enumerate(rows):
            place = slice(r * height, (r + 1) * height)
            for images, start in ((row.left, 0), (row.right, before * width + gap)):
                if images is not None:
                    line = np.concatenate(list(images[:, sample]), axis=1).clip(0, 1)
                    canvas[place, start : start + line.shape[1]] = line
        ax.imshow(canvas, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for step in (*range(1, before), *range(before + 1, steps)):
            ax.axvline(step * width + (gap if step > before else 0) - 0.5, **_LINE)
        for r in range(1, len(rows)):
            ax.axhline(r * height - 0.5, **_LINE)
        ax.set_yticks([(r + 0.5) * height for r in range(len(rows))], [row.label for row in rows])
        ax.set_xticks([])
        ax.tick_params(length=0, labelsize=8)
        ax.set_frame_on(not gap)
    if time_label:
        axes[-1].set_xticks([(s + 0.5) * width for s in range(steps)], map(str, range(steps)))
        axes[-1].set_xlabel(time_label, fontsize=8)
    return figure
