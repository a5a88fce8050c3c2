"""The kinds of figures in the paper: strips of frames, grids of features, units, curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fastlstm.models.video import VideoLSTM
from fastlstm.training.callbacks.figures import CAPTIONS, VideoPictures, prediction_strip

Images = NDArray[np.float32]


def strips(
    models: Mapping[str, VideoLSTM],
    data: Any,
    frames: Tensor,
    future: Tensor,
    steps: Sequence[int] | None = None,
) -> Image.Image:
    """Draw the first two videos, and the reconstructions and predictions of each model.

    Args:
        models: by the names that label their rows.
        data: the data module of the videos.
        frames: (T_in, B, I) floats.
        future: (T_out, B, I) floats.
        steps: the steps of the future to draw, counted from 0. Default: all.
    """
    shown = {
        name.replace("_", " "): VideoPictures.of(model, frames[:, :2], future[:, :2], data.images)
        for name, model in models.items()
    }
    if steps is None:
        return prediction_strip(shown)
    shown = {name: pictures.at_steps(steps) for name, pictures in shown.items()}
    numbers = ", ".join(str(step + 1) for step in steps)
    return prediction_strip(shown, captions=(CAPTIONS[0], f"{CAPTIONS[1]}: steps {numbers}"))


def activity_maps(units: Mapping[str, Images], read: int) -> Figure:
    """Draw the hidden states of units over time, with a line where the encoder ends.

    Args:
        units: (units, steps) hidden states of each model, by its name.
        read: number of steps of the encoder.
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
    """Draw the error of each predictor by step, with a line at the last step that was trained."""
    figure = Figure((7, 4), layout="constrained")
    ax = figure.subplots()
    for name, values in errors.items():
        ax.plot(range(1, len(values) + 1), values, label=name.replace("_", " "))
    ax.axvline(trained_on, color="gray", linestyle="--", label=f"trained on {trained_on} steps")
    ax.set(xlabel="step of the future", ylabel="error per frame", ylim=(0, None))
    ax.legend()
    return figure


def feature_grids(features: Mapping[str, Images], columns: int = 20) -> Figure:
    """Draw a grid of small images for each set of features; in each image 0 is mid-grey.

    Args:
        features: (N, h, w) or (N, h, w, 3) weights of each set, by its name.
        columns: number of images in a row of a grid.
    """
    across = 2
    down = -(-len(features) // across)
    figure = Figure((9, 2.5 * down), layout="constrained")  # small: noise compresses badly
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
    """Draw accuracy over the number of labelled videos in a class, mean and deviation over seeds.

    Args:
        accuracy: "mean" and "std" by the name of a model and the number of labels.
        chance: accuracy of a random guess.
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
