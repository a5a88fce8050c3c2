"""The training of a model of long sequences by truncated backpropagation through time."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastlstm.training.precision import widen
from fastlstm.training.resumption import changes, checkpoint_name, trainer_options
from fastlstm.training.schedule import Schedule, check_schedule, scheduled
from fastlstm.training.tbptt import Window, Windows, detach, window_loss


class SequenceTask(LightningModule):
    """Trains a stateful model on `Window`s, whose state goes on from one to the next.

    Logged: `train/loss`, and in validation and test `error`, the mean loss of all steps with the
    state handed on through the whole set, and `error_in_window`, with every window read from a
    fresh state: what the model knows without what lies before. The state is in each checkpoint,
    of every process. A run that resumes with other windows (another batch_size, k1, k2, seed
    or number of processes, other sequences) has states of other places: it drops them, says so in a
    warning, and goes on from states of zero.

    Args:
        model: a `fastlstm.training.tbptt.StatefulModel`, such as `fastlstm.ByteLSTM`.
        optimizer: any torch optimiser, without its parameters. Default: Adam, lr 1e-3.
        schedule: of the learning rate, as in `VideoTask`.
        warmup_steps: steps over which the learning rate rises linearly to its full value.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__()
        check_schedule(schedule, warmup_steps)
        self.model = model
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.state: Any = None
        self._made_of: dict[str, Any] = {}  # the windows that led to the state
        self._read: Any = None  # the state in validation and test

    def training_step(self, window: Window, batch_idx: int) -> Tensor:
        loss, self.state = window_loss(self.model, window, self.state)  # type: ignore[arg-type]
        self.log("train/loss", loss, batch_size=window.reset.shape[1], prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._read = None

    def on_test_epoch_start(self) -> None:
        self._read = None

    def validation_step(self, window: Window, batch_idx: int) -> None:
        self._log_errors("val", window)

    def test_step(self, window: Window, batch_idx: int) -> None:
        self._log_errors("test", window)

    def _log_errors(self, stage: str, window: Window) -> None:
        # every step once: not those that a window of k2 > k1 reads again
        error, self._read = window_loss(self.model, window, self._read)  # type: ignore[arg-type]
        alone, _ = window_loss(self.model, window, None)  # type: ignore[arg-type]
        steps = window.fresh * window.reset.shape[1]
        self.log(f"{stage}/error", error, batch_size=steps, prog_bar=True, sync_dist=True)
        self.log(f"{stage}/error_in_window", alone, batch_size=steps, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, self.state)
        states = [mine]
        if dist.is_available() and dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, mine)
        checkpoint["sequence_states"] = states
        checkpoint["sequence_windows"] = self._made_of
        checkpoint["sequence_model"] = self._architecture()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        widen(self)
        # Before the weights are loaded: one line that says what differs, not a list of shapes.
        received, expected = checkpoint.get("sequence_model", {}), self._architecture()
        if received != expected:
            raise ValueError(
                f"ckpt_path: expected a checkpoint of {expected} as configured, got {received}"
                f" in {checkpoint_name(self)}"
            )
        if self._trainer is None or not self.trainer.training:
            return
        states, rank = checkpoint["sequence_states"], self.trainer.global_rank
        made_of = checkpoint.get("sequence_windows", {})  # older ones have none
        self._made_of = {**made_of, "number of processes": len(states)}
        # Windows are counted in steps, and Lightning counts on in batches: with another number of
        # them in a step the two would part, and states be of other windows than those read.
        now = self.trainer.accumulate_grad_batches
        before = made_of.get("accumulate_grad_batches", now)
        if now != before:
            raise ValueError(
                f"trainer.accumulate_grad_batches: expected {before}, as in the run that resumes,"
                f" got {now}"
            )
        self.state = detach(states[rank]) if rank < len(states) else None

    def on_train_start(self) -> None:
        windows = getattr(self.trainer.train_dataloader, "dataset", None)
        made_of = trainer_options(self.trainer)
        if isinstance(windows, Windows):
            made_of |= windows.made_of()
        changed = changes(self._made_of, made_of)
        if changed:
            rank_zero_warn(
                f"the run resumes with other windows ({changed}): its streams are dealt anew, and"
                " their states begin at zero"
            )
            self.state = None
        self._made_of = made_of
        weight = next(self.parameters())

        def placed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            # In the dtype of the weights, which the run that was saved may not have had.
            return leaf.to(weight.device, weight.dtype if leaf.is_floating_point() else leaf.dtype)

        self.state = tree_map(placed, self.state)

    def _architecture(self) -> dict[str, Any]:
        """What the weights depend on, as far as the model tells: its `config`."""
        return {"class": type(self.model).__name__, **getattr(self.model, "config", {})}
