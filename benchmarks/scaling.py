"""Extrapolate data-parallel training to many processes from a measured step and all-reduce.

    python -m benchmarks.scaling [--config demo] [--rounds 7] [--json FILE]
    python -m benchmarks.scaling --step-ms 12 --gradient-mb 300 --latency-us 8 --gbytes-per-s 40

Without numbers of another machine the script measures two on this one: a training step of the
configuration's model in one process, and an all-reduce of as many bytes as the model has gradients,
between two processes over gloo. For each number of processes n it prints the time of a step whose
all-reduce follows the whole backward pass, at the same batch size per process. This is the worst
case: DDP overlaps the two if there are many layers. ::

    t(n) = step + 2 (n - 1) latency + 2 (n - 1) / n * bytes / bandwidth      (ring all-reduce)

Only n = 1 and the constants are measured. All other numbers come from this formula.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from . import common
from .timing import paired

PROCESSES = (1, 2, 8, 64, 256, 1024)
_SMALL = 1024  # bytes, so few that the time of their all-reduce is latency


def measure_step(config: str, rounds: int) -> tuple[float, int]:
    """Measure the seconds of a training step, and return them and the bytes of the gradients."""
    from fastlstm.training.commands.video import VideoCommand

    words = ["fit", "--config", config, "--run", tempfile.mkdtemp(), "--trainer.max_steps"]
    words += ["1", "--trainer.enable_progress_bar", "false", "--trainer.limit_test_batches", "0"]
    words += ["--trainer.limit_val_batches", "0", "--trainer.logger", "false"]
    words += ["--trainer.enable_checkpointing", "false", "--trainer.enable_model_summary", "false"]
    command = VideoCommand(words)
    task = command.model
    batch = next(iter(command.datamodule.train_dataloader()))
    optimizer = torch.optim.Adam(task.parameters(), fused=True)

    def step() -> None:
        task.model.loss(*map(task.floats, batch)).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = statistics.median(paired({"step": step}, rounds)["step"])
    return seconds, sum(p.numel() * p.element_size() for p in task.parameters())


def _all_reduce(rank: int, path: str, size: int, rounds: int, answer: torch.Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for place, count in enumerate((_SMALL // 4, size // 4)):
        gradients, seconds = torch.ones(count), []
        for _ in range(rounds + 1):  # the first one sets up connections
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(gradients)
            seconds.append(time.perf_counter() - start)
        if rank == 0:
            answer[place] = statistics.median(seconds[1:])
    dist.destroy_process_group()


def measure_all_reduce(size: int, rounds: int) -> tuple[float, float]:
    """Measure latency in seconds and bandwidth in bytes per second between two processes."""
    answer = torch.zeros(2, dtype=torch.float64).share_memory_()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "rendezvous")
        mp.spawn(_all_reduce, (path, size, rounds, answer), nprocs=2)
    small, large = answer.tolist()
    return small / 2, size / max(large - small, 1e-9)


def step_seconds(n: int, step: float, size: int, latency: float, bandwidth: float) -> float:
    """Evaluate the formula in the docstring of this module."""
    return step + 2 * (n - 1) * latency + 2 * (n - 1) / n * size / bandwidth


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--config", default="demo", help="file or name of the model to measure")
    options.add_argument("--step-ms", type=float, help="training step of one process, not measured")
    options.add_argument("--gradient-mb", type=float, help="gradients in 1e6 bytes, with --step-ms")
    options.add_argument("--latency-us", type=float, help="of one message, not measured")
    options.add_argument("--gbytes-per-s", type=float, help="bandwidth, with --latency-us")
    arguments = options.parse_args()
    if (arguments.step_ms is None) != (arguments.gradient_mb is None):
        options.error("--step-ms and --gradient-mb: expected both or neither")
    if (arguments.latency_us is None) != (arguments.gbytes_per_s is None):
        options.error("--latency-us and --gbytes-per-s: expected both or neither")
    machine = common.begin(arguments)

    if arguments.step_ms is None:
        step, size = measure_step(arguments.config, arguments.rounds)
    else:
        step, size = arguments.step_ms / 1e3, int(arguments.gradient_mb * 1e6)
    if arguments.latency_us is None:
        latency, bandwidth = measure_all_reduce(size, arguments.rounds)
    else:
        latency, bandwidth = arguments.latency_us / 1e6, arguments.gbytes_per_s * 1e9
    given = ("measured", "given")
    print(
        f"step {1e3 * step:.1f} ms, gradients {size / 1e6:.1f} MB"
        f" ({given[arguments.step_ms is not None]}); latency {1e6 * latency:.0f} us, bandwidth"
        f" {bandwidth / 1e9:.2f} GB/s ({given[arguments.latency_us is not None]})"
    )
    print(f"{'processes':>9} {'step, ms':>9} {'efficiency':>10} {'speed-up':>9}")
    rows = []
    for n in PROCESSES:
        seconds = step_seconds(n, step, size, latency, bandwidth)
        row = {"n": n, "ms": 1e3 * seconds, "efficiency": step / seconds}
        rows.append(row)
        print(f"{n:>9} {row['ms']:>9.1f} {row['efficiency']:>10.2f} {n * step / seconds:>9.1f}")
    constants = {"step_s": step, "bytes": size, "latency_s": latency, "bandwidth": bandwidth}
    common.write(arguments.json, {**machine, **constants}, rows)


if __name__ == "__main__":
    main()
