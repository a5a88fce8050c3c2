"""The LSTM stacks inside the video models: encoders, and decoders with a read-out layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastlstm.backends.select import check_backend
from fastlstm.call import GroupWeights, Layers, LSTMWeights, SequenceLayout, Wanted
from fastlstm.checks import check_like
from fastlstm.functional import lstm
from fastlstm.layout_checks import check_size, steps_between_checkpoints
from fastlstm.models.basis import FrameBasis, Readout
from fastlstm.problem import Problem, pose_problem

State = tuple[Tensor, Tensor]
"""(h, c) of every layer, each (L, B, H)."""
DecoderType = Literal["none", "unconditional", "conditional"]


def decoder_type_of(name: str, value: DecoderType | bool | None) -> DecoderType:
    """Check a word for a decoder, or find the one for a value of version 0.1."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "conditional" if value else "unconditional"
    if value not in get_args(DecoderType):
        raise ValueError(
            f"{name}: expected 'none', 'unconditional' or 'conditional', got {value!r}"
        )
    return value


def decoder_types(
    reconstruction: DecoderType | bool | None, future: DecoderType | bool | None
) -> dict[str, DecoderType]:
    """Check the words for a model's decoders, one of which it must have."""
    decoders = {
        "reconstruction": decoder_type_of("reconstruction", reconstruction),
        "future": decoder_type_of("future", future),
    }
    if set(decoders.values()) == {"none"}:
        raise ValueError("reconstruction, future: expected at least one decoder, got none")
    return decoders


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Check that all sizes, by the name of their argument, are at least 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")


def time_first(name: str, frames: Tensor, batch_first: bool) -> Tensor:
    """Return frames as (T, B, I), a view if they are (B, T, I).

    Args:
        name: the argument's, for the error.
        frames: (T, B, I), or (B, T, I) if ``batch_first``.

    Raises:
        RuntimeError: other than 3 dimensions.
    """
    if frames.dim() != 3:
        axes = "(B, T, I)" if batch_first else "(T, B, I)"
        raise RuntimeError(f"{name}: expected 3 dimensions {axes}, got {frames.dim()}")
    return frames.transpose(0, 1) if batch_first else frames


def videos_time_first(
    frames: Tensor, future: Tensor | None, batch_first: bool
) -> tuple[Tensor, Tensor | None]:
    """Check frames and the frames that follow; return them as (T, B, I) and (steps, B, I)."""
    frames = time_first("frames", frames, batch_first)
    if future is None:
        return frames, None
    future = time_first("future", future, batch_first)
    expected = (frames.dtype, frames.device, frames.shape[1:])
    if (future.dtype, future.device, future.shape[1:]) != expected:
        check_like("future", future, "frames", frames)
        check_size("future", future, (future.shape[0], *frames.shape[1:]))
    return frames, future


class LSTMStack(nn.Module):
    """L LSTM layers with one bias vector each, whose parameters have ``nn.LSTM``'s names.

    Args:
        input_size: I of the frames that layer 0 reads; 0 for a stack that reads no input, which has
            no ``weight_ih_l0``.
        hidden_size: H of every layer.
        num_layers: L.
        peephole: each layer has a ``weight_ch`` (3H), connections from its cell state to its gates.
        backend: "auto" or the name of a backend; see :func:`fastlstm.explain`.
        checkpoint_every: which steps' states training keeps, as in :class:`fastlstm.LSTM`.
        basis: the basis in which layer 0 reads frames: the columns of ``weight_ih_l0`` are its
            coefficients. Default: None, they are pixels.

    Raises:
        TypeError, ValueError: a backend or ``checkpoint_every`` for which :class:`fastlstm.LSTM`
            raises them.
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
        basis: FrameBasis | None = None,
    ) -> None:
        super().__init__()
        steps_between_checkpoints(checkpoint_every)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.peephole = peephole
        self.backend = check_backend(backend)
        self.checkpoint_every = checkpoint_every
        self.basis = basis
        reads = input_size if basis is None or input_size == 0 else basis.num_coefficients
        for layer in range(num_layers):
            columns = hidden_size if layer else reads
            if columns:
                self._add(f"weight_ih_l{layer}", 4 * hidden_size, columns)
            self._add(f"weight_hh_l{layer}", 4 * hidden_size, hidden_size)
            self._add(f"bias_ih_l{layer}", 4 * hidden_size)
            if peephole:
                self._add(f"weight_ch_l{layer}", 3 * hidden_size)

    def _add(self, name: str, *size: int) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(*size)))

    def reset_parameters(self) -> None:
        """Draw weights from +-1/sqrt(H) uniformly, as ``nn.LSTM``; set biases to 0, forget gates 1.

        A forget gate that starts near 1 passes the gradient back through ten and more steps.
        """
        bound = self.hidden_size**-0.5
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
                nn.init.ones_(parameter[self.hidden_size : 2 * self.hidden_size])
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def inputs(self, frames: Tensor) -> Tensor:
        """Return what ``weight_ih_l0`` multiplies: frames (..., I), or their coefficients."""
        return frames if self.basis is None else self.basis.coefficients(frames)

    def weights(self) -> list[LSTMWeights]:
        """Return the parameters layer by layer.

        The ``weight_ih`` of a layer that reads no input has no columns.
        """
        no_columns = self.weight_hh_l0.new_empty(4 * self.hidden_size, 0)
        return [
            LSTMWeights(
                weight_ih=getattr(self, f"weight_ih_l{layer}", no_columns),
                weight_hh=getattr(self, f"weight_hh_l{layer}"),
                bias_ih=getattr(self, f"bias_ih_l{layer}"),
                weight_ch=getattr(self, f"weight_ch_l{layer}", None),
            )
            for layer in range(self.num_layers)
        ]

    def problem(self, input: Tensor | None = None) -> Problem:
        """Describe a call for the backends, as :func:`fastlstm.explain` asks them.

        Args:
            input: (T, B, I). Default: 10 steps of 100 rows.
        """
        weight, H = self.weight_hh_l0, self.hidden_size
        T, B = (10, 100) if input is None else input.shape[:2]
        weight_ch = self.weights()[0].weight_ch
        peepholes = () if weight_ch is None else (weight_ch,)
        weights, state = GroupWeights((), (weight,), weight_ch=peepholes), weight.new_empty(1, B, H)
        igates, layout = weight.new_empty(T, B, 1, 4 * H), SequenceLayout([False])
        layers = Layers(igates, [weights], state, state, layout)
        return pose_problem(layers, Wanted(), "sequence")[2]

    def extra_repr(self) -> str:
        """Return the sizes as ``nn.LSTM`` writes them."""
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, "
            f"peephole={self.peephole}"
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled stack, also one that is older than bases."""
        if "basis" not in state["_modules"]:
            state = {"basis": None} | state
        super().__setstate__(state)


Stack = LSTMStack  # its name in version 0.1, for pickles


class Encoder(LSTMStack):
    """LSTM layers that read frames and start from zero states.

    A decoder starts from an encoder's final state; a classifier reads its output of every step.
    """

    def forward(self, frames: Tensor) -> State:
        """Read frames (T, B, I); return the final (h, c) of every layer, each (L, B, H)."""
        _, state = lstm(
            self.inputs(frames),
            None,
            self.weights(),
            return_sequence=False,
            checkpoint_every=self.checkpoint_every,
            backend=self.backend,
        )
        return state

    def outputs(self, frames: Tensor, dropout: float = 0.0) -> Tensor:
        """Read frames (T, B, I); return the top layer's h of every step, (T, B, H).

        Args:
            frames: (T, B, I).
            dropout: probability of zeroing an output of the layers below, in training.
        """
        h, _ = lstm(
            self.inputs(frames),
            None,
            self.weights(),
            dropout=dropout,
            training=self.training,
            checkpoint_every=self.checkpoint_every,
            backend=self.backend,
        )
        return h


class Decoder(LSTMStack):
    """LSTM layers that start from a given state, with a linear read-out of the top layer.

    Args:
        frame_size: I of the frames that it emits and, if conditional, reads.
        conditional: from its second step on, read the frame before the one to be emitted.
        hidden_size, num_layers, peephole, backend, checkpoint_every, basis: as in
            :class:`LSTMStack`; the read-out emits coefficients in the basis too.
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
        basis: FrameBasis | None = None,
    ) -> None:
        options = (peephole, backend, checkpoint_every, basis)
        super().__init__(frame_size if conditional else 0, hidden_size, num_layers, *options)
        self.conditional = conditional
        self.readout = (
            nn.Linear(hidden_size, frame_size) if basis is None else Readout(hidden_size, basis)
        )


def make_decoder(
    decoder_type: DecoderType,
    frame_size: int,
    hidden_size: int,
    num_layers: int,
    *options: Any,
) -> Decoder | None:
    """Make a decoder of a type, None for "none"; ``options`` are those of :class:`LSTMStack`."""
    if decoder_type == "none":
        return None
    conditional = decoder_type == "conditional"
    return Decoder(frame_size, hidden_size, num_layers, conditional, *options)
