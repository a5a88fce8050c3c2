"""Compare fastlstm.LSTM with nn.LSTM on random shapes: slow shapes, and statistics of the ratios.

    python -m benchmarks.sweep [--count 100] [--seed 0] [--mode inference training]
        [--dtype float32 bfloat16] [--below 0.95] [--rounds 5] [--threads N] [--json FILE]

Sizes are log-uniform, and T is reduced so that a forward pass has at most 4 GFLOP. Some shapes have
two layers, some two directions. Both backend="cpu" and the choice of backend="auto" are compared
with nn.LSTM at its better number of threads. A ratio is nn.LSTM / fastlstm. The script prints every
row whose ratio with backend="cpu" is below --below, then a summary; the JSON file has all rows.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

import fastlstm
from benchmarks import common
from benchmarks.lstm import Pair, Shape
from benchmarks.timing import median_ms, paired_with_torch, ratio
from fastlstm.backends import select

LARGEST = {"T": 500, "B": 256, "I": 1024, "H": 2048}
GFLOP = 4.0  # the most of a forward pass
PERCENTILES = (5, 25, 50, 75, 95)


def draw(generator: random.Random) -> Shape:
    """Draw a random shape within the limits."""
    T, B, I, H = (round(math.exp(generator.uniform(0, math.log(n)))) for n in LARGEST.values())
    kind = generator.random()
    L, bidirectional = (2 if 0.8 <= kind < 0.9 else 1), kind >= 0.9
    a_step = Shape(1, B, I, H, L, bidirectional).gflop(False)
    T = max(1, min(T, int(GFLOP / a_step)))
    B = max(1, min(B, int(B * GFLOP / a_step)))
    return Shape(T, B, I, H, L, bidirectional)


def measure(shape: Shape, train: bool, dtype: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one row with both ratios, once if "auto" chooses "cpu"."""
    pair = Pair(shape, train, dtype)
    cpu = pair.copy(shape, "cpu")
    assert isinstance(pair.ours, fastlstm.LSTM)
    auto = select.name(select.select(pair.ours.problem(pair.x)))
    calls = {"fastlstm cpu": lambda: pair.call(cpu), "nn.LSTM": lambda: pair.call(pair.theirs)}
    if auto != "cpu":
        calls["fastlstm auto"] = lambda: pair.call(pair.ours)
    seconds, peer = paired_with_torch(calls, rounds, threads)
    seconds.setdefault("fastlstm auto", seconds["fastlstm cpu"])
    return {
        "shape": shape._asdict(),
        "mode": "training" if train else "inference",
        "dtype": dtype,
        "auto": auto,
        "ms": {name: median_ms(s) for name, s in seconds.items()},
        "nn.LSTM ms": median_ms(seconds[peer]),
        "nn.LSTM / cpu": ratio(seconds, peer, "fastlstm cpu"),
        "nn.LSTM / auto": ratio(seconds, peer, "fastlstm auto"),
    }


def line(shape: Shape, row: dict[str, Any]) -> str:
    """Format a row of the table."""
    sizes = ",".join(map(str, shape[:5])) + (",bi" if shape.bidirectional else "")
    text = f"{sizes:<24}{row['mode']:<10}{row['dtype']:<9}{row['nn.LSTM ms']:>11.3f}"
    text += f"{row['ms']['fastlstm cpu']:>10.3f}{row['nn.LSTM / cpu']:>7.2f}"
    return text + f"{row['nn.LSTM / auto']:>7.2f}  {row['auto']}"


def percentile(values: Sequence[float], percent: int) -> float:
    """Return a percentile, interpolated linearly between the two nearest values."""
    ordered = sorted(values)
    low, part = divmod((len(ordered) - 1) * percent / 100, 1)
    high = min(int(low) + 1, len(ordered) - 1)
    return ordered[int(low)] * (1 - part) + ordered[high] * part


def summary(rows: Sequence[dict[str, Any]], below: float) -> dict[str, float]:
    """Summarise the rows of one mode and dtype, for each of the two ratios."""
    result: dict[str, float] = {}
    for name in ("cpu", "auto"):
        ratios = [float(row[f"nn.LSTM / {name}"]) for row in rows]
        result |= {
            f"{name} count": len(ratios),
            f"{name} below": sum(value < below for value in ratios),
            f"{name} minimum": min(ratios),
            f"{name} geometric mean": statistics.geometric_mean(ratios),
            **{f"{name} {p}%": percentile(ratios, p) for p in PERCENTILES},
        }
    return result


def main() -> None:
    """Parse arguments, measure, print losses and a summary, and write JSON if asked to."""
    parser = common.parser(__doc__, rounds=5)
    parser.add_argument("--count", type=int, default=100, help="number of shapes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shapes")
    parser.add_argument("--mode", nargs="+", default=["inference", "training"])
    parser.add_argument("--dtype", nargs="+", default=["float32"])
    parser.add_argument("--below", type=float, default=0.95, help="limit of printed ratios")
    arguments = parser.parse_args()
    machine = common.begin(arguments, seed=arguments.seed)
    print(f"{'T,B,I,H,L':<24}{'':<19}{'nn.LSTM ms':>11}{'cpu ms':>10}", end="")
    print(f"{'ratio':>7}{'auto':>7}  is")
    generator = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []
    for _ in range(arguments.count):
        shape = draw(generator)
        for mode in arguments.mode:
            for dtype in arguments.dtype:
                train = mode == "training"
                row = measure(shape, train, dtype, arguments.rounds, arguments.threads)
                rows.append(row)
                if row["nn.LSTM / cpu"] < arguments.below:
                    print(line(shape, row), flush=True)
                common.write(arguments.json, machine, rows)
    for mode in arguments.mode:
        for dtype in arguments.dtype:
            chosen = [row for row in rows if (row["mode"], row["dtype"]) == (mode, dtype)]
            if chosen:
                print(f"{mode}, {dtype}, nn.LSTM / fastlstm:")
                numbers = summary(chosen, arguments.below)
                for name in ("cpu", "auto"):
                    shown = {k.removeprefix(name): v for k, v in numbers.items() if name in k}
                    print(f"  {name:<5}" + ",".join(f"{k} {v:.4g}" for k, v in shown.items()))


if __name__ == "__main__":
    main()
