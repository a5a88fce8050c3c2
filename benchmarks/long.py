"""The suite "long": time and peak memory of training on long sequences.

A contender is a forward and a backward pass through all T steps, in a process of its own. Its peak
is the largest resident memory of that process, which includes x (T, B, H) and the output; the
gradient of the output is one step, expanded. Contenders are fastlstm.LSTM ("auto"), the same with
checkpoint_every="auto" ("checkpoints"), that with return_sequence=False ("no sequence"), and
nn.LSTM. Processes run one after the other, so their ratios are less exact than those of other
suites. A process that needs more memory than is free is stopped, and reported as failed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

import fastlstm

from .cases import Case, case, ways
from .contests import Contender, Contest, Effort, Measured, Results, relative_errors
from .shapes import Shape, parse

SHAPES = ("1000,4,256,256", "10000,4,256,256", "100000,4,256,256")
OURS = ("auto", "checkpoints", "no sequence")
_SHARE = 0.9  # of the free memory that a process may use
_SAMPLE_S = 2.0  # passes start within this time, at least one,
_MOST = 20  # and at most so many


def call(
    contender: str, shape: Shape, dtype: torch.dtype = torch.float32, peer: bool = False
) -> Callable[[], Results]:
    """Return a training step of a contender; all have the same weights and inputs.

    Args:
        contender: one of ``OURS``, or "nn.LSTM".
        shape: with I = H.
        dtype: of weights and input.
        peer: compute on nn.LSTM what the contender computes.
    """
    torch.manual_seed(0)
    theirs = nn.LSTM(shape.H, shape.H)
    x, dy = torch.randn(shape.T, shape.B, shape.H), torch.randn(1, shape.B, shape.H)
    module: nn.Module = theirs
    if contender != "nn.LSTM" and not peer:
        every = None if contender == "auto" else "auto"
        module = fastlstm.LSTM.from_torch(theirs, checkpoint_every=every)
    module, x, dy = module.to(dtype), x.to(dtype), dy.to(dtype).expand(x.shape)
    how = {"return_sequence": False} if contender == "no sequence" and not peer else {}

    def run() -> Results:
        y, (h, _) = module(x, **how)
        last = contender == "no sequence"
        parameters = list(module.parameters())
        return list(torch.autograd.grad(h if last else y, parameters, dy[:1] if last else dy))

    return run


def peak(pid: int | str = "self") -> int:
    """Return the peak resident memory of a process in bytes; 0 if it has ended.

    The maximum that getrusage knows will not do: a new process inherits that of its parent.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


def measure_here(contender: str, shape: Shape) -> dict[str, Any]:
    """Check a contender on few steps, and measure it in this process."""
    few = shape._replace(T=min(shape.T, 100))
    exact, theirs = call(contender, few, torch.float64, True)(), call(contender, few, peer=True)()
    try:
        error = relative_errors(call(contender, few)(), theirs, exact)
    except AssertionError as wrong:
        return {"failed": str(wrong)}
    step = call(contender, shape)
    seconds, highest = list[float](), 0
    begin = start = time.perf_counter()
    while not seconds or (start - begin < _SAMPLE_S and len(seconds) < _MOST):
        step()
        end = time.perf_counter()
        # The first peak counts: later passes only find the same memory in other places.
        highest = highest or peak()
        seconds.append(end - start)
        start = end
    return {"seconds": seconds, "peak": highest, "error": error}


def _point(contender: str, shape: Shape, threads: int, limit: float) -> dict[str, Any]:
    """Measure a contender in a new process, which is stopped above ``limit`` bytes."""
    words = [contender, shape.words, str(threads)]
    command = [sys.executable, "-m", __name__, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if peak(process.pid) > limit:
                process.kill()
                return {"failed": f"stopped: it needs more than {limit / 2**30:.1f} GiB"}
            time.sleep(0.05)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        return {"failed": f"the process ended with status {process.returncode}"}
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def measured(shape: Shape, effort: Effort) -> Measured:
    """Measure all contenders at a shape."""
    contenders = {name: Contender(print, peers=("nn.LSTM", "auto")) for name in OURS[1:]}
    contenders["auto"] = Contender(print, peers=("nn.LSTM",))
    contenders["nn.LSTM"] = Contender(print)
    limit = _SHARE * psutil.virtual_memory().available
    points = {name: _point(name, shape, effort.threads, limit) for name in contenders}
    failed = {name: point["failed"] for name, point in points.items() if "failed" in point}
    right = {name: point for name, point in points.items() if name not in failed}
    rounds = min((len(point["seconds"]) for point in right.values()), default=0)
    seconds = {n: {str(effort.threads): p["seconds"][:rounds]} for n, p in right.items()}
    extra = {name: {"peak_rss": point["peak"]} for name, point in right.items()}
    if "nn.LSTM" in right:
        extra = {n: {**e, "peer_rss": right["nn.LSTM"]["peak"]} for n, e in extra.items()}
    contest = Contest(contenders, shape.flop(True), own=("auto",))
    errors = {name: point["error"] for name, point in right.items()}
    return Measured(contest, seconds, errors, failed, "cpu", extra)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the suite."""
    for way in ways(options, ["float32"]):
        if way["mode"] == "training":
            for text in options.shape or SHAPES:
                shape = parse(text)
                found = case("long", {**shape.params(), **way}, OURS, _nothing)
                yield Case(**{**vars(found), "measured": lambda e, s=shape: measured(s, e)})


def _nothing(effort: Effort) -> Contest:
    raise AssertionError("a case of this suite is measured in other processes")


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps(measure_here(sys.argv[1], parse(sys.argv[2]))))
