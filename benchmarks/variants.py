"""The suite "variants": the time of each option of lstm_sequence, beside a call without it.

Each option does the same work as the call that it is compared with: all lengths are T, one
direction is reversed, and two groups, in the same or in opposite directions, are compared with two
calls of one group each. A ratio below 1 is what the option costs. Loops of torch operations with
peepholes are peers of fastlstm's peepholes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm import lstm_sequence

from .cases import Case, case, ways
from .contests import Contender, Contest, Effort, Results, relative_errors
from .shapes import Shape, parse

SHAPES = ("asr", "long")
Weights = dict[str, list[Tensor]]  # by the names of lstm_sequence, one tensor per group
Call = Callable[[Weights, Tensor], list[Tensor]]  # returns outputs (T, B, groups, H)


class Variant(NamedTuple):
    """An option, the variant it is compared with, and a call with the same results."""

    call: Call
    compared: str = ""
    same: Call | None = None
    float32_only: bool = False


def fused(
    groups: Sequence[int] = (0,),
    reverse: Sequence[bool] = (False,),
    peephole: bool = False,
    lengths: bool = False,
) -> Call:
    """Return a call of lstm_sequence with some of the groups and options."""

    def call(weights: Weights, x: Tensor) -> list[Tensor]:
        chosen: dict[str, Any] = {
            name: [entries[g] for g in groups] for name, entries in weights.items()
        }
        if not peephole:
            del chosen["weight_ch"]
        ends = torch.full(x.shape[1:2], x.shape[0]) if lengths else None
        return [lstm_sequence(x, **chosen, reverse=reverse, lengths=ends)[0]]

    return call


def both(first: Call, second: Call) -> Call:
    """Return a function that makes two calls."""
    return lambda weights, x: first(weights, x) + second(weights, x)


def flipped(weights: Weights, x: Tensor) -> list[Tensor]:
    """Run the reversed direction by flipping the input and the output."""
    return [PLAIN(weights, x.flip(0))[0].flip(0)]


def peephole_loop(project_first: bool) -> Call:
    """Return a peephole LSTM layer written as a loop over the steps in PyTorch.

    With ``project_first`` the input of all steps is projected at once before the loop, which
    removes half of the small matrix products in it.
    """

    def call(weights: Weights, x: Tensor) -> list[Tensor]:
        weight_ih, weight_hh, bias_ih, bias_hh, weight_ch = (
            weights[n][0] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch")
        )
        w_ci, w_cf, w_co = weight_ch.chunk(3)
        h = c = x.new_zeros(x.shape[1], weight_hh.shape[1])
        y = []
        if project_first:
            x = F.linear(x, weight_ih, bias_ih)
        for step in x.unbind():
            igates = step if project_first else F.linear(step, weight_ih, bias_ih)
            i, f, g, o = (igates + F.linear(h, weight_hh, bias_hh)).chunk(4, dim=1)
            c = (f + w_cf * c).sigmoid() * c + (i + w_ci * c).sigmoid() * g.tanh()
            h = (o + w_co * c).sigmoid() * c.tanh()
            y.append(h)
        return [torch.stack(y)[:, :, None]]

    return call


PLAIN = fused()
REVERSE = fused(reverse=(True,))
PEEPHOLES = fused(peephole=True)
TWO_CALLS = both(PLAIN, fused((1,)))
BOTH_WAYS = both(PLAIN, fused((1,), (True,)))
VARIANTS = {
    "plain": Variant(PLAIN),
    "peepholes": Variant(PEEPHOLES, "plain", peephole_loop(False)),
    "lengths": Variant(fused(lengths=True), "plain", PLAIN),
    "reverse": Variant(REVERSE, "plain", flipped),
    "two calls": Variant(TWO_CALLS),
    "groups": Variant(fused((0, 1), (False, False)), "two calls", TWO_CALLS),
    "two calls, both ways": Variant(BOTH_WAYS),
    "bidirectional": Variant(fused((0, 1), (False, True)), "two calls, both ways", BOTH_WAYS),
    "loop": Variant(peephole_loop(False), "peepholes", PEEPHOLES, True),
    "loop, projected first": Variant(peephole_loop(True), "peepholes", PEEPHOLES, True),
}


def run(call: Call, weights: Weights, x: Tensor, dy: Tensor, train: bool) -> Results:
    """Return outputs, and with ``train`` the gradients of x and of every weight that is used."""
    with torch.set_grad_enabled(train):
        outputs = call(weights, x)
        if not train:
            return outputs
        inputs = [x, *(tensor for entries in weights.values() for tensor in entries)]
        dys = dy.split([y.shape[2] for y in outputs] + [2 - sum(y.shape[2] for y in outputs)], 2)
        gradients = torch.autograd.grad(outputs, inputs, dys[: len(outputs)], allow_unused=True)
        return [*outputs, *(gradient for gradient in gradients if gradient is not None)]


def joined(results: Results, outputs: int) -> Results:
    """Concatenate the first ``outputs`` results along the groups."""
    return [torch.cat(results[:outputs], 2), *results[outputs:]]


def draw(shape: Shape, dtype: torch.dtype, train: bool) -> tuple[Weights, Tensor, Tensor]:
    """Draw weights of two groups, x (T, B, I), and the gradient dy (T, B, 2, H)."""
    T, B, I, H = shape[:4]
    rows = {"weight_ih": (4 * H, I), "weight_hh": (4 * H, H), "bias_ih": (4 * H,)}
    rows |= {"bias_hh": (4 * H,), "weight_ch": (3 * H,)}
    weights = {
        name: [
            torch.empty(size).uniform_(-(H**-0.5), H**-0.5).to(dtype).requires_grad_(train)
            for _ in range(2)
        ]
        for name, size in rows.items()
    }
    x = torch.randn(T, B, I).to(dtype).requires_grad_(train)
    return weights, x, torch.randn(T, B, 2, H).to(dtype)


def check_variant(
    variant: Variant, weights: Weights, x: Tensor, dy: Tensor, train: bool
) -> tuple[float, float]:
    """Return the errors of an option and of the call with the same results."""
    same = variant.same or variant.call

    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(train)

    exactly = {name: [double(tensor) for tensor in w] for name, w in weights.items()}
    calls = 2 if same in (TWO_CALLS, BOTH_WAYS) else 1
    ours = run(variant.call, weights, x, dy, train)
    return relative_errors(
        joined(ours, calls) if variant.same is None else ours,
        joined(run(same, weights, x, dy, train), calls),
        joined(run(same, exactly, double(x), dy.double(), train), calls),
    )


def contest(shape: Shape, way: dict[str, str], effort: Effort) -> Contest:
    """Return the contest of all variants at one shape."""
    train, dtype = way["mode"] == "training", way["dtype"]
    weights, x, dy = draw(shape, getattr(torch, dtype), train)
    found = {}
    for name, variant in VARIANTS.items():
        if dtype == "float32" or not variant.float32_only:
            loops = [n for n, v in VARIANTS.items() if v.compared == name and v.float32_only]
            found[name] = Contender(
                lambda call=variant.call: run(call, weights, x, dy, train),
                lambda v=variant: check_variant(v, weights, x, dy, train),
                (variant.compared, *loops) if variant.compared else (),
                (1, effort.threads) if variant.float32_only else (),
            )
    own = [name for name, variant in VARIANTS.items() if not variant.float32_only]
    return Contest(found, shape.flop(train), own=tuple(own))


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the suite."""
    for text in options.shape or SHAPES:
        for way in ways(options, ["float32", "bfloat16"]):
            how = parse(text), way

            def build(effort: Effort, how: tuple[Shape, dict[str, str]] = how) -> Contest:
                return contest(*how, effort)

            ours = [n for n, v in VARIANTS.items() if v.compared and not v.float32_only]
            yield case("variants", {**how[0].params(), **way}, ours, build)
