"""The suites "busy", while other processes keep all cores busy, and "threads".

The other work is one process per core that runs a Python loop. It is paused while the contenders
without "busy" are timed. A kernel whose threads wait for each other at every step is slowed down
most when one of them loses its core.
"""

from __future__ import annotations

import argparse
import atexit
import multiprocessing
import os
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from .cases import Case, case, ways
from .contests import Contender, Contest, Effort
from .lstm import Pair
from .shapes import Shape, parse

SHAPES = ("asr", "long", "stream", "one-row")
SCALED = ("stream", "asr", "asr-512", "long")
BUSY = ", busy"


def burn(busy: Any, started: Any) -> None:
    """Compute while the event ``busy`` is set; never return."""
    started.wait()
    while True:
        busy.wait()
        while busy.is_set():
            for _ in range(10_000):
                pass


@cache
def other_work(processes: int) -> Any:
    """Start processes that compute while the returned event is set, and end with this process."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
    busy, started = context.Event(), context.Barrier(processes + 1)
    for _ in range(processes):
        other = context.Process(target=burn, args=(busy, started), daemon=True)
        other.start()
        atexit.register(other.kill)
    started.wait(120)
    return busy


def contest(shape: Shape, way: dict[str, str], effort: Effort) -> Contest:
    """Return fastlstm.LSTM and nn.LSTM, both with and without other work."""
    pair = Pair(shape, way["mode"] == "training", way["dtype"])
    busy = other_work(os.cpu_count() or 1)

    def amid(threads: int) -> None:
        torch.set_num_threads(threads)
        busy.set()

    def under_work(contender: Contender, *peers: str) -> Contender:
        return contender._replace(start=amid, stop=busy.clear, peers=peers)

    theirs = Contender(lambda: pair.call(pair.theirs), threads=(1, effort.threads))
    ours = pair.contender(pair.copy(), ("nn.LSTM",))
    contenders = {"auto": ours, f"auto{BUSY}": under_work(ours, f"nn.LSTM{BUSY}", "auto")}
    contenders |= {"nn.LSTM": theirs, f"nn.LSTM{BUSY}": under_work(theirs)}
    return Contest(contenders, shape.flop(pair.train), own=("auto",), grad=pair.train)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the suite "busy"."""
    for text in options.shape or SHAPES:
        for way in ways(options):
            how = parse(text), way

            def build(effort: Effort, how: tuple[Shape, dict[str, str]] = how) -> Contest:
                return contest(*how, effort)

            params = {**how[0].params(), **way}
            yield case("busy", params, ["auto", f"auto{BUSY}"], build)


def threads(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the suite "threads": all numbers of threads, beside one thread."""
    most = options.threads or torch.get_num_threads()
    counts = sorted({1, most, *(2**k for k in range(1, most.bit_length()))})
    for text in options.shape or SCALED:
        for way in ways(options):
            how = parse(text), way

            def build(effort: Effort, how: tuple[Shape, dict[str, str]] = how) -> Contest:
                shape, way = how
                pair = Pair(shape, way["mode"] == "training", way["dtype"])
                ours = pair.contender(pair.copy())
                theirs = Contender(lambda: pair.call(pair.theirs))
                found = {}
                for n in counts:
                    peers = ("1 thread", f"nn.LSTM, {n}") if n > 1 else ("nn.LSTM, 1",)
                    found[_name(n)] = ours._replace(threads=(n,), peers=peers)
                    found[f"nn.LSTM, {n}"] = theirs._replace(threads=(n,))
                return Contest(found, shape.flop(pair.train), own=("1 thread",), grad=pair.train)

            yield case("threads", {**how[0].params(), **way}, [_name(n) for n in counts], build)


def _name(count: int) -> str:
    return f"{count} thread{'s' * (count > 1)}"
