"""Video representations by LSTMs: an encoder, decoders, and what models of them have in common.

The models of Srivastava, Mansimov and Salakhutdinov, "Unsupervised Learning of Video
Representations using LSTMs" (ICML 2015, arXiv:1502.04681): an encoder reads the frames, and its
final state starts one decoder that emits them again in reverse order, one that emits the frames to
come, or both.
"""

from __future__ import annotations

import os
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.backends import select
from fastlstm.checks import check_like
from fastlstm.layout_checks import (
    can_read_values,
    check_size,
    steps_between_checkpoints,
)
from fastlstm.models import saving
from fastlstm.models.decoding import Job, run
from fastlstm.models.encoder_decoder import Decoder, Encoder, Stack, State, time_first


class VideoOutput(NamedTuple):
    """What :meth:`VideoLSTM.forward` returns.

    ``reconstruction`` (T, B, I) is in the order of emission: step s is frame T-1-s. ``future`` is
    (steps, B, I). Both are read-outs: logits for binary frames, values for real ones; None without
    that decoder. ``state`` is the encoder's final (h, c), each (L, B, H).
    """

    reconstruction: Tensor | None
    future: Tensor | None
    state: State


class VideoLoss(NamedTuple):
    """Loss per frame: nats for binary frames, half the squared error for real ones.

    ``total`` is the sum of the parts there are; None stands for a decoder that is not there.
    """

    total: Tensor
    reconstruction: Tensor | None
    future: Tensor | None


class VideoLSTM(nn.Module):
    """What the three models share; use :class:`fastlstm.CompositeLSTM` or one of its halves.

    Each decoder is unconditional (it reads nothing) or conditional (from its second step on it
    reads the frame before: the true one in training; at test the future decoder reads its own
    output and the reconstructing one the true frame, which the model has seen).

    Args:
        input_size: I, values in a frame.
        hidden_size: H, units in each layer; the paper's is 2048.
        num_layers: L, in the encoder and in each decoder. Default: 1.
        reconstruction: the reconstructing decoder: None for none, else whether it is conditional.
        future: the predicting decoder, likewise.
        frames: "binary", values in [0, 1] under a cross-entropy in nats, or "real", any values
            under half the squared error. Default: "binary".
        peephole: diagonal connections from cell states to gates. Default: True.
        batch_first: frames are (B, T, I) instead of (T, B, I), in and out. Default: False.
        readout_bias: where the read-outs' biases start; for binary frames the log-odds of the
            mean pixel saves the first hundred steps of training. Default: 0.
        backend: "auto", or a backend that runs the sequence op ("cpu", "triton", "reference").
        checkpoint_every: for long videos: what training keeps, as in :class:`fastlstm.LSTM`.
            Default: every step.
        device, dtype: of the parameters. Default: torch's.

    Raises:
        TypeError: a ``checkpoint_every`` that is neither None, an integer nor a word.
        ValueError: a size below 1, an unknown word, or no decoder at all.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reconstruction: bool | None,
        future: bool | None,
        frames: Literal["binary", "real"] = "binary",
        peephole: bool = True,
        batch_first: bool = False,
        readout_bias: float = 0.0,
        backend: str = "auto",
        checkpoint_every: int | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}: expected at least 1, got {size}")
        if frames not in ("binary", "real"):
            raise ValueError(f"frames: expected 'binary' or 'real', got {frames!r}")
        if reconstruction is None and future is None:
            raise ValueError("reconstruction, future: expected at least one decoder, got none")
        if backend != "auto":
            select.get(backend)
        steps_between_checkpoints(checkpoint_every)
        self.config: dict[str, Any] = sizes | {
            "frames": frames,
            "peephole": peephole,
            "batch_first": batch_first,
            "readout_bias": readout_bias,
            "backend": backend,
            "checkpoint_every": checkpoint_every,
        }
        self.input_size = input_size
        self.frames = frames
        self.batch_first = batch_first
        self.readout_bias = readout_bias

        options = (peephole, backend, checkpoint_every)

        def decoder(conditional: bool | None) -> Decoder | None:
            if conditional is None:
                return None
            return Decoder(input_size, hidden_size, num_layers, conditional, *options)

        with torch.device(device or torch.get_default_device()):
            self.encoder = Encoder(input_size, hidden_size, num_layers, *options)
            self.reconstruction_decoder = decoder(reconstruction)
            self.future_decoder = decoder(future)
        self.to(dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Weights as in ``nn.LSTM`` and ``nn.Linear``; LSTM biases 0, forget gates 1."""
        for module in self.modules():
            if isinstance(module, Stack):
                module.reset_parameters()
            elif isinstance(module, nn.Linear):
                module.reset_parameters()
                module.bias.fill_(self.readout_bias)

    def encode(self, frames: Tensor) -> State:
        """The representation of a video: the final (h, c) of every layer, each (L, B, H).

        Args:
            frames: (T, B, I).

        Raises:
            RuntimeError, ValueError: a wrong rank, size or dtype, as in ``nn.LSTM``.
        """
        return self.encoder(self._time_first("frames", frames))

    def forward(
        self,
        frames: Tensor,
        future: Tensor | None = None,
        *,
        steps: int | None = None,
        sampling: float = 0.0,
    ) -> VideoOutput:
        """Encode frames and run the decoders.

        Args:
            frames: (T, B, I).
            future: (steps, B, I) the true frames that follow, which a conditional future decoder
                reads one step late (teacher forcing). Default: it reads its own output.
            steps: of the future decoder. Default: those of ``future``, else T.
            sampling: probability, per sequence and step, that a conditional decoder reads its own
                output in place of the true frame (scheduled sampling, Bengio et al. 2015).
                Default: 0.

        Raises:
            RuntimeError, ValueError: a wrong rank, size or dtype, as in ``nn.LSTM``.
            ValueError: steps below 1 or other than the length of ``future``; sampling outside 0..1.
        """
        frames = self._time_first("frames", frames)
        if future is not None:
            future = self._time_first("future", future)
            if steps not in (None, future.shape[0]):
                raise ValueError(f"steps: expected {future.shape[0]}, as future has, got {steps}")
            check_like("future", future, "frames", frames)
            check_size("future", future, (future.shape[0], *frames.shape[1:]))
        if not 0.0 <= sampling <= 1.0:
            raise ValueError(f"sampling: expected a probability in 0..1, got {sampling}")
        state = self.encoder(frames)
        if steps is None:
            steps = (frames if future is None else future).shape[0]
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        jobs = [self._reconstruction_job(frames), Job(self.future_decoder, future, steps)]
        readouts = run(jobs, state, self._to_frames, sampling)
        reconstruction, prediction = (y if y is None else self._user_layout(y) for y in readouts)
        return VideoOutput(reconstruction, prediction, state)

    def reconstruct(self, frames: Tensor) -> Tensor:
        """The frames emitted again, (T, B, I), last one first: step s is frame T-1-s.

        Raises:
            ValueError: a model without the reconstructing decoder.
        """
        if self.reconstruction_decoder is None:
            raise ValueError(
                f"reconstruct: expected a model that can, {self._name} has no such decoder"
            )
        frames = self._time_first("frames", frames)
        (readout,) = run([self._reconstruction_job(frames)], self.encoder(frames), self._to_frames)
        assert readout is not None
        return self._user_layout(self._to_frames(readout))

    def predict(self, frames: Tensor, steps: int) -> Tensor:
        """The ``steps`` frames that follow, (steps, B, I), in closed loop.

        A conditional decoder reads its own last output, so any number of steps will do.

        Raises:
            ValueError: steps below 1, or a model without the predicting decoder.
        """
        return self._user_layout(self._to_frames(self._predicted(frames, steps)))

    def closed_loop_loss(self, frames: Tensor, future: Tensor) -> Tensor:
        """Loss per frame of what :meth:`predict` emits, as :meth:`loss` counts it.

        It is taken from the read-outs in float32, where a probability of 0.999 is not yet 1, as it
        is in bfloat16.

        Args:
            frames: (T, B, I).
            future: (steps, B, I) the frames that follow.

        Raises:
            ValueError: as :meth:`predict` and :meth:`loss` do.
        """
        future = self._time_first("future", future)
        readout = self._predicted(frames, len(future))
        return self._frame_loss(readout, future)

    def _predicted(self, frames: Tensor, steps: int) -> Tensor:
        """The read-outs of the future decoder in closed loop, time first."""
        if self.future_decoder is None:
            raise ValueError(
                f"predict: expected a model that can, {self._name} has no such decoder"
            )
        if steps < 1:
            raise ValueError(f"steps: expected at least 1, got {steps}")
        job = Job(self.future_decoder, None, steps)
        (readout,) = run([job], self.encode(frames), self._to_frames)
        assert readout is not None
        return readout

    def loss(
        self, frames: Tensor, future: Tensor | None = None, *, sampling: float = 0.0
    ) -> VideoLoss:
        """The training loss, each part averaged over batch and frames.

        Args:
            frames: (T, B, I).
            future: (steps, B, I) the frames that follow; needed by models that predict.
            sampling: as in :meth:`forward`.

        Raises:
            ValueError: ``future`` is missing, binary frames with values outside [0, 1], or no
                frames to average over.
        """
        if self.future_decoder is None:
            future = None
        elif future is None:
            raise ValueError(f"future: expected the frames that follow, {self._name} predicts them")
        output = self(frames, future, sampling=sampling)
        time = 1 if self.batch_first else 0
        parts = [
            None if readout is None or target is None else self._frame_loss(readout, target)
            for readout, target in (
                (output.reconstruction, frames.flip(time)),
                (output.future, future),
            )
        ]
        total = sum((part for part in parts if part is not None), start=frames.new_zeros(()))
        return VideoLoss(total, *parts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write parameters and configuration to one safetensors file, whole or not at all.

        Raises:
            ImportError: without the package safetensors.
            OSError: the file cannot be written; one that was there before is left as it was.
        """
        saving.save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VideoLSTM:
        """The model that :meth:`save` wrote, on the CPU, of the class that was saved.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, not of this library, or holds another class than ``cls``.
        """
        return saving.load(path, cls)

    def _frame_loss(self, readout: Tensor, target: Tensor) -> Tensor:
        num_frames = target.shape[0] * target.shape[1]
        if num_frames == 0:
            raise ValueError(f"frames: expected at least one, got size {tuple(target.shape)}")
        # Under autocast the read-out is narrower than the target, and too narrow to be summed up.
        sums = torch.promote_types(readout.dtype, torch.float32)
        readout, target = readout.to(sums), target.to(sums)
        if self.frames == "real":
            return 0.5 * F.mse_loss(readout, target, reduction="sum") / num_frames
        if can_read_values(target):
            low, high = (float(extreme) for extreme in target.aminmax())
            if not (low >= 0 and high <= 1):
                raise ValueError(f"frames: expected binary values in [0, 1], got {low}..{high}")
        # softplus(a) - t a is the cross-entropy of t against sigmoid(a), for grey t too. The dot
        # product spares a pass over memory: the loss is an eighth of a training step.
        return (F.softplus(readout).sum() - readout.flatten().dot(target.flatten())) / num_frames

    def _reconstruction_job(self, frames: Tensor) -> Job:
        decoder = self.reconstruction_decoder
        truth = frames.flip(0) if decoder is not None and decoder.conditional else None
        return Job(decoder, truth, frames.shape[0])

    def _to_frames(self, readout: Tensor) -> Tensor:
        return readout.sigmoid() if self.frames == "binary" else readout

    def _time_first(self, name: str, frames: Tensor) -> Tensor:
        return time_first(name, frames, self.batch_first)

    def _user_layout(self, frames: Tensor) -> Tensor:
        return frames.transpose(0, 1) if self.batch_first else frames

    @property
    def _name(self) -> str:
        return type(self).__name__
