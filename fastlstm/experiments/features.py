"""The features of a model: its weights from a frame to units, and from units to a frame."""

from typing import Any

import torch
from torch import Tensor

from fastlstm.experiments.pictures import feature_grids
from fastlstm.experiments.setting import Setting
from fastlstm.experiments.videos import data_of
from fastlstm.models.video import VideoLSTM

_GATES = ("input gate", "forget gate", "cell input", "output gate")  # the order of weight_ih


def features_of(model: VideoLSTM) -> dict[str, Tensor]:
    """Return the weights between units and pixels, (H, I) each, by gate or output."""
    model = model.folded()
    sets = dict(zip(_GATES, model.encoder.get_parameter("weight_ih_l0").chunk(4), strict=True))
    for name, decoder in (
        ("reconstruction", model.reconstruction_decoder),
        ("future", model.future_decoder),
    ):
        if decoder is not None:
            sets[f"{name} output"] = decoder.readout.weight.T
    return sets


def strongest(weights: Tensor, count: int) -> Tensor:
    """Return the ``count`` rows of largest L2 norm, the largest first."""
    return weights[weights.norm(dim=1).argsort(descending=True)[:count]]


def extent(weights: Tensor) -> float:
    """Return the mean participation ratio of features: the share of the pixels that one covers.

    The ratio (sum w^2)^2 / (I sum w^4) of a feature w of I pixels is 1 if all weights have the same
    size, 5/9 if they are uniform in an interval around 0, 1/3 if they are Gaussian, and 1/I if only
    one is not 0.
    """
    squares = weights.double() ** 2
    return float((squares.sum(1) ** 2 / (squares**2).sum(1)).mean() / weights.shape[1])


@torch.no_grad()
def features(setting: Setting) -> dict[str, Any]:
    """Draw the strongest features, and compare how local they are before and after training."""
    settings = setting.settings("features")
    extents, figures = {}, {}
    for experiment in settings["experiments"]:
        model = setting.first_run(experiment, settings["model"]).model()
        data = data_of(setting.settings(experiment))
        torch.manual_seed(0)
        untrained = features_of(type(model)(**model.config))
        chosen = {k: strongest(w, settings["count"]) for k, w in features_of(model).items()}
        extents[experiment] = {
            name: {
                "trained": extent(weights),
                "untrained": extent(strongest(untrained[name], settings["count"])),
            }
            for name, weights in chosen.items()
        }
        figures[experiment] = feature_grids(
            {name: w.unflatten(1, data.frame_shape).numpy() for name, w in chosen.items()}
        )
    return setting.write("features", {"model": settings["model"], "extent": extents}, **figures)
