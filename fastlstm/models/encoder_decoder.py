"""The LSTM stacks inside the video models: encoders, and decoders with a read-out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.call import LSTMWeights, Problem
from fastlstm.functional import lstm

State = tuple[Tensor, Tensor]
"""(h, c) of every layer, each (L, B, H)."""


def time_first(name: str, frames: Tensor, batch_first: bool) -> Tensor:
    """A view (T, B, ...) of frames in a model's layout; RuntimeError unless of 3 dimensions."""
    if frames.dim() != 3:
        axes = "(B, T, I)" if batch_first else "(T, B, I)"
        raise RuntimeError(f"{name}: expected 3 dimensions {axes}, got {frames.dim()}")
    return frames.transpose(0, 1) if batch_first else frames


class Stack(nn.Module):
    """L LSTM layers with one bias each, under ``nn.LSTM``'s names.

    Args:
        input_size: of layer 0; 0 for a stack that reads nothing, which then has no
            ``weight_ih_l0``.
        hidden_size: H of every layer.
        num_layers: L.
        peephole: with ``weight_ch`` in every layer.
        backend: "auto" or a name.
        checkpoint_every: as in :class:`fastlstm.LSTM`.
    """

    weight_hh_l0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        peephole: bool,
        backend: str,
        checkpoint_every: int | str | None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.peephole = peephole
        self.backend = backend
        self.checkpoint_every = checkpoint_every
        for layer in range(num_layers):
            columns = hidden_size if layer else input_size
            if columns:
                self._add(f"weight_ih_l{layer}", 4 * hidden_size, columns)
            self._add(f"weight_hh_l{layer}", 4 * hidden_size, hidden_size)
            self._add(f"bias_ih_l{layer}", 4 * hidden_size)
            if peephole:
                self._add(f"weight_ch_l{layer}", 3 * hidden_size)

    def _add(self, name: str, *size: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(*size)))

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(H) as ``nn.LSTM``; biases 0, but 1 in the forget gates.

        A forget gate that starts open lets the gradient through ten and more steps at once.
        """
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                nn.init.ones_(parameter[self.hidden_size : 2 * self.hidden_size])
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def weights(self) -> list[LSTMWeights]:
        """One entry a layer; weight_ih of a layer that reads nothing has no columns."""
        nothing_read = self.weight_hh_l0.new_empty(4 * self.hidden_size, 0)
        return [
            LSTMWeights(
                weight_ih=getattr(self, f"weight_ih_l{layer}", nothing_read),
                weight_hh=getattr(self, f"weight_hh_l{layer}"),
                bias_ih=getattr(self, f"bias_ih_l{layer}"),
                weight_ch=getattr(self, f"weight_ch_l{layer}", None),
            )
            for layer in range(self.num_layers)
        ]

    def problem(self, input: Tensor | None = None) -> Problem:
        """What the backends are asked, for :func:`fastlstm.explain`; input is (T, B, I)."""
        weight = self.weight_hh_l0
        T, B = (10, 100) if input is None else input.shape[:2]
        return Problem(
            *(weight.device.type, weight.dtype, T, B, 1, self.hidden_size),
            peephole=self.peephole,
            requires_grad=torch.is_grad_enabled() and weight.requires_grad,
        )

    def extra_repr(self) -> str:
        """Sizes, as nn.LSTM writes them."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"peephole={self.peephole}"
        )


class Encoder(Stack):
    """Reads frames. What a decoder starts from is its last state; a classifier reads every step."""

    def forward(self, frames: Tensor) -> State:
        """Frames (T, B, I) to the final (h, c) of every layer, each (L, B, H)."""
        _, state = self._run(frames, return_sequence=False)
        return state

    def outputs(self, frames: Tensor, dropout: float = 0.0) -> Tensor:
        """Frames (T, B, I) to the top layer's h after each, (T, B, H); in training, outputs of the
        layers below are zeroed with probability ``dropout``.
        """
        h, _ = self._run(frames, dropout=dropout, training=self.training)
        return h

    def _run(self, frames: Tensor, **options: Any) -> tuple[Any, ...]:
        return lstm(
            frames,
            None,
            self.weights(),
            checkpoint_every=self.checkpoint_every,
            backend=self.backend,
            **options,
        )


class Decoder(Stack):
    """Emits frames from a state: LSTM layers, and a linear read-out of the top one.

    Args:
        frame_size: I, of what it emits, and of what it reads if ``conditional``.
        conditional: reads the previous frame from its second step on.
        hidden_size, num_layers, peephole, backend, checkpoint_every: as in :class:`Stack`.
    """

    def __init__(
        self,
        frame_size: int,
        hidden_size: int,
        num_layers: int,
        conditional: bool,
        peephole: bool,
        backend: str,
        checkpoint_every: int | str | None,
    ) -> None:
        options = (peephole, backend, checkpoint_every)
        super().__init__(frame_size if conditional else 0, hidden_size, num_layers, *options)
        self.conditional = conditional
        self.readout = nn.Linear(hidden_size, frame_size)
