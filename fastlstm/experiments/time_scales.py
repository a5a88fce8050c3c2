"""A model trained to predict 10 frames runs for 100: what it shows, and what its units do."""

from typing import Any

import torch
from torch import Tensor

from fastlstm.decoding import decode
from fastlstm.experiments.pictures import Strip, activity_maps, error_curve, strips
from fastlstm.experiments.setting import Setting
from fastlstm.experiments.videos import data_of, floats
from fastlstm.functional import lstm
from fastlstm.training.baselines import BaselineErrors, frame_error
from fastlstm.video import VideoLSTM


@torch.no_grad()
def activity(model: VideoLSTM, frames: Tensor, steps: int) -> Tensor:
    """h of the top layer's units, (T + steps, B, H): the encoder's, then the future decoder's.

    Args:
        model: one that predicts, time first.
        frames: (T, B, I), what the encoder reads.
        steps: of the decoder, in closed loop.
    """
    decoder = model.future_decoder
    assert decoder is not None
    read, state = lstm(frames, None, model.encoder.weights(), backend=model.encoder.backend)
    own = model.predict(frames, steps) if decoder.conditional else None
    units = list(read)
    for step in range(steps):
        reads = None if own is None or step == 0 else own[step - 1 : step]
        _, (state,) = decode([decoder], state, [reads], 1)
        units.append(state[0][-1])
    return torch.stack(units)


def restlessness(units: Tensor) -> float:
    """Standard deviation over time of each unit, averaged: 0 where all have settled.

    Args:
        units: (T, B, H).
    """
    return float(units.std(0).mean())


@torch.no_grad()
def time_scales(setting: Setting) -> dict[str, Any]:
    """Errors by step, activity of a trained and of an untrained model, and the frames shown."""
    settings = setting.settings("time_scales")
    steps, of = settings["steps"], setting.settings(settings["experiment"])
    run = setting.first_run(settings["experiment"], settings["model"])
    model = run.model()
    torch.manual_seed(0)
    untrained = type(model)(**model.config).eval()

    data = data_of(of, future_frames=steps, batch_size=settings["videos"])
    frames, future = map(floats, next(iter(data.test_dataloader())))
    predicted = model.predict(frames, steps)
    past, to_come = map(floats, data.training_sample(settings["videos"]))
    mean = BaselineErrors.fit(past, to_come, model.frames)

    def by_step(prediction: Tensor) -> list[float]:
        pairs = zip(prediction.expand_as(future).split(1), future.split(1), strict=True)
        return [float(frame_error(p, truth, model.frames)) for p, truth in pairs]

    errors = {"model": by_step(predicted), "mean_frame": by_step(mean.mean_frame)}
    units = {
        "trained": activity(model, frames[:, :1], steps),
        "untrained": activity(untrained, frames[:, :1], steps),
    }
    last = steps // 2
    shown = [0, 4, *range(9, steps, 10)]
    truth, model_says = (data.images(part[shown, :2]).numpy() for part in (future, predicted))
    given = data.images(frames[:, :2]).numpy()
    reconstructed = data.images(model.reconstruct(frames[:, :2]).flip(0)).numpy()
    chosen = torch.randperm(units["trained"].shape[2], generator=torch.Generator().manual_seed(0))
    chosen = chosen[: settings["units"]]
    return setting.write(
        "time_scales",
        {
            "model": settings["model"],
            "trained_on": of["fit"]["data"]["init_args"]["future_frames"],
            "errors_by_step": errors,
            "restlessness": {name: restlessness(h[-last:]) for name, h in units.items()},
            "restlessness_over": last,
        },
        activity=activity_maps(
            {name: h[:, 0, chosen].T.numpy() for name, h in units.items()}, len(frames)
        ),
        errors=error_curve(errors, of["fit"]["data"]["init_args"]["future_frames"]),
        strips=strips(
            [
                Strip("input | frames 1, 5, 10, 20 ...", given, truth),
                Strip("composite", reconstructed, model_says),
            ]
        ),
    )
