"""Measure batches of sequences of different lengths: time should be proportional to valid steps.

    python -m benchmarks.packed [--steps 200] [--batch 32] [--hidden 256 512] [--rounds 7]
        [--threads N] [--json FILE]

The lengths are uniform in 1..T, and I = H. fastlstm runs on a PackedSequence and on a padded batch
with ``lengths``; both times are divided by that of a full batch with as many valid steps, so that 1
means that no time is lost on padding. The last ratio is the time of nn.LSTM on the PackedSequence,
at its better number of threads, over that of fastlstm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm
from benchmarks import common
from benchmarks.timing import median_ms, paired_with_torch, ratio


def check(ours: nn.Module, theirs: nn.Module, packed: PackedSequence, x: torch.Tensor) -> None:
    """Raise AssertionError unless both calls return what nn.LSTM returns."""
    expected = theirs(packed)[0]
    lengths = pad_packed_sequence(expected)[1]
    torch.testing.assert_close(ours(packed)[0].data, expected.data, rtol=1e-4, atol=1e-5)
    padded = ours(x, lengths=lengths)[0]
    torch.testing.assert_close(padded, pad_packed_sequence(expected)[0], rtol=1e-4, atol=1e-5)


def measure(T: int, B: int, H: int, train: bool, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one row of the table."""
    ours, theirs = fastlstm.LSTM(H, H), nn.LSTM(H, H)
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    steps = int(lengths.sum())
    x = torch.randn(T, B, H)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    as_many = torch.randn(round(steps / B), B, H)
    check(ours, theirs, packed, x)

    def call(module: nn.Module, *args: Any, **options: Any) -> Callable[[], object]:
        def run() -> None:
            output = module(*args, **options)[0]
            if train:
                data = output.data if isinstance(output, PackedSequence) else output
                torch.autograd.grad(data.sum(), list(module.parameters()))

        return run

    calls = {
        "padded": call(ours, as_many),
        "packed": call(ours, packed),
        "lengths": call(ours, x, lengths=lengths),
        "nn.LSTM packed": call(theirs, packed),
    }
    with torch.set_grad_enabled(train):
        seconds, peer = paired_with_torch(calls, rounds, threads)
    return {
        "T": T,
        "B": B,
        "H": H,
        "steps": steps,
        "mode": "training" if train else "inference",
        "ms": {name: median_ms(seconds[name]) for name in seconds},
        "packed / padded": ratio(seconds, "packed", "padded"),
        "lengths / padded": ratio(seconds, "lengths", "padded"),
        "nn / ours": ratio(seconds, peer, "packed"),
    }


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--hidden", type=int, nargs="+", default=[256, 512])
    arguments = options.parse_args()
    machine = common.begin(arguments)
    ratios = ("packed / padded", "lengths / padded", "nn / ours")
    print(f"{'T, B, H':>14} {'mode':>10} {'packed ms':>10}", *(f"{name:>17}" for name in ratios))
    rows: list[dict[str, Any]] = []
    for H in arguments.hidden:
        for train in (False, True):
            row = measure(
                arguments.steps, arguments.batch, H, train, arguments.rounds, arguments.threads
            )
            rows.append(row)
            sizes = f"{row['T']}, {row['B']}, {H}"
            print(
                f"{sizes:>14} {row['mode']:>10} {row['ms']['packed']:>10.2f}",
                *(f"{row[name]:>17.2f}" for name in ratios),
                flush=True,
            )
            common.write(arguments.json, machine, rows)


if __name__ == "__main__":
    main()
