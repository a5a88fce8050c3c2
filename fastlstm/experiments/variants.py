"""Compare the four models on Moving MNIST and on patches of real video (section 4.4)."""

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fastlstm.experiments.runs import Run
from fastlstm.experiments.setting import Setting, spread
from fastlstm.experiments.videos import data_of
from fastlstm.training.callbacks.frame_rows import FrameRow, draw_frame_rows
from fastlstm.training.tasks.base import floats

_SHOWN = 2  # test videos in the figure


def moving_mnist(setting: Setting) -> dict[str, Any]:
    """Compare the four models on videos of two bouncing digits."""
    return compare(setting, "moving_mnist")


def patches(setting: Setting) -> dict[str, Any]:
    """Compare the four models on 32 x 32 patches of real video."""
    return compare(setting, "patches")


def compare(setting: Setting, experiment: str) -> dict[str, Any]:
    """Train every model with every seed; write their errors and predictions of the same videos."""
    settings = setting.settings(experiment)
    seeds = setting.seeds_of(settings)
    runs = {
        model: [setting.train(experiment, settings, model, seed) for seed in seeds]
        for model in settings["models"]
    }
    errors = {
        model: {name: spread(run.errors[name] for run in of_model) for name in of_model[0].errors}
        for model, of_model in runs.items()
    }
    return setting.write(
        experiment,
        {
            "seeds": seeds,
            "steps": settings["fit"]["trainer"]["max_steps"],
            "hidden_size": settings["fit"]["model"]["model"]["init_args"]["hidden_size"],
            "errors": errors,
            "seconds": {m: spread(run.seconds for run in of) for m, of in runs.items()},
        },
        strips=_strips(settings, {model: of_model[0] for model, of_model in runs.items()}),
    )


@torch.no_grad()
def _strips(settings: dict[str, Any], runs: dict[str, Run]) -> Figure:
    data = data_of(settings)
    frames, future = (floats(part[:, :_SHOWN]) for part in next(iter(data.test_dataloader())))

    def row(label: str, past: Tensor | None, to_come: Tensor | None) -> FrameRow:
        halves = (None if half is None else data.images(half).numpy() for half in (past, to_come))
        return FrameRow(label, *halves)

    rows = [row("input | future", frames, future)]
    for name, run in runs.items():
        model = run.model()
        past = None if model.reconstruction_decoder is None else model.reconstruct(frames).flip(0)
        to_come = None if model.future_decoder is None else model.predict(frames, len(future))
        rows.append(row(name.replace("_", " "), past, to_come))
    return draw_frame_rows(rows)
