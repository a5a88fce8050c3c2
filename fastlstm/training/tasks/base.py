"""What the tasks over frames share: floats of bytes, scheduled steps, checkpoints that fit."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from fastlstm.models.saving import current_names
from fastlstm.training.precision import widen
from fastlstm.training.resumption import changes, checkpoint_name, trainer_options
from fastlstm.training.schedule import Schedule, check_schedule, scheduled

_NOT_OF_WEIGHTS = ("backend", "readout_bias", "dropout")


def floats(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Bytes scaled to [0, 1]; floats as they are. Of one dtype."""
    return pixels.to(dtype).div_(255) if pixels.dtype == torch.uint8 else pixels.to(dtype)


class FrameTask(LightningModule):
    """Trains a model that reads frames; derived classes say on what loss.

    Args:
        model: a module with its arguments in `config`, time first.
        optimizer: any torch optimiser, without its parameters.
        schedule: of the learning rate after the warm-up. "linear" and "cosine" reach 0 at the
            run's last step, "staircase" is x0.9 every 10,000 steps, "constant" stays.
        warmup_steps: steps over which the learning rate rises linearly to its full value.
        input_lr_scale: learning rate of the weights that read frames, relative to the others'. A
            frame lights hundreds of pixels at once, and Adam moves the weights of all of them by
            as much as it moves any other: below 1 keeps the gates out of saturation.

    Raises:
        ValueError: an argument out of range, or a checkpoint of a model of another configuration.

    A run that resumes with other data than before goes on with them, and says so in a warning.
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
        """What `floats` makes of them in the dtype of the parameters."""
        return floats(pixels, next(self.model.parameters()).dtype)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        reads_frames: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in self.named_parameters():
            reads_frames[name.endswith("weight_ih_l0")].append(parameter)
        optimizer = self.optimizer([{"params": reads_frames[k]} for k in (False, True)])
        optimizer.param_groups[1]["lr"] *= self.input_lr_scale
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["video_model"] = self._architecture()
        checkpoint["video_data"] = self._data()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        widen(self)
        # Before the weights are loaded: one line that says what differs, not a list of shapes.
        received = current_names(checkpoint.get("video_model", {}))
        for name, expected in self._architecture().items():
            if received.get(name) != expected:
                raise ValueError(
                    f"ckpt_path: expected a checkpoint of {name}={expected!r} as configured,"
                    f" got {name}={received.get(name)!r} in {checkpoint_name(self)}"
                )
        if self._trainer is not None and self.trainer.training:
            changed = changes(checkpoint.get("video_data", {}), self._data())
            if changed:
                rank_zero_warn(f"the run resumes with other training data ({changed})")

    def _data(self) -> dict[str, Any]:
        """What the training batches depend on, as far as the data module tells."""
        data: Any = getattr(self.trainer, "datamodule", None)
        told = data.training_options() if hasattr(data, "training_options") else {}
        return trainer_options(self.trainer) | {"class": type(data).__name__, **told}

    def _architecture(self) -> dict[str, Any]:
        """What a model's weights depend on: how it runs and where it started is left out."""
        config: dict[str, Any] = self.model.config  # type: ignore[assignment]
        fixed = {name: value for name, value in config.items() if name not in _NOT_OF_WEIGHTS}
        return {"class": type(self.model).__name__, **fixed}
