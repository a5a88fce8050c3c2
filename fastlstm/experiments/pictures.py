"""Figures as the paper draws them: strips of frames, features on a grid, units over time."""

from collections.abc import Mapping, Sequence
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


def activity_maps(units: Mapping[str, Images], read: int) -> Figure:
    """Units over time, one map above the other, with a line where reading ends.

    Args:
        units: (units, steps) h of each model, by its name.
        read: steps of the encoder.
    """
    figure = Figure((11, 3.4 * len(units)), layout="constrained")
    axes = figure.subplots(len(units), 1, squeeze=False)[:, 0]
    for ax, (name, values) in zip(axes, units.items(), strict=True):
        image = ax.imshow(
            values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", interpolation="nearest"
        )
        ax.axvline(read - 0.5, color="black", linestyle="--", linewidth=1)
        ax.set(title=name, ylabel="unit", xlabel="step (reading | predicting)")
        figure.colorbar(image, ax=ax, label="h")
    return figure


def error_curve(errors: Mapping[str, Sequence[float]], trained_on: int) -> Figure:
    """Error of each predictor by step, with the end of what was trained marked."""
    figure = Figure((7, 4), layout="constrained")
    ax = figure.subplots()
    for name, values in errors.items():
        ax.plot(range(1, len(values) + 1), values, label=name.replace("_", " "))
    ax.axvline(trained_on, color="gray", linestyle="--", label=f"trained on {trained_on} steps")
    ax.set(xlabel="step of the future", ylabel="error per frame", ylim=(0, None))
    ax.legend()
    return figure


def feature_grids(features: Mapping[str, Images], columns: int = 20) -> Figure:
    """Features as small pictures, a grid for each set; in each picture 0 is mid-grey.

    Args:
        features: (N, h, w) or (N, h, w, 3) weights of each set, by its name.
        columns: pictures in a row of a grid.
    """
    across = 2
    down = -(-len(features) // across)
    figure = Figure((9, 2.5 * down), layout="constrained")  # noise makes large files
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, (name, weights) in zip(axes, features.items(), strict=False):
        size = np.abs(weights).max(axis=tuple(range(1, weights.ndim)), keepdims=True)
        tiles = 0.5 + 0.5 * weights / np.where(size > 0, size, 1)
        gaps = [(0, -len(tiles) % columns), (1, 1), (1, 1), *[(0, 0)] * (weights.ndim - 3)]
        tiles = np.pad(tiles, gaps, constant_values=1.0)
        rows = tiles.reshape(-1, columns, *tiles.shape[1:])
        grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
        ax.imshow(grid, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set_title(name, fontsize=8)
    return figure


def label_curves(
    accuracy: Mapping[str, Mapping[int, Mapping[str, float]]], chance: float
) -> Figure:
    """Accuracy against labelled videos of a class, mean and spread over seeds.

    Args:
        accuracy: of each model, by its name and the number of labels: "mean" and "std".
        chance: accuracy of guessing.
    """
    figure = Figure((7, 4.5), layout="constrained")
    ax = figure.subplots()
    for name, points in accuracy.items():
        means, spreads = ([100 * p[k] for p in points.values()] for k in ("mean", "std"))
        ax.errorbar(list(points), means, spreads, label=name, marker="o", capsize=3)
    ax.axhline(100 * chance, color="gray", linestyle="--", label="chance")
    ax.set(xscale="log", xlabel="labelled videos of a class", ylabel="accuracy, %", ylim=(0, None))
    counts = sorted({n for points in accuracy.values() for n in points})
    ax.set_xticks(counts, [str(n) for n in counts])
    ax.minorticks_off()
    ax.legend()
    return figure
