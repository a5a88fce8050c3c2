"""The suite "packed": sequences of different lengths, whose time should follow the valid steps.

The lengths are uniform in 1..T, and I = H. fastlstm runs on a PackedSequence and on a padded batch
with ``lengths``; both are compared with a full batch that has as many valid steps ("full"), beside
which 1 means that no time is lost on padding, and with nn.LSTM on the PackedSequence.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm

from .cases import Case, case, ways
from .contests import Contender, Contest, Effort, Results, relative_errors
from .shapes import Shape, parse

SHAPES = ("200,32,256,256", "200,32,512,512")


def contest(shape: Shape, train: bool, effort: Effort) -> Contest:
    """Return the contest of a batch of random lengths."""
    ours, theirs = shape.module(fastlstm.LSTM), shape.module(nn.LSTM)
    ours.load_state_dict(theirs.state_dict())
    double = shape.module(nn.LSTM).double()
    double.load_state_dict(theirs.state_dict())
    lengths = torch.randint(1, shape.T + 1, (shape.B,))
    lengths[0] = shape.T
    x = torch.randn(shape.T, shape.B, shape.I)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    full = torch.randn(round(int(lengths.sum()) / shape.B), shape.B, shape.I)

    def call(module: nn.Module, *args: Any, **options: Any) -> Callable[[], Results]:
        def run() -> Results:
            with torch.set_grad_enabled(train):
                output = module(*args, **options)[0]
                data = output.data if isinstance(output, PackedSequence) else output
                wanted = list(module.parameters()) if train else []
                return [data, *(torch.autograd.grad(data.sum(), wanted) if train else [])]

        return run

    def padded(found: Results) -> Results:
        return [pad_packed_sequence(packed._replace(data=found[0]))[0], *found[1:]]

    of_theirs, exact = call(theirs, packed)(), call(double, packed.to(torch.float64))()
    of_packed, of_lengths = call(ours, packed), call(ours, x, lengths=lengths)
    return Contest(
        {
            "packed": Contender(
                of_packed,
                lambda: relative_errors(of_packed(), of_theirs, exact),
                ("nn.LSTM", "full"),
            ),
            "lengths": Contender(
                of_lengths,
                lambda: relative_errors(of_lengths(), padded(of_theirs), padded(exact)),
                ("nn.LSTM", "full"),
            ),
            "full": Contender(call(ours, full)),
            "nn.LSTM": Contender(call(theirs, packed), threads=(1, effort.threads)),
        },
        own=("full",),
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the suite."""
    for text in options.shape or SHAPES:
        for way in ways(options, ["float32"]):
            how = parse(text), way["mode"] == "training"

            def build(effort: Effort, how: tuple[Shape, bool] = how) -> Contest:
                return contest(*how, effort)

            yield case("packed", {**how[0].params(), **way}, ["packed", "lengths"], build)
