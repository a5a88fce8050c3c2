"""The callbacks that save the checkpoints of a run."""

from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from fastlstm.training.callbacks.checkpoint import StopBetweenSteps
from fastlstm.training.callbacks.finite import StopOnNonFinite


def savers(folder: Path, save_every: int) -> list[Callback]:
    """Return callbacks that write best.ckpt, last.ckpt and nonfinite_step_N.ckpt to a folder.

    Args:
        folder: of the checkpoints.
        save_every: training steps between saves of last.ckpt.
    """
    return [
        StopBetweenSteps(),
        StopOnNonFinite(folder),
        ModelCheckpoint(folder, "best", monitor="val/error", enable_version_counter=False),
        ModelCheckpoint(
            folder,
            "last",
            every_n_train_steps=save_every,
            save_on_exception=True,
            enable_version_counter=False,
        ),
    ]
