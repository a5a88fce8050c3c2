"""What ``fastlstm plan`` does; ``fastlstm_plan`` has its words and its help."""

from __future__ import annotations

import argparse
import math

import psutil
import torch

import fastlstm
from fastlstm.backends import cpu

from . import constants
from .constants import Constants
from .cost import PRECISIONS, Cost, How, all_reduced, cost, fitting
from .steps import Planned, configured, named_optimizer, of_lstm
from .tables import Row, duration, show

CHECKPOINTS = (16, 64, 128, 512)
_GIB = 2**30
_COLUMNS = (" checkpoint_every", "memory", "activations", "step", "forward", "backward", " fits")


def planned(arguments: argparse.Namespace) -> Planned:
    """Return the step that the words of the command describe.

    Raises:
        ValueError: the configuration is unknown or cannot be planned.
        ModuleNotFoundError: the configuration needs a package that is not installed.
    """
    if arguments.config:
        for name in ("input_size", "hidden_size", "num_layers", "optimizer"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"{name}: expected none beside --config, which has its own")
        return configured(arguments.config, arguments.T, arguments.batch_size)
    sizes = (arguments.input_size, arguments.hidden_size, arguments.num_layers or 1)
    options = {name: getattr(arguments, name) for name in ("bidirectional", "peephole")}
    module = fastlstm.LSTM(*sizes, device="meta", **options)
    found = of_lstm(arguments.T, arguments.batch_size, module)
    return found._replace(optimizer=named_optimizer(arguments.optimizer or "Adam"))


def precision_of(word: str, device: str) -> str:
    """Return a precision of ``PRECISIONS``; "auto" is what ``fit`` finds on the device.

    Raises:
        ValueError: it is none of these.
    """
    word = {"32": "32-true", "bf16": "bf16-mixed"}.get(word, word)
    if word == "auto":
        is_fast = device == "cuda" or {"amx", "avx512bf16"} & set(cpu.isas())
        return "bf16-mixed" if is_fast else "32-true"
    if word not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {word!r}")
    return word


def _choices(step: Planned, asked: list[int] | None, first: How) -> list[tuple[int, Cost]]:
    """Return k and cost of each choice of checkpoint_every; 0 is None."""
    every = {0, step.checkpoint_every, *(asked or [k for k in CHECKPOINTS if k < step.T])}
    ways = [(k, first._replace(checkpoint_every=k)) for k in sorted(every)]
    return [(k, cost(step.step(how), how)) for k, how in ways]


def _memory(arguments: argparse.Namespace) -> float:
    if arguments.memory is not None:
        return float(arguments.memory) * _GIB
    if arguments.device == "cpu":
        return float(psutil.virtual_memory().total)
    if not torch.cuda.is_available():
        raise ValueError("memory: expected --memory GIB, since this machine has no GPU, got none")
    return float(torch.cuda.get_device_properties(0).total_memory)


def _size(bytes: float) -> str:
    return f"{bytes / _GIB:.2f} GiB" if bytes >= _GIB else f"{bytes / 2**20:.0f} MiB"


def _show_choices(choices: list[tuple[int, Cost]], memory: float, timed: bool) -> None:
    rows = []
    for k, found in choices:
        fits = found.bytes <= memory
        seconds = (found.seconds, found.forward_s, found.backward_s)
        times = [duration(s) for s in seconds] if timed else ["not measured"] * 3
        sizes = [_size(found.bytes), _size(found.activations + found.workspace)]
        cells = [str(k or "None"), *sizes, *times, "yes" if fits else "no"]
        rows.append(Row(cells, "" if fits else "failed"))
    show(_COLUMNS, rows)


def _devices(most: int) -> list[int]:
    return sorted({2**i for i in range(int(math.log2(most)) + 1)} | {most})


def _show_devices(step: Planned, how: How, arguments: argparse.Namespace) -> None:
    c = how.constants
    assert c is not None
    latency = c.latency if arguments.latency_us is None else arguments.latency_us / 1e6
    bandwidth = c.network if arguments.gbytes_per_s is None else arguments.gbytes_per_s * 1e9
    rows = []
    of_step = step.step(how)
    one = all_reduced(of_step, how, 1, latency, bandwidth)
    for n in _devices(arguments.devices):
        seconds = all_reduced(of_step, how, n, latency, bandwidth)
        share = one / seconds
        rows.append(Row([str(n), duration(seconds), f"{share:.2f}", f"{n * share:.1f}"]))
    print(
        f"\nOn n devices, each with its own batch, checkpoint_every={how.checkpoint_every or None}:"
        f" a message takes {duration(latency)}, and {bandwidth / 1e9:.3g} GB pass in a second."
    )
    show(("devices", "step", "efficiency", "speed-up"), rows)


def _source(measured: Constants) -> str:
    here = constants.machine()
    text = f"Times are computed from constants that were measured on {measured.machine}"
    if measured.machine == here:
        return f"{text}."
    return f"{text}, not on this machine, {here}. `fastlstm plan --measure` measures this one."


def run(arguments: argparse.Namespace) -> None:
    """Do what the words of ``fastlstm plan`` ask for.

    Raises:
        SystemExit: a word is wrong, in one sentence.
    """
    try:
        if arguments.measure:
            constants.save(constants.measure(), constants.cache())
            print(f"The constants of this machine are kept in {constants.cache()}.")
            if not arguments.config and arguments.hidden_size is None:
                return
        _plan(arguments)
    except (ValueError, TypeError, OSError) as error:
        raise SystemExit(f"fastlstm plan: {error}") from None


def _plan(arguments: argparse.Namespace) -> None:
    step, on_cpu = planned(arguments), arguments.device == "cpu"
    precision = precision_of(arguments.precision or step.precision, arguments.device)
    measured = constants.find() if on_cpu else None
    how = How(PRECISIONS[precision], 0, measured)
    memory = _memory(arguments) - (measured.process if measured else 0)
    choices = _choices(step, arguments.checkpoint_every, how)
    plain = choices[0][1]
    print(f"{step.title}, precision {precision}")
    print(
        f"{plain.parameters // how.precision.stored:,} parameters: {_size(plain.parameters)},"
        f" gradients {_size(plain.gradients)}, optimiser {_size(plain.optimizer)}; batch"
        f" {_size(plain.batch)}; {_size(memory)} are there for them"
    )
    _show_choices(choices, memory, on_cpu)
    best = fitting(choices, memory)
    if best is None:
        print("No choice fits: take a smaller batch, fewer steps, or bf16-mixed.")
    elif on_cpu and arguments.devices > 1:
        _show_devices(step, how._replace(checkpoint_every=best), arguments)
    if measured is None:
        print("On a GPU the time of a step has not been measured; only memory is computed.")
    else:
        print(f"\n{_source(measured)}")
        print("Memory is what is in use; the heap of the C library may hold more.")
    for note in step.notes:
        print(note)
