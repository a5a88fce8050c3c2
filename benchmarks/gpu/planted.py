"""Tasks that go wrong on purpose, to see that a worker that they end is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any


def hang() -> dict[str, Any]:
    """Never answer, and leave a child behind."""
    subprocess.Popen(["sleep", "600"])
    time.sleep(600)
    return {}


def leave() -> dict[str, Any]:
    """End the process as C's exit does."""
    os._exit(3)


def die() -> dict[str, Any]:
    """End the process as a fault in a kernel of the CPU does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def lose_the_device() -> dict[str, Any]:
    """Raise what torch raises after an illegal access, after which every call of CUDA fails."""
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def raise_an_error() -> dict[str, Any]:
    """Raise an error that the process outlives."""
    raise ValueError("planted")


def process(after: str) -> dict[str, Any]:
    """The number of the process that came after a task."""
    return {"process": os.getpid()}
