"""Contests: what is checked, then timed in the same rounds, and what is recorded of it."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastlstm import _C

from .timing import Seconds, paired, ratios

SCHEMA = "fastlstm-bench/1"
WIDE = 0.05  # rounds go on while the interquartile range of a ratio is wider
_HOPELESS = 1.5  # a number of threads that takes so many times as long leaves after a round
Results = list[Tensor]  # y, and in training the gradients of x and of every parameter


def relative_errors(
    ours: Results, theirs: Results, exact: Results, limit: float | None = None
) -> tuple[float, float]:
    """Return the largest relative errors of two lists of results against those in float64.

    Raises:
        AssertionError: one of ours is larger than ``limit``. Default: three times that of theirs,
            which were computed in the same dtype, plus 16 epsilon where theirs happens to be exact.
    """
    largest = 0.0, 0.0
    for index, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        c = c.detach()
        size = c.norm().clamp_min(torch.finfo(torch.float64).tiny)  # dW_hh of a first step is 0
        mine, their = (float((t.detach().cpu().double() - c).norm() / size) for t in (a, b))
        most = 3 * their + 16 * torch.finfo(b.dtype).eps if limit is None else limit
        if not mine <= most:
            raise AssertionError(
                f"result {index}: its relative error is {mine:.1e}, at most {most:.1e} is expected"
            )
        largest = max(largest[0], mine), max(largest[1], their)
    return largest


class Contender(NamedTuple):
    """Something that is timed.

    Args:
        call: the function that is timed.
        check: raises AssertionError if results are wrong; else returns two relative errors, its own
            and that of nn.LSTM. None: there is nothing to check.
        peers: names of what this contender is compared with; the first is the one that counts.
        threads: numbers of threads that it runs on; its best one counts. Default: all.
        start: called with a number of threads before each sample and the check.
        stop: called when another contender's turn comes.
    """

    call: Callable[[], object]
    check: Callable[[], tuple[float, float]] | None = None
    peers: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    start: Callable[[int], object] = torch.set_num_threads
    stop: Callable[[], object] = lambda: None


class Contest(NamedTuple):
    """What is timed in the same rounds.

    Args:
        contenders: by name.
        flop, bytes: operations of one call, and bytes that it reads and writes at least.
        own: names of the peers that are fastlstm's.
        grad: whether gradients are recorded. Switching that in each call would take 2 us.
    """

    contenders: dict[str, Contender]
    flop: float | None = None
    bytes: float | None = None
    own: tuple[str, ...] = ()
    grad: bool = True


class Effort(NamedTuple):
    """How long to measure: rounds at least, seconds for all of them, threads, and the device."""

    rounds: int
    seconds: float
    threads: int
    device: str = "cpu"


class Measured(NamedTuple):
    """Seconds of every contender, errors, failed checks, and the device."""

    contest: Contest
    seconds: dict[str, Seconds]  # by contender, then by number of threads as text
    errors: dict[str, tuple[float, float]]
    failed: dict[str, str]
    device: str
    extra: Mapping[str, dict[str, Any]] = MappingProxyType({})  # more to record, by contender
    other_cores: float | None = None  # that other programs used meanwhile

    def best(self, name: str) -> tuple[str, list[float]]:
        """Return the number of threads at which a contender is fastest, and its seconds."""
        ways = self.seconds[name]
        threads = min(ways, key=lambda way: statistics.median(ways[way]))
        return threads, ways[threads]

    def info(self, name: str) -> dict[str, Any]:
        """Return what is recorded of a contender beside its own seconds."""
        peers, own = {}, {"own": self.best(name)[1]}
        contender = self.contest.contenders[name]
        for peer in contender.peers:
            if peer not in self.seconds:
                continue
            count, data = self.best(peer)
            rounds = ratios({**own, "peer": data}, "peer", "own")
            peers[peer] = {
                "threads": int(count),
                "data": data,
                "median": statistics.median(data),
                "ratio": quartiles(rounds),
                "own": peer in self.contest.own,
            }
        first = next(iter(peers), None)
        error, threads = self.errors.get(name), int(self.best(name)[0])
        has_peak = self.contest.flop and self.device == "cpu"
        return {
            "schema": SCHEMA,
            "threads": threads,
            "peers": peers,
            "best_peer": first,
            "ratio": peers[first]["ratio"] if first else None,
            "flop": self.contest.flop,
            "bytes": self.contest.bytes,
            "peak_gflops": _C.fma_flops("auto", threads) / 1e9 if has_peak else None,
            "error": {"ours": error[0], "peer": error[1]} if error else None,
            "other_cores": self.other_cores,
            "failed_peers": {p: self.failed[p] for p in contender.peers if p in self.failed},
            **self.extra.get(name, {}),
        }


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return the median and both quartiles."""
    low, median, high = np.percentile(values, [25, 50, 75])
    return {"median": float(median), "q25": float(low), "q75": float(high)}


def measure(contest: Contest, effort: Effort) -> Measured:
    """Check all contenders, then time those whose results are right in the same rounds.

    A contender that refuses the call, or whose results are wrong, is reported in ``failed`` and
    never timed. Rounds go on while the interquartile range of a ratio is wider than ``WIDE``, up to
    ``effort.seconds``.
    """
    with torch.set_grad_enabled(contest.grad):
        return _measure(contest, effort)


def _measure(contest: Contest, effort: Effort) -> Measured:
    errors, failed = _check(contest, effort.threads)
    ways: dict[str, tuple[str, int]] = {}
    calls: dict[str, Callable[[], object]] = {}
    for name, contender in contest.contenders.items():
        if name not in failed:
            for threads in sorted(set(contender.threads or (effort.threads,)), reverse=True):
                ways[f"{name}-{threads}"] = name, threads
                calls[f"{name}-{threads}"] = contender.call
    running: list[Contender] = []

    def before(way: str) -> None:
        name, threads = ways[way]
        contender = contest.contenders[name]
        while running:
            running.pop().stop()
        contender.start(threads)
        running.append(contender)

    def keep(seconds: Seconds) -> list[str]:
        least: dict[str, float] = {}
        for way, (sample,) in seconds.items():
            name = ways[way][0]
            least[name] = min(sample, least.get(name, sample))
        return [way for way, (s,) in seconds.items() if s <= _HOPELESS * least[ways[way][0]]]

    begin = time.perf_counter()

    def more(seconds: Seconds) -> bool:
        done = len(next(iter(seconds.values())))
        spent = time.perf_counter() - begin
        if spent * (done + 1) / done > effort.seconds:
            return done < min(3, effort.rounds)
        return done < effort.rounds or _is_wide(found(seconds))

    def found(seconds: Seconds) -> Measured:
        each: dict[str, Seconds] = {}
        for way, samples in seconds.items():
            name, threads = ways[way]
            each.setdefault(name, {})[str(threads)] = samples
        return Measured(contest, each, errors, failed, effort.device)

    how: dict[str, Any] = {"device": effort.device, "keep": keep, "more": more}
    others = _seconds_of_others()
    try:
        measured = found(paired(calls, before=before, **how) if calls else {})
        spent, after = time.perf_counter() - begin, _seconds_of_others()
        if others is None or after is None:
            return measured
        return measured._replace(other_cores=round((after - others) / spent, 2))
    finally:
        while running:
            running.pop().stop()
        torch.set_num_threads(effort.threads)


def _seconds_of_others() -> float | None:
    """Return the seconds of all cores that other programs have used since the machine started.

    Programs that this one started are its own: the suite busy keeps the cores busy with them. None
    without psutil, which is in the extra bench: ``make demo`` times its model without that extra.
    """
    try:
        import psutil
    except ImportError:
        return None
    every, me = psutil.cpu_times(), psutil.Process()
    taken = sum(every) - every.idle - getattr(every, "iowait", 0.0)
    guests = getattr(every, "guest", 0.0) + getattr(every, "guest_nice", 0.0)  # counted twice
    mine = sum(me.cpu_times()[:4])  # with those of children that have ended
    for child in me.children(recursive=True):
        with contextlib.suppress(psutil.Error):
            mine += sum(child.cpu_times()[:4])
    return float(taken - guests - mine)


def _check(contest: Contest, threads: int) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    errors, failed = {}, {}
    for name, contender in contest.contenders.items():
        if contender.check is None:
            continue
        contender.start((contender.threads or (threads,))[-1])
        try:
            errors[name] = contender.check()
        except (AssertionError, ValueError, RuntimeError) as error:  # it is wrong, or it refuses
            failed[name] = str(error).strip().splitlines()[0]
        finally:
            contender.stop()
    return errors, failed


def _is_wide(measured: Measured) -> bool:
    """Return whether a ratio's interquartile range is wider than ``WIDE`` of its median."""
    for name in measured.seconds:
        for peer in measured.contest.contenders[name].peers[:1]:
            if peer in measured.seconds:
                own = {"own": measured.best(name)[1], "peer": measured.best(peer)[1]}
                found = quartiles(ratios(own, "peer", "own"))
                if found["q75"] - found["q25"] > WIDE * found["median"]:
                    return True
    return False
