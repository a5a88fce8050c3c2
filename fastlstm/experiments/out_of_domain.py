"""Evaluate a model trained on videos of two digits on videos of one and of three."""

from typing import Any

from lightning.pytorch import Trainer

from fastlstm.experiments.pictures import strips
from fastlstm.experiments.setting import Setting
from fastlstm.experiments.videos import data_of
from fastlstm.training.callbacks.baselines import Baselines
from fastlstm.training.tasks.base import floats
from fastlstm.training.tasks.video import VideoTask


def out_of_domain(setting: Setting) -> dict[str, Any]:
    """Measure the errors on each number of digits, and those of baselines fitted to it."""
    settings = setting.settings("out_of_domain")
    of = setting.settings(settings["experiment"])
    name = settings["model"]
    model = setting.first_run(settings["experiment"], name).model()
    errors, figures = {}, {}
    for digits in settings["digits"]:
        data = data_of(of, num_digits=digits, test_size=settings["videos"])
        trainer = Trainer(logger=False, callbacks=[Baselines()], enable_progress_bar=False)
        (found,) = trainer.test(VideoTask(model), datamodule=data, verbose=False)
        errors[str(digits)] = {key.removeprefix("test/"): e for key, e in found.items()}
        frames, future = map(floats, next(iter(data.test_dataloader())))
        figures[f"digits_{digits}"] = strips({name: model}, data, frames, future)
    trained_on = of["fit"]["data"]["init_args"]["num_digits"]
    return setting.write(
        "out_of_domain", {"model": name, "trained_on": trained_on, "errors": errors}, **figures
    )
