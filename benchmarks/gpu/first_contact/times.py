"""How fast is it? Functions for the worker; nothing else may run on the GPU meanwhile.

This module does not import fastlstm before it is needed: ``baseline`` runs while it is being built.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.timing import median_ms, paired

_ROUNDS = 5


def versions(device: str) -> dict[str, Any]:
    """Describe the machine; not in order if the build has no kernels for its GPU."""
    from benchmarks.gpu import record
    from fastlstm import _C

    reason = _C.cuda.reason if device == "cuda" else None
    return {"ok": reason is None, "ended": reason, **record.machine(device)}


def baseline(
    device: str, precision: str, B: int, H: int, T: int, train: bool = False
) -> dict[str, Any]:
    """Time nn.LSTM alone."""
    new: dict[str, Any] = {"device": device, "dtype": getattr(torch, precision)}
    module = nn.LSTM(H, H, **new)
    x = torch.randn(T, B, H, **new).requires_grad_(train)

    def call() -> None:
        y = module(x)[0]
        if train:
            torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()])

    with torch.set_grad_enabled(train):
        seconds = paired({"nn.LSTM": call}, _ROUNDS, device=device)
    sizes = {"precision": precision, "H": H, "B": B, "L": 1, "D": 1, "train": train}
    return {"row": {**sizes, "nn.LSTM us": 1e3 * median_ms(seconds["nn.LSTM"]) / T}}


def startup(device: str, steps: list[int], **problem: Any) -> dict[str, Any]:
    """Time a call of several T: what a launch costs before its first step, and what a step costs.

    Both by the line through the shortest and the longest call.
    """
    from benchmarks.gpu.first_contact.checks import ask, one_way

    us = {}
    for T in steps:
        module, x, layout, _ = ask(device, {**problem, "T": T})
        with torch.no_grad(), one_way(problem.get("stepwise", False)):
            calls = {"call": lambda m=module, x=x, how=layout: m(x, **how)}
            us[T] = 1e3 * median_ms(paired(calls, _ROUNDS, device=device)["call"])
    first, last = min(steps), max(steps)
    step = (us[last] - us[first]) / (last - first)
    return {"us": us, "us of a step": step, "us before the first": us[first] - first * step}


def table(device: str, path: str) -> dict[str, Any]:
    """Write the entries for fastlstm/backends/gpu/timings.py, of all that was measured."""
    from benchmarks.gpu import measured, record, watcher

    found = watcher.Log.read(Path(path))
    right = [row for row in found if row.get("ok")]
    rows = [row["row"] for row in right if row["task"].startswith("row")]
    layouts = [row for task in right for row in task.get("rows", ())]
    kind = record.kind(device)
    text = "TABLES\n" + measured.source(rows, kind)
    text += "PASSES\n" + measured.source_of_passes(layouts, kind)
    Path(path).with_name("measured.txt").write_text(text)
    return {"cells": len(rows)}
