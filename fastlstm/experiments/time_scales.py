"""Run models that were trained to predict 10 frames for 100 frames, and record their units."""

from typing import Any

import torch
from torch import Tensor

from fastlstm.experiments.pictures import activity_maps, error_curve, strips
from fastlstm.experiments.setting import Setting
from fastlstm.experiments.videos import data_of
from fastlstm.functional import lstm
from fastlstm.models.decoding import decode
from fastlstm.models.video import VideoLSTM
from fastlstm.training.callbacks.baselines import BaselineErrors, frame_error
from fastlstm.training.tasks.base import floats


@torch.no_grad()
def activity(model: VideoLSTM, frames: Tensor, steps: int) -> Tensor:
    """Return the hidden states of the top layer, of the encoder and then of the future decoder.

    Args:
        model: a model with a future decoder, time first.
        frames: (T, B, I), the frames that the encoder reads.
        steps: number of steps of the decoder in closed loop: a conditional decoder reads the frames
            that it predicts.

    Returns:
        (T + steps, B, H).
    """
    decoder = model.future_decoder
    assert decoder is not None
    encoder = model.encoder
    read, state = lstm(encoder.inputs(frames), None, encoder.weights(), backend=encoder.backend)
    own = model.predict(frames, steps) if decoder.conditional else None
    units = list(read)
    for step in range(steps):
        reads = None if own is None or step == 0 else own[step - 1 : step]
        _, (state,) = decode([decoder], state, [reads], 1)
        units.append(state[0][-1])
    return torch.stack(units)


def temporal_std(units: Tensor) -> float:
    """Return the standard deviation over time, averaged over units: 0 if no unit changes.

    Args:
        units: (T, B, H).
    """
    return float(units.std(0).mean())


@torch.no_grad()
def time_scales(setting: Setting) -> dict[str, Any]:
    """Write errors by step, predicted frames, and the units of trained and untrained models."""
    settings = setting.settings("time_scales")
    steps, experiment = settings["steps"], settings["experiment"]
    of = setting.settings(experiment)
    models = {name: setting.first_run(experiment, name).model() for name in settings["models"]}
    torch.manual_seed(0)
    first = next(iter(models.values()))
    untrained = type(first)(**first.config).eval()

    data = data_of(of, future_frames=steps, batch_size=settings["videos"])
    frames, future = map(floats, next(iter(data.test_dataloader())))
    past, to_come = map(floats, data.training_sample(settings["videos"]))
    mean_frame = BaselineErrors.fit(past, to_come, first.frames).mean_frame
    predicted = {name: model.predict(frames, steps) for name, model in models.items()}

    def by_step(prediction: Tensor) -> list[float]:
        pairs = zip(prediction.expand_as(future).split(1), future.split(1), strict=True)
        return [float(frame_error(p, truth, first.frames)) for p, truth in pairs]

    errors = {name: by_step(p) for name, p in {**predicted, "mean frame": mean_frame}.items()}
    units = {
        name: activity(model, frames[:, :1], steps)
        for name, model in {**models, "untrained composite": untrained}.items()
    }
    trained_on = of["fit"]["data"]["init_args"]["future_frames"]
    chosen = torch.randperm(untrained.config["hidden_size"])[: settings["units"]]
    return setting.write(
        "time_scales",
        {
            "trained_on": trained_on,
            "errors_by_step": errors,
            "temporal_std": {name: temporal_std(h[-(steps // 2) :]) for name, h in units.items()},
            "temporal_std_over": steps // 2,
        },
        activity=activity_maps(
            {name.replace("_", " "): h[:, 0, chosen].T.numpy() for name, h in units.items()},
            len(frames),
        ),
        errors=error_curve(errors, trained_on),
        strips=strips(models, data, frames, future, [0, 4, *range(9, steps, 10)]),
    )
