"""fastlstm.LSTM beside nn.LSTM, and a peephole LSTM beside a loop of torch operations.

    python -m benchmarks.lstm [--shape T,B,I,H ...] [--rounds N] [--threads N] [--json FILE]

Every shape is run for inference and for training (forward and backward). Results are compared
before they are timed; the contenders take turns in one process; ratios are medians over rounds.
Above 1 means that fastlstm is faster. nn.LSTM has no peepholes, so the loop is what PyTorch offers
for them.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm
from benchmarks.timing import median_ms, paired, ratio

SHAPES = ["128,1,256,256", "100,32,256,256", "1000,8,128,128", "100,32,512,512", "10,64,4096,512"]
LOOP_SHAPES = ["100,32,256,256", "1000,8,128,128"]


def peephole_loop(lstm: fastlstm.LSTM, x: Tensor, project_first: bool = False) -> Tensor:
    """A peephole layer in PyTorch: its cell, a step at a time.

    With ``project_first`` the input is projected for all steps at once before the loop, which
    spares it half of its small matrix products.
    """
    w_ci, w_cf, w_co = lstm.weight_ch_l0.chunk(3)
    h = c = x.new_zeros(x.shape[1], lstm.hidden_size)
    y = []
    if project_first:
        x = F.linear(x, lstm.weight_ih_l0, lstm.bias_ih_l0)
    for step in x.unbind():
        if not project_first:
            step = F.linear(step, lstm.weight_ih_l0, lstm.bias_ih_l0)
        gates = step + F.linear(h, lstm.weight_hh_l0, lstm.bias_hh_l0)
        i, f, g, o = gates.chunk(4, dim=1)
        c = (f + w_cf * c).sigmoid() * c + (i + w_ci * c).sigmoid() * g.tanh()
        h = (o + w_co * c).sigmoid() * c.tanh()
        y.append(h)
    return torch.stack(y)


def check(name: str, ours: Tensor, theirs: Tensor) -> None:
    """Refuse to time what does not compute the same thing (float32, up to 1,000 steps)."""
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4, msg=lambda m: f"{name}: {m}")


def contenders(
    T: int, B: int, input_size: int, H: int, loop: bool
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Callables from x (T, B, I) to y (T, B, H), checked against each other."""
    theirs = nn.LSTM(input_size, H)
    ours = fastlstm.LSTM.from_torch(theirs)
    peephole = fastlstm.LSTM(input_size, H, peephole=True)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "nn.LSTM": lambda x: theirs(x)[0],
        "fastlstm": lambda x: ours(x)[0],
        "fastlstm peephole": lambda x: peephole(x)[0],
    }
    if loop:
        calls["loop"] = lambda x: peephole_loop(peephole, x)
        calls["loop, projected first"] = lambda x: peephole_loop(peephole, x, project_first=True)
    x = torch.randn(T, B, input_size)
    with torch.no_grad():
        check("fastlstm", calls["fastlstm"](x), calls["nn.LSTM"](x))
        if loop:
            for name in ("loop", "loop, projected first"):
                check(name, calls[name](x), calls["fastlstm peephole"](x))
    return calls


def measure(shape: str, train: bool, rounds: int) -> dict[str, object]:
    """One row of the table."""
    T, B, input_size, H = map(int, shape.split(","))
    calls = contenders(T, B, input_size, H, loop=shape in LOOP_SHAPES)
    x = torch.randn(T, B, input_size, requires_grad=train)
    dy = torch.randn(T, B, H)

    def run(call: Callable[[Tensor], Tensor]) -> None:
        with torch.set_grad_enabled(train):
            y = call(x)
            if train:
                y.backward(dy)

    seconds = paired({name: lambda c=c: run(c) for name, c in calls.items()}, rounds)
    row: dict[str, object] = {"shape": shape, "mode": "training" if train else "inference"}
    row["ms"] = {name: median_ms(s) for name, s in seconds.items()}
    row["nn.LSTM / fastlstm"] = ratio(seconds, "nn.LSTM", "fastlstm")
    row["fastlstm peephole / fastlstm"] = ratio(seconds, "fastlstm peephole", "fastlstm")
    for name in ("loop", "loop, projected first"):
        if name in seconds:
            row[f"{name} / fastlstm peephole"] = ratio(seconds, name, "fastlstm peephole")
    return row


def main() -> None:
    """Parse arguments, measure, print a table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="T,B,I,H")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", help="file to write the rows to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    isa = fastlstm.backends.cpu.isas()[0]
    print(
        f"{platform.machine()} {isa}, {arguments.threads} threads, float32, torch",
        torch.__version__,
    )
    print(f"{'T,B,I,H':<16}{'':<11}{'nn.LSTM ms':>12}{'fastlstm ms':>12}{'ratio':>8}", end="")
    print(f"{'peephole ms':>13}{'over plain':>11}{'loop ms':>10}{'ratio':>8}", end="")
    print(f"{'proj. ms':>10}{'ratio':>8}")
    rows = []
    for shape in arguments.shape:
        for train in (False, True):
            row = measure(shape, train, arguments.rounds)
            rows.append(row)
            ms = row["ms"]
            line = f"{shape:<16}{row['mode']:<11}{ms['nn.LSTM']:>12.2f}{ms['fastlstm']:>12.2f}"
            line += f"{row['nn.LSTM / fastlstm']:>8.2f}{ms['fastlstm peephole']:>13.2f}"
            line += f"{row['fastlstm peephole / fastlstm']:>11.2f}"
            for name in ("loop", "loop, projected first"):
                if name in ms:
                    line += f"{ms[name]:>10.1f}{row[f'{name} / fastlstm peephole']:>8.1f}"
            print(line, flush=True)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"torch": torch.__version__, "isa": isa, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
