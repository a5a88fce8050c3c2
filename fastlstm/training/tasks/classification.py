"""The training of a classifier of videos, and the share of them that it names rightly."""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from fastlstm.models.classifier import LSTMClassifier
from fastlstm.training.batches import LabelledBatch
from fastlstm.training.schedule import Schedule
from fastlstm.training.tasks.base import FrameTask


class ClassificationTask(FrameTask):
    """Trains an `LSTMClassifier` on batches of `LabelledBatch`.

    Logged under `train/`, `val/` and `test/`: `loss`, the cross-entropy of every frame's softmax in
    nats. In validation and test also `accuracy`, the share of videos whose class has the highest
    probability, averaged over frames and then over windows, and `error` = 1 - accuracy; the best
    checkpoint has the lowest.

    Args:
        model: the classifier to train.
        optimizer: any torch optimiser, without its parameters. Default: Adam, lr 1e-3.
        schedule, warmup_steps, input_lr_scale: of the learning rate, as in `VideoTask`.

    Raises:
        ValueError: an argument out of range, or a checkpoint of a model of another configuration.
    """

    model: LSTMClassifier

    def __init__(
        self,
        model: LSTMClassifier,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
        input_lr_scale: float = 1.0,
    ) -> None:
        super().__init__(model, optimizer, schedule, warmup_steps, input_lr_scale)

    def training_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train/loss", loss, batch_size=len(batch.labels), prog_bar=True)
        return loss

    def validation_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        self._log_accuracy("val", batch)

    def test_step(self, batch: LabelledBatch, batch_idx: int) -> None:
        self._log_accuracy("test", batch)

    def predict_step(self, batch: LabelledBatch, batch_idx: int) -> Tensor:
        """(V, C) probabilities of the classes of each video."""
        probabilities = self.model.probabilities(self.floats(batch.frames))
        if batch.windows is None:
            return probabilities
        videos = probabilities.split(batch.windows.tolist())
        return torch.stack([windows.mean(0) for windows in videos])

    def _loss(self, batch: LabelledBatch) -> Tensor:
        frames, labels, windows = batch
        if windows is not None:
            labels = labels.repeat_interleave(windows)
        return self.model.loss(self.floats(frames), labels)

    def _log_accuracy(self, stage: str, batch: LabelledBatch) -> None:
        right = self.predict_step(batch, 0).argmax(1) == batch.labels
        accuracy = right.float().mean()
        values = {"loss": self._loss(batch), "accuracy": accuracy, "error": 1 - accuracy}
        for name, value in values.items():
            self.log(
                f"{stage}/{name}",
                value,
                batch_size=len(batch.labels),
                prog_bar=stage == "val" and name == "accuracy",
            )
