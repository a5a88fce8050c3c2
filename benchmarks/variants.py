"""Measure the time of each option of lstm_sequence, relative to a call without it.

    python -m benchmarks.variants [--shape T,B,I,H ...] [--mode inference training]
        [--dtype float32 bfloat16] [--rounds 7] [--threads N] [--json FILE]

Each option does the same work as the call that it is compared with: all lengths are T, one
direction is reversed, and two groups, in the same or in opposite directions, are compared with two
calls of one group each. A ratio is option / compared call; above 1 the option takes more time. The
last two rows are loops of torch operations with peepholes, compared with fastlstm's peepholes:
there above 1 means that fastlstm is faster. Results, and in training all gradients, are checked
before the timing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import common
from benchmarks.lstm import Results, check
from benchmarks.timing import median_ms, paired, ratio
from fastlstm import lstm_sequence

SHAPES = ["100,32,256,256", "1000,8,128,128"]
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


def draw(shape: str, dtype: torch.dtype, train: bool) -> tuple[Weights, Tensor, Tensor]:
    """Draw weights of two groups, x (T, B, I), and the gradient dy (T, B, 2, H)."""
    T, B, I, H = map(int, shape.split(","))
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


def check_variant(variant: Variant, weights: Weights, x: Tensor, dy: Tensor, train: bool) -> None:
    """Raise AssertionError if an option errs much more than the call with the same results."""
    if variant.same is None:
        return

    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_(train)

    exactly = {name: [double(tensor) for tensor in w] for name, w in weights.items()}
    calls = 2 if variant.same in (TWO_CALLS, BOTH_WAYS) else 1
    check(
        run(variant.call, weights, x, dy, train),
        joined(run(variant.same, weights, x, dy, train), calls),
        joined(run(variant.same, exactly, double(x), dy.double(), train), calls),
    )


def measure(shape: str, train: bool, dtype: str, rounds: int) -> dict[str, Any]:
    """Measure all variants at one shape."""
    weights, x, dy = draw(shape, getattr(torch, dtype), train)
    variants = {n: v for n, v in VARIANTS.items() if dtype == "float32" or not v.float32_only}
    for variant in variants.values():
        check_variant(variant, weights, x, dy, train)
    calls = {
        name: lambda call=variant.call: run(call, weights, x, dy, train)
        for name, variant in variants.items()
    }
    seconds = paired(calls, rounds)
    return {
        "shape": shape,
        "mode": "training" if train else "inference",
        "dtype": dtype,
        "ms": {name: median_ms(s) for name, s in seconds.items()},
        "ratio": {
            f"{name} / {variant.compared}": ratio(seconds, name, variant.compared)
            for name, variant in variants.items()
            if variant.compared
        },
    }


def lines(row: dict[str, Any]) -> str:
    """Format a row: one line for each variant."""
    text = f"{row['shape']} {row['mode']} {row['dtype']}"
    for name, ms in row["ms"].items():
        text += f"\n  {name:<24}{ms:>10.3f} ms"
        compared = VARIANTS[name].compared
        if compared:
            text += f"{row['ratio'][f'{name} / {compared}']:>8.2f} / {compared}"
    return text


def main() -> None:
    """Parse arguments, measure, print, and write JSON if asked to."""
    parser = common.parser(__doc__)
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="T,B,I,H")
    parser.add_argument("--mode", nargs="+", default=["inference", "training"])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    machine = common.begin(arguments)
    rows = []
    for shape in arguments.shape:
        for mode in arguments.mode:
            for dtype in arguments.dtype:
                rows.append(measure(shape, mode == "training", dtype, arguments.rounds))
                print(lines(rows[-1]), flush=True)
                common.write(arguments.json, machine, rows)


if __name__ == "__main__":
    main()
