"""Compare what ``fastlstm plan`` computes with training steps that run here.

    python -m benchmarks.planned_runs [--rounds 15]

Each run takes its steps in processes of its own. Its memory is the peak of the resident memory,
less that after a step of a tiny model; its time is the median of the steps. ``fastlstm plan
--measure`` should come first.

By default glibc keeps freed blocks of up to 32 MiB in its heap, where later ones often do not fit:
a process holds more than its tensors. So memory is measured twice: "in use" in a process whose
blocks from 1 MiB on are returned when they are freed, and "held" in the process that is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastlstm
import fastlstm_plan
from fastlstm.models.video import VideoLSTM

from . import constants, plan
from .constants import smallest_step
from .cost import PRECISIONS, Cost, How, cost
from .long import peak
from .steps import configured_model, read_config

_LANGUAGE = Path(__file__).parents[1] / "examples" / "language" / "config.yaml"
RUNS = {
    "LSTM": "--T 100 --batch_size 32 --input_size 256 --hidden_size 256",
    "two layers, checkpoints": "--T 100 --batch_size 16 --input_size 512 --hidden_size 512"
    " --num_layers 2 --checkpoint_every 16",
    "both directions": "--T 200 --batch_size 16 --input_size 128 --hidden_size 128 --bidirectional",
    "demo": "--config demo",
    "ByteLSTM": f"--config {_LANGUAGE}",
    "classify": "--config classify",
}


def _words(name: str) -> argparse.Namespace:
    return fastlstm_plan.parser().parse_args(RUNS[name].split())


def predicted(name: str) -> Cost:
    """Return what ``fastlstm plan`` computes for a run."""
    arguments = _words(name)
    step = plan.planned(arguments)
    precision = plan.precision_of(arguments.precision or step.precision, "cpu")
    every = (arguments.checkpoint_every or [step.checkpoint_every])[0]
    how = How(PRECISIONS[precision], every, constants.find())
    return cost(step.step(how), how)


def _lstm(arguments: argparse.Namespace) -> tuple[nn.Module, Callable[[], Tensor]]:
    every = (arguments.checkpoint_every or [None])[0]
    sizes = (arguments.input_size, arguments.hidden_size, arguments.num_layers or 1)
    module = fastlstm.LSTM(*sizes, bidirectional=arguments.bidirectional, checkpoint_every=every)
    outputs = arguments.hidden_size * (1 + arguments.bidirectional)
    x = torch.randn(arguments.T, arguments.batch_size, arguments.input_size)
    target = torch.randn(arguments.T, arguments.batch_size, outputs)
    return module, lambda: F.mse_loss(module(x)[0], target)


def _configured(config: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    # These need the packages of fastlstm[train].
    from fastlstm.training.tasks.base import floats
    from fastlstm.training.tbptt import Window, window_loss

    read = read_config(config)
    model: Any = configured_model(read)
    data = read["data"]["init_args"]
    B = data["batch_size"]
    if isinstance(model, fastlstm.ByteLSTM):
        T = data["k1"]
        text = torch.randint(256, (T + 1, B), dtype=torch.uint8)
        window = Window(text[:-1], text[1:], torch.zeros(T, B, dtype=torch.bool), T, T, 0)
        return model, lambda: window_loss(model, window, None)[0]
    I = model.config["input_size"]
    if isinstance(model, VideoLSTM):
        steps = (data["input_frames"], data["future_frames"])
        batch = [torch.randint(256, (T, B, I), dtype=torch.uint8) for T in steps]
        return model, lambda: model.loss(*map(floats, batch)).total
    frames = torch.randint(256, (data["num_frames"], B, I), dtype=torch.uint8)
    labels = torch.randint(model.num_classes, (B,))
    return model, lambda: model.loss(floats(frames), labels)


def measured(name: str, rounds: int) -> dict[str, float]:
    """Take the steps of a run in this process; return the bytes and the seconds of one."""
    arguments = _words(name)
    step = plan.planned(arguments)  # imports what the model needs
    torch.manual_seed(0)
    smallest_step()()
    before = psutil.Process().memory_info().rss
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of the imports
    model, loss = _configured(arguments.config) if arguments.config else _lstm(arguments)
    precision = plan.precision_of(step.precision, "cpu")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=step.fused)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        if step.clips:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return {"bytes": peak() - before, "seconds": statistics.median(seconds[rounds > 2 :])}


def in_process(name: str, rounds: int, returns: bool = False) -> dict[str, float]:
    """Call :func:`measured` in a new process.

    Args:
        name: of ``RUNS``.
        rounds: number of steps.
        returns: freed blocks from 1 MiB on return to the system.
    """
    words = [sys.executable, "-W", "ignore", "-m", f"{__package__}.planned_runs", "--run", name]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": str(2**20)} if returns else {})
    done = subprocess.run(
        [*words, "--rounds", str(rounds)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--rounds", type=int, default=15, help="steps of each run")
    options.add_argument("--run", choices=RUNS, help="print what one run measures, as JSON")
    arguments = options.parse_args()
    if arguments.run:
        print(json.dumps(measured(arguments.run, arguments.rounds)))
        return
    print("| run | MiB, planned | in use | ratio | held | ms, planned | measured | ratio |")
    print("|---|" + 7 * "---:|")
    for name in RUNS:
        ours, used = predicted(name), in_process(name, 3, returns=True)["bytes"] / 2**20
        found = in_process(name, arguments.rounds)
        size, held, ms = ours.bytes / 2**20, found["bytes"] / 2**20, 1e3 * found["seconds"]
        memory = f"{size:.0f} | {used:.0f} | {size / used:.2f} | {held:.0f}"
        seconds = f"{1e3 * ours.seconds:.1f} | {ms:.1f} | {1e3 * ours.seconds / ms:.2f}"
        print(f"| {name} | {memory} | {seconds} |", flush=True)


if __name__ == "__main__":
    main()
