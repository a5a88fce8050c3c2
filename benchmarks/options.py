"""The suite "options": the time of each option of a cell, beside a plain LSTM.

A ratio below 1 is what the option costs, with the time that its masks take to draw. The other peer
of an option is a loop of torch operations over the same cell: fastlstm's own backend "reference".
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import torch

import fastlstm

from .cases import Case, case, ways
from .contests import Contender, Contest, Effort, Results, relative_errors
from .shapes import Shape, parse

SHAPES = ("asr", "128,1,256,256")
OPTIONS: dict[str, dict[str, Any]] = {
    "recurrent_dropout": {"recurrent_dropout": 0.25},
    "weight_dropout": {"weight_dropout": 0.25},
    "zoneout": {"zoneout": (0.1, 0.1)},
    "forget_bias": {"forget_bias": 1.0},
    "cell_clip": {"cell_clip": 1.0},
    "layer_norm": {"layer_norm": True},
}
SEED = 0  # of the masks, in a check


def run(lstm: fastlstm.LSTM, x: torch.Tensor, dy: torch.Tensor) -> Results:
    """Return outputs, and in training mode the gradients of x and of every parameter."""
    y, (h, c) = lstm(x)
    if not lstm.training:
        return [y, h, c]
    return [y, h, c, *torch.autograd.grad(y, [x, *lstm.parameters()], dy)]


def check(
    lstm: fastlstm.LSTM, loop: fastlstm.LSTM, x: torch.Tensor, dy: torch.Tensor
) -> tuple[float, float]:
    """Return the errors of an option and of its loop, against the loop in float64."""
    exactly = fastlstm.LSTM.from_torch(loop, backend="reference").double()

    def seeded(module: fastlstm.LSTM, x: torch.Tensor, dy: torch.Tensor) -> Results:
        torch.manual_seed(SEED)
        return run(module, x, dy)

    wide = x.detach().double().requires_grad_(x.requires_grad)
    return relative_errors(
        seeded(lstm, x, dy), seeded(loop, x, dy), seeded(exactly, wide, dy.double())
    )


def contest(shape: Shape, way: dict[str, str], effort: Effort) -> Contest:
    """Return the contest of all options at one shape."""
    T, B, I, H = shape[:4]
    train, dtype = way["mode"] == "training", getattr(torch, way["dtype"])
    x = torch.randn(T, B, I).to(dtype).requires_grad_(train)
    dy = torch.randn(T, B, H).to(dtype)
    plain = fastlstm.LSTM(I, H, dtype=dtype).train(train)
    found = {"plain": Contender(lambda: run(plain, x, dy))}
    for name, arguments in OPTIONS.items():
        lstm = fastlstm.LSTM(I, H, dtype=dtype, **arguments).train(train)
        loop = fastlstm.LSTM.from_torch(lstm, backend="reference")
        found[name] = Contender(
            lambda lstm=lstm: run(lstm, x, dy),
            lambda lstm=lstm, loop=loop: check(lstm, loop, x, dy),
            ("plain", f"loop, {name}"),
        )
        found[f"loop, {name}"] = Contender(lambda loop=loop: run(loop, x, dy))
    return Contest(found, shape.flop(train), own=("plain",), grad=train)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the suite."""
    for text in options.shape or SHAPES:
        for way in ways(options, ["float32", "bfloat16"]):
            how = parse(text), way

            def build(effort: Effort, how: tuple[Shape, dict[str, str]] = how) -> Contest:
                return contest(*how, effort)

            yield case("options", {**how[0].params(), **way}, list(OPTIONS), build)
