"""The process that works for the GPU scripts: one task at a time, from its standard input.

    python -m benchmarks.gpu.worker

A task is a line of JSON, ``["module:function", {arguments}]``, and so is its answer: what the
function returns, a dict, with ``ok`` unless it says otherwise. ``lost`` says that the process
cannot use its GPU any more, as after an illegal access. :class:`benchmarks.gpu.watcher.Worker`
starts this process, and replaces it when a task has ended it.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import re
import signal
import sys
from typing import Any, TextIO

import torch

_SET_PARENT_DEATH_SIGNAL = 1  # of prctl
_LOST = re.compile(r"cuda ?error|CU(BLAS|DNN)_STATUS", re.IGNORECASE)


def do(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Call a function, and say how that ended. Errors of its kernels are its own."""
    try:
        module, _, name = function.partition(":")
        found = getattr(importlib.import_module(module), name)(**arguments)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return {"ok": False, "ended": said[:800], "lost": _is_lost(said)}
    return {"ok": True, **found}


def _is_lost(said: str) -> bool:
    """Whether the process must be replaced: after some errors, every call of the driver fails."""
    if _LOST.search(said.replace("cudaError", "CUDA error")):
        return True
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def _answers() -> TextIO:
    """The standard output, for answers alone: what others print goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def main() -> None:
    if sys.platform == "linux":  # no process may hold the GPU after its watcher was killed
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    answers = _answers()
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(do(*json.loads(line)), default=str), file=answers, flush=True)


if __name__ == "__main__":
    main()
