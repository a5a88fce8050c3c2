"""A classifier of video: an encoder with a softmax after every frame.

The action recognition model of Srivastava, Mansimov and Salakhutdinov (ICML 2015,
arXiv:1502.04681): its encoder starts from random weights, or from those of a video model that was
trained without labels.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.backends import select
from fastlstm.layout_checks import can_read_values, check_size, steps_between_checkpoints
from fastlstm.models import saving
from fastlstm.models.encoder_decoder import Encoder, time_first
from fastlstm.models.video import VideoLSTM


class LSTMClassifier(nn.Module):
    """LSTM layers over frames, and a linear softmax layer that names a class after each of them.

    ``encoder`` has the parameters of a :class:`fastlstm.VideoLSTM`'s encoder of the same sizes,
    under the same names.

    Args:
        input_size: I, values in a frame.
        hidden_size: H, units in each layer.
        num_classes: C.
        num_layers: L. Default: 1.
        dropout: probability of zeroing an output of each layer, in training. Default: 0.
        peephole: diagonal connections from cell states to gates. Default: True.
        batch_first: frames and logits are (B, T, ...) instead of (T, B, ...). Default: False.
        backend: "auto" or a backend's name.
        checkpoint_every: what training keeps, as in :class:`fastlstm.LSTM`. Default: every step.
        device, dtype: of the parameters. Default: torch's.

    Raises:
        TypeError: a ``checkpoint_every`` that is neither None, an integer nor a word.
        ValueError: a size below 1, a probability outside 0..1, or an unknown word.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int,
        num_layers: int = 1,
        *,
        dropout: float = 0.0,
        peephole: bool = True,
        batch_first: bool = False,
        backend: str = "auto",
        checkpoint_every: int | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "input_size": input_size,
            "hidden_size": hidden_size,
            "num_classes": num_classes,
            "num_layers": num_layers,
        }
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout: expected a probability in 0..1, got {dropout}")
        if backend != "auto":
            select.get(backend)
        steps_between_checkpoints(checkpoint_every)
        self.config: dict[str, Any] = sizes | {
            "dropout": dropout,
            "peephole": peephole,
            "batch_first": batch_first,
            "backend": backend,
            "checkpoint_every": checkpoint_every,
        }
        self.num_classes = num_classes
        self.dropout = dropout
        self.batch_first = batch_first
        with torch.device(device or torch.get_default_device()):
            options = (peephole, backend, checkpoint_every)
            self.encoder = Encoder(input_size, hidden_size, num_layers, *options)
            self.readout = nn.Linear(hidden_size, num_classes)
        self.to(dtype=dtype)
        self.reset_parameters()

    @classmethod
    def from_encoder(
        cls, model: VideoLSTM, num_classes: int, dropout: float = 0.0
    ) -> LSTMClassifier:
        """A classifier that starts from a copy of a video model's encoder.

        It has the model's sizes, peepholes, layout, backend, device and dtype; its softmax layer is
        drawn anew.

        Args:
            model: any video model, which stays as it is.
            num_classes, dropout: of the classifier.

        Raises:
            TypeError: the model is no video model.
        """
        if not isinstance(model, VideoLSTM):
            raise TypeError(f"model: expected a VideoLSTM, got {type(model).__name__}")
        shared = ("input_size", "hidden_size", "num_layers", "peephole", "batch_first")
        options = {name: model.config[name] for name in (*shared, "backend", "checkpoint_every")}
        weight = model.encoder.weight_hh_l0
        options |= {"device": weight.device, "dtype": weight.dtype}
        classifier = cls(num_classes=num_classes, dropout=dropout, **options)
        classifier.encoder.load_state_dict(model.encoder.state_dict())
        return classifier

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights as in ``nn.LSTM`` and ``nn.Linear``; LSTM biases 0, forget gates 1."""
        self.encoder.reset_parameters()
        self.readout.reset_parameters()

    def forward(self, frames: Tensor) -> Tensor:
        """Logits of the classes after each frame.

        Args:
            frames: (T, B, I).

        Returns:
            (T, B, C).

        Raises:
            RuntimeError, ValueError: a wrong rank, size or dtype, as in ``nn.LSTM``.
        """
        h = self.encoder.outputs(time_first("frames", frames, self.batch_first), self.dropout)
        logits = self.readout(F.dropout(h, self.dropout, self.training))
        return logits.transpose(0, 1) if self.batch_first else logits

    def loss(self, frames: Tensor, labels: Tensor) -> Tensor:
        """The training loss: cross-entropy in nats, averaged over frames and batch.

        Args:
            frames: (T, B, I).
            labels: (B,) integers in 0..C-1.

        Raises:
            RuntimeError, ValueError: as :meth:`forward` does, or labels of a wrong size, kind or
                value.
        """
        logits = time_first("logits", self(frames), self.batch_first)
        T, B = logits.shape[:2]
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise RuntimeError(f"labels: expected integers, got {labels.dtype}")
        check_size("labels", labels, (B,))
        if B == 0:
            raise ValueError("frames: expected a batch of at least 1 to average over, got 0")
        if can_read_values(labels):
            low, high = (int(extreme) for extreme in labels.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"labels: expected classes in 0..{self.num_classes - 1}, got {low}..{high}"
                )
        # float32 at least: under autocast logits are narrower, too narrow for a sum over classes
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), labels.long().expand(T, B).flatten())

    def probabilities(self, frames: Tensor) -> Tensor:
        """Probabilities of the classes, averaged over the frames, float32 at least.

        Args:
            frames: (T, B, I).

        Returns:
            (B, C).
        """
        logits = self(frames)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.softmax(-1).mean(1 if self.batch_first else 0)

    def video_probabilities(self, video: Tensor, window: int = 16, stride: int = 8) -> Tensor:
        """Probabilities of the classes of one long video, averaged over its windows.

        Each window is read from a fresh state. The paper's are 16 frames long and start every 8.

        Args:
            video: (N, I), whatever ``batch_first``; of fewer than ``window`` frames, it is one
                window.
            window: frames in a window.
            stride: frames from the start of one window to that of the next; frames after the last
                whole window are not read.

        Returns:
            (C,).

        Raises:
            RuntimeError: a wrong rank, size or dtype.
            ValueError: a window or stride below 1.
        """
        if video.dim() != 2:
            raise RuntimeError(f"video: expected 2 dimensions (N, I), got {video.dim()}")
        for name, value in (("window", window), ("stride", stride)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        windows = video.unfold(0, min(window, len(video)), stride)  # (W, I, window)
        layout = (0, 2, 1) if self.batch_first else (2, 0, 1)
        return self.probabilities(windows.permute(layout)).mean(0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and configuration to one file, as :meth:`fastlstm.VideoLSTM.save`."""
        saving.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LSTMClassifier:
        """The classifier that :meth:`save` wrote, on the CPU.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, not of this library, or holds another class than ``cls``.
        """
        return saving.load(path, cls)
