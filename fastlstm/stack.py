"""The LSTM stacks inside the video models: an encoder, and decoders that run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.functional import lstm
from fastlstm.sequence import lstm_sequence
from fastlstm.types import LSTMWeights, Problem

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
            weight.device.type, weight.dtype, T, B, 1, self.hidden_size, peephole=self.peephole
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


def decode(
    decoders: Sequence[Decoder], state: State, inputs: Sequence[Tensor | None], steps: int
) -> tuple[list[Tensor], list[State]]:
    """Run decoders of one shape over the same number of steps as groups of one sequence call.

    Args:
        decoders: G of them, alike in hidden_size, num_layers, peephole.
        state: (h, c) that all of them start from, each (L, B, H).
        inputs: what each reads, (steps, B, I); None for nothing at any step.
        steps: number of frames to emit.

    Returns:
        A read-out (steps, B, I) and a final state for each decoder.
    """
    G, B = len(decoders), state[0].shape[1]
    weights = [decoder.weights() for decoder in decoders]
    y: Tensor | None = None
    every = all(x is not None for x in inputs)
    hy, cy = [], []
    for layer in range(decoders[0].num_layers):
        group_weights = [w[layer] for w in weights]
        reads = every or y is not None
        if y is not None:
            input = y
        else:
            input = _frames(inputs) if every else _igates(group_weights, inputs, steps, B)
        y, h, c = lstm_sequence(
            input,
            [w.weight_hh for w in group_weights],
            state[0][layer].expand(G, -1, -1),
            state[1][layer].expand(G, -1, -1),
            weight_ih=[w.weight_ih for w in group_weights] if reads else None,
            bias_ih=[w.bias_ih for w in group_weights if w.bias_ih is not None] if reads else None,
            weight_ch=[w.weight_ch for w in group_weights if w.weight_ch is not None],
            checkpoint_every=decoders[0].checkpoint_every,
            backend=decoders[0].backend,
        )
        hy.append(h)
        cy.append(c)
    assert y is not None
    readouts = [decoder.readout(y[:, :, group]) for group, decoder in enumerate(decoders)]
    h, c = torch.stack(hy), torch.stack(cy)
    return readouts, [(h[:, group], c[:, group]) for group in range(G)]


def _frames(inputs: Sequence[Tensor | None]) -> Tensor:
    """What every decoder reads, (steps, B, G, I), or (steps, B, I) if there is one decoder."""
    tensors = [x for x in inputs if x is not None]
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors, dim=2)


def _igates(
    weights: Sequence[LSTMWeights], inputs: Sequence[Tensor | None], steps: int, B: int
) -> Tensor:
    """(steps, B, G, 4H); where no decoder reads anything, the biases with zero strides."""
    biases = [w.bias for w in weights if w.bias is not None]  # every layer of a Stack has one
    if all(x is None for x in inputs):
        return torch.stack(biases).expand(steps, B, -1, -1)
    groups = [
        bias.expand(steps, B, -1) if x is None else F.linear(x, w.weight_ih, bias)
        for w, bias, x in zip(weights, biases, inputs, strict=True)
    ]
    return torch.stack(groups, dim=2)


class Job(NamedTuple):
    """One decoder's work: the frames to emit and, if it is conditional, the true ones to read."""

    decoder: Decoder | None
    truth: Tensor | None
    """(steps, B, I) the frames to be emitted, read one step late; None: its own output."""
    steps: int


def run(
    jobs: Sequence[Job],
    state: State,
    to_frames: Callable[[Tensor], Tensor],
    sampling: float = 0.0,
) -> list[Tensor | None]:
    """The read-outs (steps, B, I) of decoder jobs; neighbours of one length run side by side.

    Args:
        jobs: any number; one without a decoder gives None.
        state: (h, c) that all start from, each (L, B, H).
        to_frames: from a read-out to the frame that a decoder reads next.
        sampling: probability that a conditional decoder reads its own output in place of the
            truth. Such a decoder, and one without truth, runs step by step.
    """
    readouts: list[Tensor | None] = [None] * len(jobs)
    equally_long: list[list[int]] = []  # no dict: a length that a compiler traces has no hash
    for index, (decoder, truth, steps) in enumerate(jobs):
        if decoder is None:
            continue
        if decoder.conditional and (truth is None or sampling > 0):
            readouts[index] = _closed_loop(decoder, truth, steps, state, to_frames, sampling)
        elif equally_long and jobs[equally_long[-1][0]].steps == steps:
            equally_long[-1].append(index)
        else:
            equally_long.append([index])
    for indices in equally_long:
        steps = jobs[indices[0]].steps
        decoders = [decoder for i in indices if (decoder := jobs[i].decoder) is not None]
        outputs, _ = decode(decoders, state, [_one_late(jobs[i]) for i in indices], steps)
        for index, output in zip(indices, outputs, strict=True):
            readouts[index] = output
    return readouts


def _one_late(job: Job) -> Tensor | None:
    """What a conditional decoder reads: nothing, which is a zero frame, then the truth so far."""
    if job.truth is None or job.decoder is None or not job.decoder.conditional:
        return None
    return torch.cat([torch.zeros_like(job.truth[:1]), job.truth[:-1]])


def _closed_loop(
    decoder: Decoder,
    truth: Tensor | None,
    steps: int,
    state: State,
    to_frames: Callable[[Tensor], Tensor],
    sampling: float,
) -> Tensor:
    readouts: list[Tensor] = []
    reads: Tensor | None = None
    for step in range(steps):
        if step:
            reads = to_frames(readouts[-1]).detach()
            if truth is not None:
                own = torch.rand(reads.shape[1], 1, device=reads.device) < sampling
                reads = torch.where(own, reads, truth[step - 1 : step])
        (readout,), (state,) = decode([decoder], state, [reads], 1)
        readouts.append(readout)
    return torch.cat(readouts)
