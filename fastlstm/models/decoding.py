"""Runs decoders: several in one call of the sequence op, or one of them step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlstm.call import LSTMWeights
from fastlstm.functional import lstm_sequence
from fastlstm.models.basis import Readout
from fastlstm.models.encoder_decoder import Decoder, State
from fastlstm.models.losses import FrameType
from fastlstm.op.closed_loop import run_closed_loop
from fastlstm.op.closed_loop_steps import ClosedLoop, ClosedLoopOptions


class VideoOutput(NamedTuple):
    """The read-outs of a video model's decoders and the encoder's state: what ``forward`` returns.

    A read-out has logits for binary frames and values for real ones.

    Attributes:
        reconstruction: (T, B, I) in the order of emission: step s is frame T-1-s. None for a model
            without the reconstruction decoder.
        future: (steps, B, I) in the order of time. None for a model without the future decoder.
        state: the encoder's final (h, c), each (L, B, H): the representation of the video.

    Example:
        >>> model = fastlstm.LSTMFuturePredictor(16, 8)
        >>> output = model(torch.rand(6, 2, 16), steps=4)
        >>> output.reconstruction, output.future.shape
        (None, torch.Size([4, 2, 16]))
    """

    reconstruction: Tensor | None
    future: Tensor | None
    state: State


def check_steps(steps: int) -> None:
    """Check the number of frames that a decoder is to emit; ValueError if it is below 1."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")


def check_feedback(sampling: float, feedback_gradient: float) -> None:
    """Check what a model is told about the frames that its decoders emitted and read.

    Raises:
        ValueError: a number outside [0, 1].
    """
    if not 0.0 <= sampling <= 1.0:
        raise ValueError(f"sampling: expected a probability in 0..1, got {sampling}")
    if not 0.0 <= feedback_gradient <= 1.0:
        raise ValueError(f"feedback_gradient: expected a factor in 0..1, got {feedback_gradient}")


class DecoderRun(NamedTuple):
    """A decoder, the frames that it may read, and how many it emits."""

    decoder: Decoder | None
    """None for a decoder that the model does not have."""
    true_frames: Tensor | None
    """(steps, B, I) the frames to be emitted, which a conditional decoder reads one step late;
    None: it reads its own output."""
    steps: int


def run_decoders(
    runs: Sequence[DecoderRun],
    state: State,
    frame_type: FrameType,
    sampling: float = 0.0,
    feedback_gradient: float = 0.0,
) -> list[Tensor | None]:
    """Run decoders from one state; neighbours of equal length run in one call of the sequence op.

    A conditional decoder that reads its own output runs step by step, see
    :mod:`fastlstm.op.closed_loop`.

    Args:
        runs: one for each decoder.
        state: (h, c) that all of them start from, each (L, B, H).
        frame_type: how a read-out becomes the frame that a decoder reads next.
        sampling: probability, per row and step, that a conditional decoder reads its own output in
            place of the true frame.
        feedback_gradient: factor on the gradient that goes through a frame which the decoder
            emitted and then read; 0: none goes through it.

    Returns:
        A read-out (steps, B, I) for each run, None where there is no decoder.

    Raises:
        ValueError: ``sampling`` or ``feedback_gradient`` outside [0, 1].
    """
    check_feedback(sampling, feedback_gradient)
    readouts: list[Tensor | None] = [None] * len(runs)
    inputs: list[Tensor | None] = [None] * len(runs)
    groups: list[list[int]] = []  # no dict by length: a length that a compiler traces has no hash
    for index, run in enumerate(runs):
        decoder, frames, steps = run
        if decoder is None:
            continue
        if decoder.conditional:
            if frames is None or sampling > 0:
                loop = _closed_loop(run, state, frame_type, sampling, feedback_gradient)
                readouts[index] = run_closed_loop(loop, decoder.backend)
                continue
            inputs[index] = torch.cat([torch.zeros_like(frames[:1]), frames[: steps - 1]])
        if groups and runs[groups[-1][0]].steps == steps:
            groups[-1].append(index)
        else:
            groups.append([index])
    for indices in groups:
        decoders = [decoder for i in indices if (decoder := runs[i].decoder) is not None]
        steps = runs[indices[0]].steps
        outputs, _ = decode(decoders, state, [inputs[i] for i in indices], steps)
        for index, output in zip(indices, outputs, strict=True):
            readouts[index] = output
    return readouts


def decode(
    decoders: Sequence[Decoder], state: State, inputs: Sequence[Tensor | None], steps: int
) -> tuple[list[Tensor], list[State]]:
    """Run decoders of one shape over equally many steps, as groups of one call of the sequence op.

    Args:
        decoders: G of them, with equal hidden_size, num_layers and peephole.
        state: (h, c) that all of them start from, each (L, B, H).
        inputs: (steps, B, I) the frames that each decoder reads; None for one that reads nothing.
        steps: number of frames to emit.

    Returns:
        A read-out (steps, B, I) and a final state for each decoder.
    """
    G, first = len(decoders), decoders[0]
    layers = list(zip(*(decoder.weights() for decoder in decoders), strict=True))
    inputs = [x if x is None else d.inputs(x) for d, x in zip(decoders, inputs, strict=True)]
    x, is_igates = _input_of_first_layer(layers[0], inputs, steps, state[0].shape[1])
    hy, cy = [], []
    for layer, weights in enumerate(layers):
        w_ih, w_hh, b_ih, _, w_ch, _ = zip(*weights, strict=True)
        x, h, c = lstm_sequence(
            x,
            w_hh,
            state[0][layer].expand(G, -1, -1),
            state[1][layer].expand(G, -1, -1),
            weight_ih=None if is_igates else w_ih,
            bias_ih=None if is_igates else b_ih,
            weight_ch=w_ch if first.peephole else None,
            checkpoint_every=first.checkpoint_every,
            backend=first.backend,
        )
        is_igates = False
        hy.append(h)
        cy.append(c)
    readouts = [decoder.readout(x[:, :, group]) for group, decoder in enumerate(decoders)]
    h, c = torch.stack(hy), torch.stack(cy)
    return readouts, [(h[:, group], c[:, group]) for group in range(G)]


def _input_of_first_layer(
    weights: Sequence[LSTMWeights], inputs: Sequence[Tensor | None], steps: int, B: int
) -> tuple[Tensor, bool]:
    """Return what layer 0 reads, and whether that is igates, inputs that the weights multiplied.

    Frames (steps, B, G, I), or (steps, B, I) of a single decoder, if all decoders read; else
    igates (steps, B, G, 4H), which are the biases alone for a decoder that reads nothing.
    """
    tensors = [x for x in inputs if x is not None]
    if len(tensors) == len(inputs):
        return (tensors[0] if len(tensors) == 1 else torch.stack(tensors, dim=2)), False
    biases = [w.bias_ih for w in weights if w.bias_ih is not None]  # every layer of a stack has one
    if not tensors:
        return torch.stack(biases).expand(steps, B, -1, -1), True  # steps and rows of stride 0
    groups = [
        bias.expand(steps, B, -1) if x is None else F.linear(x, w.weight_ih, bias)
        for w, bias, x in zip(weights, biases, inputs, strict=True)
    ]
    return torch.stack(groups, dim=2), True


def _closed_loop(
    run: DecoderRun, state: State, frame_type: FrameType, sampling: float, feedback_gradient: float
) -> ClosedLoop:
    """Describe a decoder that reads its own frames, at random where there are true ones."""
    decoder, true_frames, steps = run
    assert decoder is not None
    own, readout = None, decoder.readout
    if true_frames is not None and sampling < 1:
        random = torch.rand(steps, true_frames.shape[1], 1, device=true_frames.device)
        own = random < sampling
    # A module in the place of the linear layer, or hooks on it, must be called.
    is_plain = type(readout) in (nn.Linear, Readout) and not (
        readout._forward_hooks
        or readout._forward_pre_hooks
        or readout._backward_hooks
        or readout._backward_pre_hooks
    )
    options = ClosedLoopOptions(
        steps,
        is_binary=frame_type == "binary",
        feedback_gradient=feedback_gradient,
        basis=decoder.basis,
        readout=None if is_plain else readout,
    )
    weight, bias = (readout.weight, readout.bias) if is_plain else (None, None)
    true_frames = None if own is None else true_frames
    return ClosedLoop(*state, decoder.weights(), weight, bias, true_frames, own, options)
