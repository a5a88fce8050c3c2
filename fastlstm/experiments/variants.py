"""Compare the four models on Moving MNIST and on patches of real video (section 4.4)."""

from typing import Any

from fastlstm.experiments.pictures import strips
from fastlstm.experiments.setting import Setting, spread
from fastlstm.experiments.videos import data_of
from fastlstm.training.tasks.base import floats


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
    data = data_of(settings)
    frames, future = map(floats, next(iter(data.test_dataloader())))
    return setting.write(
        experiment,
        {
            "seeds": seeds,
            "steps": settings["fit"]["trainer"]["max_steps"],
            "hidden_size": settings["fit"]["model"]["model"]["init_args"]["hidden_size"],
            "errors": errors,
        },
        strips=strips(
            {name: of_model[0].model() for name, of_model in runs.items()}, data, frames, future
        ),
    )
