"""The task that trains a model of long sequences by truncated backpropagation through time."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fastlstm.models.model_files import model_entry
from fastlstm.training.precision import widen
from fastlstm.training.resumption import changes, check_model, trainer_options
from fastlstm.training.schedule import Schedule, check_schedule, scheduled
from fastlstm.training.tbptt import Window, Windows, detach, window_loss


class SequenceTask(LightningModule):
    """Train a stateful model on windows, and carry the state from each one to the next.

    The windows are :class:`fastlstm.training.Window` objects.

    Logs, in the unit of the model's losses: ``train/loss``; in validation and test ``error``, the
    mean loss of all steps with the state carried through the whole set, and ``error_in_window``,
    the same with a zero state at the beginning of every window, which shows what the state is
    worth. The best checkpoint has the lowest ``val/error``.

    The states of all rows are saved in checkpoints. A run that resumes with another number of
    processes, but as many rows in all, deals them and their states over the processes that there
    are, if the rows are dimension 1 of every tensor of a state, as in ``nn.LSTM``. If a run resumes
    with other windows (other sequences, k1, k2, seed or number of rows), the saved states belong to
    other places in the data. They are then replaced by zeros, with a warning.

    Args:
        model: a ``fastlstm.training.tbptt.StatefulModel``, such as ``fastlstm.ByteLSTM``.
        optimizer: a function of parameters that returns a torch optimiser. Default: Adam with a
            learning rate of 1e-3.
        schedule, warmup_steps: of the learning rate, with the same defaults as in ``VideoTask``.

    Raises:
        ValueError: an argument is out of range; a checkpoint is of another model configuration or
            of a run with another ``accumulate_grad_batches``.

    Example:
        >>> import tempfile, pathlib, fastlstm, lightning.pytorch
        >>> from fastlstm.training import SequenceTask, TextData
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "tale.txt").write_text("Once upon a time. " * 100)
        >>> data = TextData(str(folder), batch_size=4, k1=16)
        >>> task = SequenceTask(fastlstm.ByteLSTM(8))
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = lightning.pytorch.Trainer(
        ...     max_steps=4, max_epochs=-1, enable_checkpointing=False, accelerator="cpu", **quiet
        ... )
        >>> trainer.fit(task, data)
        >>> [tuple(part.shape) for part in task.state]  # h and c of one layer, for the next window
        [(1, 4, 8), (1, 4, 8)]
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
        self.state: Any = None  # after the last training window
        self._before: tuple[int, Any] = (-1, None)  # a step, and the state before its first window
        self._not_dealt = ""  # why a checkpoint's states could not be dealt over the processes
        self._made_of: dict[str, Any] = {}  # describes the windows that led to the state
        self._evaluation_state: Any = None

    def training_step(self, window: Window, batch_idx: int) -> Tensor:
        step = self.trainer.global_step
        if self._before[0] != step:
            self._before = step, self.state
        loss, self.state = window_loss(self.model, window, self.state)  # type: ignore[arg-type]
        self.log("train/loss", loss, batch_size=window.reset.shape[1], prog_bar=True)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._evaluation_state = None

    def on_test_epoch_start(self) -> None:
        self._evaluation_state = None

    def validation_step(self, window: Window, batch_idx: int) -> None:
        self._log_errors("val", window)

    def test_step(self, window: Window, batch_idx: int) -> None:
        self._log_errors("test", window)

    def _log_errors(self, stage: str, window: Window) -> None:
        model: Any = self.model
        error, self._evaluation_state = window_loss(model, window, self._evaluation_state)
        alone, _ = window_loss(model, window, None)
        # fresh steps only, so that every step counts once if k2 > k1
        steps = window.fresh * window.reset.shape[1]
        self.log(f"{stage}/error", error, batch_size=steps, prog_bar=True, sync_dist=True)
        self.log(f"{stage}/error_in_window", alone, batch_size=steps, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer(self.parameters())
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A checkpoint within a step, as at an error, resumes with the step's first window.
        step, before = self._before
        state = before if step == self.trainer.global_step else self.state
        mine = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, state)
        states = [mine]
        if dist.is_available() and dist.is_initialized():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, mine)
        checkpoint["sequence_states"] = states
        checkpoint["sequence_windows"] = self._made_of
        checkpoint |= model_entry(self.model)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        widen(self)
        check_model(self, self.model, checkpoint)
        if self._trainer is None or not self.trainer.training:
            return
        states = checkpoint["sequence_states"]
        made_of = checkpoint.get("sequence_windows", {})  # absent in older checkpoints
        self._made_of = {**made_of, "number of processes": len(states)}
        # The next window's number is computed from optimiser steps, while Lightning resumes by the
        # number of batches. With another number of batches per step the two would disagree, and the
        # states would not be those of the windows that are read.
        now = self.trainer.accumulate_grad_batches
        before = made_of.get("accumulate_grad_batches", now)
        if now != before:
            raise ValueError(
                f"trainer.accumulate_grad_batches: expected {before}, as in the run that resumes,"
                f" got {now}"
            )
        self._before = (-1, None)
        rank, processes = self.trainer.global_rank, self.trainer.world_size
        try:
            self.state = detach(_dealt(states, made_of.get("batch_size"), rank, processes))
            self._not_dealt = ""
        except ValueError as error:
            self.state, self._not_dealt = None, str(error)

    def on_train_start(self) -> None:
        windows = getattr(self.trainer.train_dataloader, "dataset", None)
        made_of = trainer_options(self.trainer)
        if isinstance(windows, Windows):
            made_of |= windows.made_of()
        changed = changes(self._made_of, made_of)
        if changed:
            rank_zero_warn(
                f"the run resumes with other windows ({changed}): sequences are distributed to"
                " streams anew, and all states begin at zero"
            )
            self.state = None
        elif self._not_dealt:
            rank_zero_warn(
                "the run resumes with another number of processes, and its states cannot be dealt"
                f" over them ({self._not_dealt}): all states begin at zero"
            )
        self._made_of = made_of
        weight = next(self.parameters())

        def placed(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            # the saved run may have had another precision
            return leaf.to(weight.device, weight.dtype if leaf.is_floating_point() else leaf.dtype)

        self.state = tree_map(placed, self.state)


def _dealt(states: list[Any], rows: int | None, rank: int, processes: int) -> Any:
    """Return the state of this process's rows, given those of all processes that saved.

    Args:
        states: one of each process that saved.
        rows: of each of them; None if not known.
        rank, processes: this process and the number of processes now.

    Raises:
        ValueError: the number of processes is another, and the rows of the states are not found.
    """
    if len(states) == processes:
        return states[rank]

    def of_rank(*parts: Any) -> Any:
        if not isinstance(parts[0], Tensor):
            return parts[0]
        if any(part.dim() < 2 or part.size(1) != rows for part in parts):
            shape = tuple(parts[0].shape)
            raise ValueError(f"expected {rows} rows in dimension 1 of every tensor, got {shape}")
        return torch.cat(parts, 1).tensor_split(processes, 1)[rank]

    return tree_map(of_rank, *states)
