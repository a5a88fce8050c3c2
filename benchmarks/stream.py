"""Time a step of an LSTM: a stream with weights of each type, against calls of one step.

python -m benchmarks.stream --sizes 4 64 256 1024 --batch 1
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import nn

import fastlstm
from benchmarks.timing import paired

TYPES = ("float32", "bfloat16", "int8")


def contenders(H: int, B: int) -> dict[str, Callable[[], object]]:
    """Return functions that run one step each, with I = H and one layer."""
    lstm = fastlstm.LSTM(H, H).eval()
    x, state = torch.randn(B, H), (torch.zeros(1, B, H), torch.zeros(1, B, H))
    sequence = x.unsqueeze(0)
    theirs = nn.LSTM(H, H).eval()
    calls: dict[str, Callable[[], object]] = {
        "nn.LSTM": lambda: theirs(sequence, state),
        "fastlstm.LSTM": lambda: lstm(sequence, state),
    }
    for dtype in TYPES:
        step = lstm.stream(B, dtype).step
        calls[f"stream {dtype}"] = lambda step=step: step(x)
    return calls


def main() -> None:
    """Print microseconds a step, the medians of rounds in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4, 64, 128, 256, 512, 1024])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for H in options.sizes:
        with torch.no_grad():
            seconds = paired(contenders(H, options.batch), options.rounds)
        row = (f"{name} {1e6 * statistics.median(s):.2f}" for name, s in seconds.items())
        print(f"H = {H}, B = {options.batch}:", ", ".join(row), flush=True)


if __name__ == "__main__":
    main()
