"""Measure time per step and peak memory of training on long sequences, with checkpoints or without.

    python -m benchmarks.long [--steps 1000 ... 1000000] [--batch 4 1] [--hidden 256] [--memory 12]
        [--cost-steps 20000] [--rounds 5] [--threads N] [--json FILE] [--plot FILE]

A point of the table is a forward and a backward pass through all T steps, in a process of its own.
Its peak is the largest resident memory of that process, which includes x (T, B, H) and the output;
the gradient of the output is one step, expanded. The contenders are fastlstm.LSTM ("ours"), the
same with checkpoint_every="auto" ("checkpoints"), that with return_sequence=False ("no sequence"),
and nn.LSTM. A process that exceeds --memory is stopped, and its contender is left out for more
steps. Below the table are times with and without checkpoints, in paired rounds, at --cost-steps.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fastlstm
from benchmarks import common
from benchmarks.timing import median_ms, median_seconds, paired, ratio

CONTENDERS = ("ours", "checkpoints", "no sequence", "nn.LSTM")
GIB = 2**30
_SAMPLE_S = 2.0  # a point is the median of the passes that start within this time


def call(contender: str, T: int, B: int, H: int) -> Callable[[], object]:
    """Return a training step of a contender; all have the same weights and inputs."""
    torch.manual_seed(0)
    theirs = nn.LSTM(H, H)
    every = None if contender == "ours" else "auto"
    module = theirs
    if contender != "nn.LSTM":
        module = fastlstm.LSTM.from_torch(theirs, checkpoint_every=every)
    x, dy = torch.randn(T, B, H), torch.randn(1, B, H).expand(T, B, H)

    def run() -> list[torch.Tensor]:
        parameters = list(module.parameters())
        if contender == "no sequence":
            h = module(x, return_sequence=False)[1][0]
            return list(torch.autograd.grad(h, parameters, dy[:1]))
        return list(torch.autograd.grad(module(x)[0], parameters, dy))

    return run


def peak(pid: int | str = "self") -> int:
    """Return the peak resident memory of a process in bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def measure_here(contender: str, T: int, B: int, H: int) -> None:
    """Measure a point in this process, and print its seconds and bytes as JSON."""
    call(contender, min(T, 500), B, H)()  # loads libraries and starts threads
    step, peaks = call(contender, T, B, H), []

    def run() -> None:
        step()
        peaks.append(peak())

    seconds = median_seconds(run, _SAMPLE_S)
    # The first peak counts: later passes only find the same memory in other places.
    print(json.dumps({"seconds": seconds, "peak": peaks[0]}))


def measure(contender: str, T: int, B: int, H: int, threads: int, limit: float) -> dict[str, Any]:
    """Measure a point in a new process, which is stopped above ``limit`` bytes."""
    point = {"contender": contender, "T": T, "B": B, "H": H}
    arguments = ["--point", contender, str(T), str(B), str(H), "--threads", str(threads)]
    command = [sys.executable, "-m", "benchmarks.long", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if peak(process.pid) > limit:
                process.kill()
                return point | {"died": f"> {limit / GIB:.0f} GiB"}
            time.sleep(0.05)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        return point | {"died": f"exit {process.returncode}"}
    found = json.loads(output.splitlines()[-1])
    return point | {"us a step": 1e6 * found["seconds"] / T, "GiB": found["peak"] / GIB}


def table(steps: Sequence[int], B: int, H: int, threads: int, limit: float) -> list[dict[str, Any]]:
    """Measure and print the points of one batch size."""
    heads = "".join(f"{name:>22}" for name in CONTENDERS)
    print(f"\nB={B} H={H}: us a step, peak GiB\n{'T':>9}{heads}")
    points: list[dict[str, Any]] = []
    dead: set[str] = set()
    for T in steps:
        print(f"{T:>9}", end="", flush=True)
        for name in CONTENDERS:
            if name in dead:
                print(f"{'-':>22}", end="", flush=True)
                continue
            point = measure(name, T, B, H, threads, limit)
            points.append(point)
            if "died" in point:
                dead.add(name)
                text = point["died"]
            else:
                text = f"{point['us a step']:.1f}, {point['GiB']:.2f}"
            print(f"{text:>22}", end="", flush=True)
        print()
    return points


def cost(T: int, B: int, H: int, rounds: int) -> dict[str, Any]:
    """Compare the times with and without checkpoints, and of nn.LSTM, in paired rounds."""
    calls = {name: call(name, T, B, H) for name in CONTENDERS}
    same = zip(calls["checkpoints"](), calls["ours"](), strict=True)  # before anything is timed
    if not all(torch.equal(one, other) for one, other in same):
        raise AssertionError("checkpoints: gradients differ from those without")
    seconds = paired(calls, rounds)
    row = {
        "T": T,
        "B": B,
        "H": H,
        "ms": {name: median_ms(times) for name, times in seconds.items()},
        "checkpoints / ours": ratio(seconds, "checkpoints", "ours"),
        "no sequence / ours": ratio(seconds, "no sequence", "ours"),
        "nn.LSTM / checkpoints": ratio(seconds, "nn.LSTM", "checkpoints"),
    }
    print(f"\nT={T} B={B} H={H}, medians of {rounds} paired rounds")
    for name, ms in row["ms"].items():
        print(f"{name:>22} {ms:>10.1f} ms")
    for name in ("checkpoints / ours", "no sequence / ours", "nn.LSTM / checkpoints"):
        print(f"{name:>22} {row[name]:>10.2f}")
    return row


def draw(points: Sequence[dict[str, Any]], path: str) -> None:
    """Draw time per step and peak memory over T, a line for each contender and batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axis, key in zip(axes, ("us a step", "GiB"), strict=True):
        for B in sorted({point["B"] for point in points}):
            for index, name in enumerate(CONTENDERS):
                line = [
                    (point["T"], point[key])
                    for point in points
                    if (point["contender"], point["B"]) == (name, B) and key in point
                ]
                if line:
                    style = {"color": f"C{index}", "linestyle": "-" if B > 1 else "--"}
                    axis.plot(*zip(*line, strict=True), marker="o", label=f"{name}, B={B}", **style)
        axis.set(xscale="log", xlabel="T", ylabel=key.replace("GiB", "peak GiB"))
        axis.grid(alpha=0.3)
    axes[0].set_ylim(bottom=0)
    axes[1].set_yscale("log")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    options = common.parser(__doc__, rounds=5)
    steps = [1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
    options.add_argument("--steps", type=int, nargs="*", default=steps)
    options.add_argument("--batch", type=int, nargs="+", default=[4, 1])
    options.add_argument("--hidden", type=int, default=256)
    options.add_argument("--memory", type=float, default=12, help="most GiB of a point")
    options.add_argument(
        "--cost-steps", type=int, default=20_000, help="0: do not measure the cost"
    )
    options.add_argument("--plot", help="file for a figure, .png or .svg")
    options.add_argument("--point", nargs=4, help="contender T B H: measure it in this process")
    arguments = options.parse_args()
    if arguments.point:
        torch.set_num_threads(arguments.threads)
        contender, *sizes = arguments.point
        T, B, H = map(int, sizes)
        return measure_here(contender, T, B, H)
    every = fastlstm.layout_checks.CHECKPOINT_EVERY
    machine = common.begin(arguments, memory=f"{arguments.memory} GiB", auto=every)
    limit = arguments.memory * GIB
    points: list[dict[str, Any]] = []
    for B in arguments.batch:
        points += table(arguments.steps, B, arguments.hidden, arguments.threads, limit)
        common.write(arguments.json, machine, points)
    if arguments.cost_steps:
        row = cost(arguments.cost_steps, arguments.batch[0], arguments.hidden, arguments.rounds)
        common.write(arguments.json, machine | {"cost": row}, points)
    if arguments.plot:
        draw(points, arguments.plot)


if __name__ == "__main__":
    main()
