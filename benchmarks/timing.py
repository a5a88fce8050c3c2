"""Time several functions in turns, round after round, and compare their medians.

The speed of a machine drifts, so two measurements that are minutes apart cannot be compared. Here
every function runs once in each round, and a ratio is the median of the rounds' ratios. This module
does not import fastlstm: ``gpu/first_contact`` uses it while fastlstm is being built.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Mapping

import torch

_SAMPLE_S = {"cpu": 0.03, "cuda": 0.02}  # time of the calls that make up one sample
_PAUSE_S = 0.01  # after which the threads of the function before no longer spin on the cores
_MOST_CALLS = 200  # in a sample on a GPU
_LONG_S = 0.2  # a call from here on wakes the threads and fills the caches in its first percent
Seconds = dict[str, list[float]]  # of a call, by the name of the function, in the order of rounds


def median_seconds(call: Callable[[], object], sample_s: float) -> float:
    """Return the median time of calls that start within ``sample_s`` seconds, at least one call."""
    calls = []
    begin = start = time.perf_counter()
    while not calls or start - begin < sample_s:
        call()
        end = time.perf_counter()
        calls.append(end - start)
        start = end
    return statistics.median(calls)


def _cuda_seconds(call: Callable[[], object], calls: int) -> float:
    """Return the mean time of calls that are launched one after the other, by CUDA events."""
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def _warm_up(call: Callable[[], object], device: str) -> float:
    """Let a function compile and allocate, and return roughly the seconds a call takes."""
    if device == "cpu":
        return median_seconds(call, _SAMPLE_S[device])
    call()
    return _cuda_seconds(call, 2)


def _sample(call: Callable[[], object], device: str, estimate: float) -> float:
    """Return the seconds a call takes.

    On a CPU the sample follows one that is not counted. It wakes threads that sleep since the last
    call, and loads the data into the caches, as in a program that runs nothing else.
    """
    if device == "cpu":
        time.sleep(_PAUSE_S)
        if estimate < _LONG_S:
            median_seconds(call, _SAMPLE_S[device])
        return median_seconds(call, _SAMPLE_S[device])
    calls = round(_SAMPLE_S[device] / max(estimate, 1e-6))
    return _cuda_seconds(call, max(1, min(_MOST_CALLS, calls)))


def paired(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    before: Callable[[str], object] | None = None,
    device: str = "cpu",
    keep: Callable[[Seconds], Collection[str]] | None = None,
    more: Callable[[Seconds], bool] | None = None,
) -> Seconds:
    """Time functions in turns.

    Args:
        contenders: functions by name.
        rounds: number of samples of each function.
        before: called with the name of a function before each of its samples; it is not timed.
        device: "cpu" for wall time, "cuda" for CUDA events.
        keep: maps the first round to the names of the functions that are timed on. Default: all.
        more: called after each round instead of ``rounds``: whether another one follows.

    Returns:
        Seconds a call of each function, in the order of the rounds.
    """
    before = before or (lambda name: None)
    estimates = {}
    for name, call in contenders.items():
        before(name)
        estimates[name] = _warm_up(call, device)
    seconds: Seconds = {name: [] for name in contenders}
    while True:
        for name, samples in seconds.items():
            before(name)
            samples.append(_sample(contenders[name], device, estimates[name]))
        done = len(next(iter(seconds.values()), range(rounds)))
        if keep and done == 1:
            seconds = {name: seconds[name] for name in keep(seconds)}
        if not (more(seconds) if more else done < rounds):
            return seconds


def median_ms(seconds: list[float]) -> float:
    """Return the median in milliseconds."""
    return 1e3 * statistics.median(seconds)


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Return how many times as long ``slow`` takes as ``fast``, the median over the rounds."""
    return statistics.median(ratios(seconds, slow, fast))


def ratios(seconds: Mapping[str, list[float]], slow: str, fast: str) -> list[float]:
    """Return how many times as long ``slow`` takes as ``fast`` in each round."""
    return [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
