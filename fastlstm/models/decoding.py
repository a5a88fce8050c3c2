"""Decoders at work: side by side as groups of one sequence call, or step by step on their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.call import LSTMWeights
from fastlstm.models.encoder_decoder import Decoder, State
from fastlstm.op.run import lstm_sequence


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
            truth. Such a decoder, and one without truth, runs step by step. No gradient goes
            through what it reads, so for gradients it then runs once more, over all steps at once:
            one product a weight, where step by step each is summed up once a step.
    """
    readouts: list[Tensor | None] = [None] * len(jobs)
    reads: list[Tensor | None] = [None] * len(jobs)
    equally_long: list[list[int]] = []  # no dict: a length that a compiler traces has no hash
    for index, (decoder, truth, steps) in enumerate(jobs):
        if decoder is None:
            continue
        if decoder.conditional:
            emitted = truth
            if truth is None or sampling > 0:
                with torch.no_grad():
                    readout, emitted = _closed_loop(
                        decoder, truth, steps, state, to_frames, sampling
                    )
                if not torch.is_grad_enabled():
                    readouts[index] = readout
                    continue
            assert emitted is not None
            reads[index] = torch.cat([torch.zeros_like(emitted[:1]), emitted[: steps - 1]])
        if equally_long and jobs[equally_long[-1][0]].steps == steps:
            equally_long[-1].append(index)
        else:
            equally_long.append([index])
    for indices in equally_long:
        steps = jobs[indices[0]].steps
        decoders = [decoder for i in indices if (decoder := jobs[i].decoder) is not None]
        outputs, _ = decode(decoders, state, [reads[i] for i in indices], steps)
        for index, output in zip(indices, outputs, strict=True):
            readouts[index] = output
    return readouts


def _closed_loop(
    decoder: Decoder,
    truth: Tensor | None,
    steps: int,
    state: State,
    to_frames: Callable[[Tensor], Tensor],
    sampling: float,
) -> tuple[Tensor, Tensor]:
    """The read-outs of a decoder and the frame that it reads after each, both (steps, B, I)."""
    readouts: list[Tensor] = []
    frames: list[Tensor] = []
    for step in range(steps):
        (readout,), (state,) = decode([decoder], state, [frames[-1] if step else None], 1)
        frame = to_frames(readout)
        if truth is not None:
            own = torch.rand(frame.shape[1], 1, device=frame.device) < sampling
            frame = torch.where(own, frame, truth[step : step + 1])
        readouts.append(readout)
        frames.append(frame)
    return torch.cat(readouts), torch.cat(frames)
