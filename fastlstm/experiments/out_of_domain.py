"""A model trained on two digits is shown one and three."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from fastlstm.experiments.pictures import Strip, strips
from fastlstm.experiments.setting import Setting
from fastlstm.experiments.videos import data_of, floats
from fastlstm.training.baselines import Baselines
from fastlstm.training.module import VideoTask


@torch.no_grad()
def out_of_domain(setting: Setting) -> dict[str, Any]:
    """Errors on each number of digits, beside baselines fitted to that number."""
    settings = setting.settings("out_of_domain")
    of = setting.settings(settings["experiment"])
    model = setting.first_run(settings["experiment"], settings["model"]).model()
    errors, figures = {}, {}
    for digits in settings["digits"]:
        data = data_of(of, num_digits=digits, test_size=settings["videos"])
        trainer = Trainer(logger=False, callbacks=[Baselines()], enable_progress_bar=False)
        (found,) = trainer.test(VideoTask(model), datamodule=data, verbose=False)
        errors[str(digits)] = {name.removeprefix("test/"): e for name, e in found.items()}

        frames, future = (floats(part[:, :2]) for part in next(iter(data.test_dataloader())))
        says = model.reconstruct(frames).flip(0), model.predict(frames, len(future))
        rows = {"input | future": (frames, future), settings["model"]: says}
        figures[f"digits_{digits}"] = strips(
            [Strip(k, *(data.images(half).numpy() for half in v)) for k, v in rows.items()]
        )
    trained_on = of["fit"]["data"]["init_args"]["num_digits"]
    return setting.write(
        "out_of_domain",
        {"model": settings["model"], "trained_on": trained_on, "errors": errors},
        **figures,
    )
