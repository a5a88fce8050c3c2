"""The base class of the tasks whose models read video frames."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from fastlstm.models.model_files import model_entry
from fastlstm.training.precision import widen
from fastlstm.training.resumption import changes, check_model, trainer_options
from fastlstm.training.schedule import Schedule, check_schedule, scheduled


def floats(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return frames in ``dtype``: bytes scaled to [0, 1], floats with their values unchanged."""
    return pixels.to(dtype).div_(255) if pixels.dtype == torch.uint8 else pixels.to(dtype)


class FrameTask(LightningModule):
    """Base class of tasks that train a model of frames; derived classes define the loss.

    A checkpoint of another model configuration is refused when it is loaded. A run that resumes
    with other training data than before goes on, with a warning that says what changed.

    Args:
        model: a module with its arguments in ``config``, time first.
        optimizer: a function of parameters (or parameter groups) that returns a torch optimiser.
        schedule: the learning rate after the warm-up: "constant"; "linear" or "cosine", which
            reach 0 at the run's last step; "staircase", multiplied by 0.9 every 10,000 steps.
        warmup_steps: steps over which the learning rate rises linearly to its full value.
        input_lr_scale: factor on the learning rate of the weights that read frames. A frame has
            hundreds of lit pixels, and Adam changes each of their weights by as much as any other
            weight; a factor below 1 prevents saturated gates.

    Raises:
        ValueError: an argument is out of range.
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        warmup_steps: int,
        input_lr_scale: float,
    ) -> None:
        super().__init__()
        check_schedule(schedule, warmup_steps)
        if not input_lr_scale > 0:
            raise ValueError(f"input_lr_scale: expected a number above 0, got {input_lr_scale}")
        if model.batch_first:
            raise ValueError("model.batch_first: expected False, batches are time first, got True")
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.input_lr_scale = input_lr_scale

    def floats(self, pixels: Tensor) -> Tensor:
        """Return frames in the dtype of the model's parameters, see the function ``floats``."""
        return floats(pixels, next(self.model.parameters()).dtype)

    def lr_scales(self) -> dict[str, float]:
        """Return factors on the learning rate of parameters, by the ends of their names."""
        return {"weight_ih_l0": self.input_lr_scale}

    def configure_optimizers(self) -> OptimizerLRScheduler:
        scales = self.lr_scales()
        groups: dict[str, list[Tensor]] = {end: [] for end in ("", *scales)}
        for name, parameter in self.named_parameters():
            groups[next((end for end in scales if name.endswith(end)), "")].append(parameter)
        optimizer = self.optimizer([{"params": of_end} for of_end in groups.values()])
        for group, scale in zip(optimizer.param_groups[1:], scales.values(), strict=True):
            group["lr"] *= scale
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= model_entry(self.model)
        checkpoint["video_data"] = self._data()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        widen(self)
        check_model(self, self.model, checkpoint)
        if self._trainer is not None and self.trainer.training:
            changed = changes(checkpoint.get("video_data", {}), self._data())
            if changed:
                rank_zero_warn(f"the run resumes with other training data ({changed})")

    def _data(self) -> dict[str, Any]:
        """Return what training batches depend on, if the data module has ``training_options``."""
        data: Any = getattr(self.trainer, "datamodule", None)
        options = data.training_options() if hasattr(data, "training_options") else {}
        return trainer_options(self.trainer) | {"class": type(data).__name__, **options}
