"""Write predicted frames to files: arrays and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from fastlstm.training.batches import VideoBatch
from fastlstm.training.callbacks.figures import (
    has_pictures,
    of_batch,
    prediction_strip,
    save_gif,
)
from fastlstm.training.run_folder import predictions, remove


class PredictionWriter(BasePredictionWriter):
    """Write each predicted batch as ``batch_000.npz``, and its first videos as PNG and GIF.

    The arrays in the .npz file are ``frames`` (T_in, B, I) and ``future`` (T_out, B, I) as read,
    and ``prediction`` (T_out, B, I), float32, predicted in closed loop. No pictures are drawn for
    data modules whose frames are not images. ``written`` lists the paths of all files written.

    Args:
        folder: where files are written. Default: ``predictions`` in the run's folder, where files
            of an earlier prediction are removed.
        samples: videos in the pictures. Default: 2.

    Raises:
        ValueError: ``samples`` is below 1.

    Example:
        >>> import lightning.pytorch
        >>> from fastlstm.training import PredictionWriter
        >>> trainer = lightning.pytorch.Trainer(callbacks=[PredictionWriter()], logger=False)
    """

    def __init__(self, folder: str | None = None, samples: int = 2) -> None:
        super().__init__("batch")
        if samples < 1:
            raise ValueError(f"samples: expected at least 1, got {samples}")
        self.folder = folder
        self.samples = samples
        self.written: list[Path] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: VideoBatch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not trainer.is_global_zero:  # every process predicts the same videos
            return
        folder = Path(self.folder or Path(trainer.default_root_dir) / "predictions")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"batch_{batch_idx:03d}.npz"
        arrays: dict[str, Any] = {
            "frames": batch.frames.cpu().numpy(),
            "future": batch.future.cpu().numpy(),
            "prediction": prediction.float().cpu().numpy(),
        }
        np.savez_compressed(path, **arrays)
        self.written.append(path)
        if not has_pictures(trainer):
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        pictures = of_batch(pl_module, batch, self.samples, data)
        name = type(pl_module.model).__name__
        title = f"{name}, {len(prediction)} frames in closed loop"
        prediction_strip({name: pictures}, title).save(path.with_suffix(".png"))
        save_gif(pictures, path.with_suffix(".gif"))
        self.written += [path.with_suffix(".png"), path.with_suffix(".gif")]

    def on_predict_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.folder is None and trainer.is_global_zero:
            run = Path(trainer.default_root_dir)
            remove(set(predictions(run)) - set(self.written), run)
