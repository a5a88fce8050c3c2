"""Measure the time of one call of a small LSTM, in microseconds.

    python -m benchmarks.call [--hidden 4 128 512] [--rounds 7] [--threads N] [--json FILE]

The input is one step of one sequence with I = H, so the overhead of a call dominates. The table has
fastlstm.LSTM, before and after ``freeze()``, beside nn.LSTM, and fastlstm.LSTMCell beside
nn.LSTMCell. torch's modules run on all threads and on one, and their better time counts. "forward"
records for a backward pass that does not follow. A ratio is torch / fastlstm; above 1 fastlstm is
faster.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fastlstm
from benchmarks import common
from benchmarks.lstm import check, run
from benchmarks.timing import median_ms, paired_with_torch, ratio

MODES = ("inference", "forward", "forward and backward")
KINDS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "LSTM": (fastlstm.LSTM, nn.LSTM),
    "LSTMCell": (fastlstm.LSTMCell, nn.LSTMCell),
}


def measure(kind: str, H: int, mode: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one row of the table."""
    modules = [cls(H, H) for cls in KINDS[kind]]
    modules[0].load_state_dict(modules[1].state_dict())
    x, dy = (torch.randn(*([1] * (kind == "LSTM")), 1, H) for _ in range(2))
    train = mode == "forward and backward"
    leaf = x.clone().requires_grad_(train)
    ours, theirs = (run(module, leaf, dy, train, False) for module in modules)
    double = KINDS[kind][1](H, H).double()
    double.load_state_dict(modules[1].state_dict())
    check(ours, theirs, run(double, leaf.detach().double().requires_grad_(train), dy, train, False))

    def call(module: nn.Module) -> Callable[[], object]:
        if not train:
            return lambda: module(x)
        inputs = [leaf, *module.parameters()]
        return lambda: torch.autograd.grad(module(leaf)[0], inputs, dy)

    calls = {"fastlstm": call(modules[0])}
    if kind == "LSTM" and mode == "inference":
        frozen = fastlstm.LSTM(H, H)
        frozen.load_state_dict(modules[1].state_dict())
        calls["fastlstm frozen"] = call(frozen.freeze())
        check(run(frozen, x, dy, False, False), theirs, run(double, x.double(), dy, False, False))
    calls[f"nn.{kind}"] = call(modules[1])
    with torch.set_grad_enabled(mode != "inference"):
        seconds, peer = paired_with_torch(calls, rounds, threads)
    row: dict[str, Any] = {"kind": kind, "H": H, "mode": mode, "torch at its better": peer}
    row["us"] = {name: 1e3 * median_ms(s) for name, s in seconds.items()}
    row["torch us"] = 1e3 * median_ms(seconds[peer])
    row["ratio"] = {n: ratio(seconds, peer, n) for n in seconds if n.startswith("fastlstm")}
    return row


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    text = f"{row['kind']:<10}{row['H']:>5}  {row['mode']:<22}{row['torch us']:>10.1f}"
    for name in row["ratio"]:
        text += f"{row['us'][name]:>12.1f}{row['ratio'][name]:>7.2f}"
    return text


def main() -> None:
    """Parse arguments, measure, print a table, and write JSON if asked to."""
    parser = common.parser(__doc__)
    parser.add_argument("--hidden", nargs="+", type=int, default=[4, 128, 512], help="H = I")
    arguments = parser.parse_args()
    machine = common.begin(arguments)
    print(f"{'':<10}{'H':>5}  {'':<22}{'torch us':>10}{'fastlstm us':>12}{'ratio':>7}", end="")
    print(f"{'frozen us':>12}{'ratio':>7}")
    rows = []
    for kind in KINDS:
        for H in arguments.hidden:
            for mode in MODES:
                rows.append(measure(kind, H, mode, arguments.rounds, arguments.threads))
                print(line(rows[-1]), flush=True)
                common.write(arguments.json, machine, rows)


if __name__ == "__main__":
    main()
