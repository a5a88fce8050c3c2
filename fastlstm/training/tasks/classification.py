"""The task that trains a classifier of videos."""

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from fastlstm.models.classifier import LSTMClassifier
from fastlstm.training.batches import LabelledBatch
from fastlstm.training.schedule import Schedule
from fastlstm.training.tasks.base import FrameTask


class ClassificationTask(FrameTask):
    """Train an ``LSTMClassifier`` on batches of ``LabelledBatch``.

    Logs ``train/loss``, ``val/loss`` and ``test/loss``: the cross-entropy of every frame's softmax,
    in nats, averaged over frames and videos. Validation and test also log ``accuracy``, the
    fraction of videos whose class has the highest probability (averaged over frames and then over
    windows), and ``error``, which is 1 - accuracy. The best checkpoint has the lowest
    ``val/error``.

    Args:
        model: the classifier to train.
        optimizer: a function of parameters that returns a torch optimiser. Default: Adam with a
            learning rate of 1e-3.
        schedule, warmup_steps, input_lr_scale: of the learning rate, with the same defaults as in
            ``VideoTask``.

    Raises:
        ValueError: an argument is out of range, or a checkpoint is of another model configuration.

    Example:
        >>> import fastlstm
        >>> from fastlstm.training import ClassificationTask, MotionData
        >>> task = ClassificationTask(fastlstm.LSTMClassifier(1024, 8, num_classes=10))
        >>> batch = next(iter(MotionData(batch_size=4, num_frames=5, size=32).train_dataloader()))
        >>> task.predict_step(batch, 0).shape  # probabilities of the classes
        torch.Size([4, 10])
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
        """Return the probabilities of the classes of each video, (V, C)."""
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
                sync_dist=True,
            )
