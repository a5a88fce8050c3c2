"""The classifier of videos, which may start from the encoder of a video model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from fastlstm.layout_checks import can_read_values, check_size
from fastlstm.models.encoder_decoder import Encoder, check_sizes, time_first
from fastlstm.models.saving import SavedModel
from fastlstm.models.video import VideoLSTM


class LSTMClassifier(SavedModel):
    """A classifier of videos: an LSTM encoder, and a softmax over the classes after every frame.

    The action recognition model of Srivastava, Mansimov and Salakhutdinov (ICML 2015,
    arXiv:1502.04681). Its encoder starts from random weights, or by
    :meth:`from_encoder` from those of a video model that was trained without labels: ``encoder``
    has the parameters, under the same names, of the encoder of a :class:`fastlstm.VideoLSTM` of
    the same sizes.

    Args:
        input_size: I, number of values in a frame.
        hidden_size: H, number of units in each layer.
        num_classes: C, number of classes.
        num_layers: L, number of layers. Default: 1.
        dropout: probability of zeroing an output of each layer, in training. Default: 0.
        peephole: connections from the cell states to the gates. Default: True, as in the paper.
        batch_first: frames and logits are (B, T, ...) in place of (T, B, ...), T frames of B
            videos. Default: False.
        backend: "auto" or the name of a backend; see :func:`fastlstm.explain`. Default: "auto".
        checkpoint_every: which steps' states training keeps, for long videos; see
            :class:`fastlstm.LSTM`. Default: None, all of them.
        device: of the parameters. Default: torch's default device.
        dtype: of the parameters. Default: torch's default dtype.

    Raises:
        TypeError: a ``checkpoint_every`` that is neither None, an integer nor a string.
        ValueError: a size below 1, a probability outside 0..1, or an unknown backend.

    Example:
        >>> import torch, fastlstm
        >>> model = fastlstm.LSTMFuturePredictor(16, 8)  # to be trained on videos without labels
        >>> classifier = fastlstm.LSTMClassifier.from_encoder(model, num_classes=3)
        >>> frames, labels = torch.rand(5, 2, 16), torch.tensor([2, 0])
        >>> classifier.loss(frames, labels).backward()
        >>> classifier.probabilities(frames).shape
        torch.Size([2, 3])
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
        check_sizes(sizes)
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout: expected a probability in 0..1, got {dropout}")
        self.config = sizes | {
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
    def from_encoder(cls, model: VideoLSTM, num_classes: int, dropout: float = 0.0) -> Self:
        """Make a classifier whose encoder is a copy of a video model's.

        The classifier has the model's sizes, peepholes, layout, backend, device and dtype; the
        weights of its softmax layer are random. It reads pixels: of a model with ``basis="dct"`` it
        has the input weights of :meth:`fastlstm.VideoLSTM.folded`.

        Args:
            model: any video model; it is not changed.
            num_classes: C, number of classes.
            dropout: probability of zeroing an output of each layer, in training. Default: 0.

        Returns:
            The classifier, with random weights in its softmax layer.

        Raises:
            TypeError: ``model`` is no video model.
            ValueError: ``num_classes`` below 1, or ``dropout`` outside 0..1.
        """
        if not isinstance(model, VideoLSTM):
            raise TypeError(f"model: expected a VideoLSTM, got {type(model).__name__}")
        shared = ("input_size", "hidden_size", "num_layers", "peephole", "batch_first")
        options = {name: model.config[name] for name in (*shared, "backend", "checkpoint_every")}
        weight = model.encoder.weight_hh_l0
        options |= {"device": weight.device, "dtype": weight.dtype}
        classifier = cls(num_classes=num_classes, dropout=dropout, **options)
        classifier.encoder.load_state_dict(model.folded().encoder.state_dict())
        return classifier

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw weights as ``nn.LSTM`` and ``nn.Linear`` do; LSTM biases are 0, forget gates' 1."""
        self.encoder.reset_parameters()
        self.readout.reset_parameters()

    def forward(self, frames: Tensor) -> Tensor:
        """Compute the logits of the classes after each frame.

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
        """Compute the training loss: cross-entropy in nats, averaged over frames and batch.

        Args:
            frames: (T, B, I).
            labels: (B,) integers in 0..C-1, one class for each video.

        Returns:
            Scalar, in float32 or, for a float64 model, in float64.

        Raises:
            RuntimeError, ValueError: as :meth:`forward` does.
            RuntimeError: labels of a wrong size or dtype.
            ValueError: labels outside 0..C-1, or an empty batch.
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
        # Under autocast logits may be float16 or bfloat16, too narrow for a sum over classes.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), labels.long().expand(T, B).flatten())

    def probabilities(self, frames: Tensor) -> Tensor:
        """Compute the probabilities of the classes, averaged over the frames.

        Args:
            frames: (T, B, I).

        Returns:
            (B, C), in float32 or, for a float64 model, in float64.

        Raises:
            RuntimeError, ValueError: as :meth:`forward` does.
        """
        logits = self(frames)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.softmax(-1).mean(1 if self.batch_first else 0)

    def video_probabilities(self, video: Tensor, window: int = 16, stride: int = 8) -> Tensor:
        """Compute the probabilities of the classes of one long video, averaged over its windows.

        Each window is read from zero states. The defaults are the paper's.

        Args:
            video: (N, I), whatever ``batch_first`` is. A video of fewer than ``window`` frames is
                one window.
            window: number of frames in a window. Default: 16.
            stride: number of frames from the start of one window to the start of the next. Frames
                after the last whole window are not read. Default: 8.

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
