"""The CUDA kernels on a CPU: builds ``tests/cuda_emulation`` and puts it in the backend's place."""

import fcntl
import functools
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastlstm import backends

SOURCE = Path(__file__).parent / "cuda_emulation"
BUILD = Path(__file__).parents[1] / "build" / "cuda_emulation"
# pip puts cmake and ninja beside the interpreter; the usual folders come after that.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@functools.cache
def module(name):
    """A module of the emulation, compiled if its sources have changed.

    ``cuda_emulation`` has the functions of ``fastlstm._C.cuda``, ``emulation_harness`` the kernels
    that test the emulation itself. The test is skipped if the tools to build them are missing.
    """
    tools = ["cmake", "ninja", "g++"]
    if missing := [tool for tool in tools if shutil.which(tool, path=PATH) is None]:
        pytest.skip(f"the emulation of CUDA is built by {', '.join(missing)}, which is not here")
    pybind11 = pytest.importorskip("pybind11")
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (BUILD / "build.ninja").exists():
            _run(
                *("cmake", "-S", SOURCE, "-B", BUILD, "-G", "Ninja"),
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            )
        _run("cmake", "--build", BUILD, "--target", name)
    sys.path.insert(0, str(BUILD))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BUILD))


def _run(*command):
    environment = os.environ | {"PATH": PATH}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{done.stdout[-8000:]}\n{done.stderr[-8000:]}"


def install(monkeypatch, seed, longest=None):
    """Let the cuda backend run on CPU tensors until the test is over.

    Products of float32 are tf32x3. Problems that take longer than ``longest`` seconds are not
    supported. Returns the module ``cuda_emulation``.
    """
    kernels = module("cuda_emulation")
    kernels.set_schedule(seed)
    why_not = backends.cuda.why_not

    def why_not_in_time(problem):
        reason = why_not(problem)
        if reason is None and longest is not None and seconds(problem) > longest:
            return f"is emulated, which would take {seconds(problem):.0f} s"
        return reason

    monkeypatch.setattr(backends.cuda, "kernels", kernels)
    monkeypatch.setattr(backends.cuda, "runs_on", lambda device: device == "cpu")
    monkeypatch.setattr(backends.cuda, "why_not", why_not_in_time)
    monkeypatch.setattr(backends.gpu, "precision", lambda: "tf32x3")
    return kernels


def seconds(problem):
    """Estimate the time of forward and backward in float32 by the emulation, on one core.

    Measured on an AMD Zen 4: 3 us for a product of fragments, of which tf32x3 makes three, and 0.4
    ms for the rest of a step.
    """
    H = -(-problem.H // 8) * 8
    fragments = 3 * -(-problem.B // 8) * 4 * H * H / (16 * 8)
    return 2 * problem.T * problem.G * (3e-6 * fragments + 4e-4)


def expected(case, numbers, run):
    """Inputs and cotangents, and what plain torch makes of them in these numbers and in float64.

    ``run(case, inputs, cotangents, backend, dtype)`` returns outputs and gradients by name.
    """
    # Products of tf32 have float16's mantissa, and only products do.
    like = {"tf32": torch.float16, "tf32x3": torch.float32}.get(numbers)
    like = like or getattr(torch, numbers)
    given = [
        {name: value.to(like).double() for name, value in values.items()}
        for values in (case.inputs(), case.cotangents())
    ]
    return given, run(case, *given, "reference", like), run(case, *given, "reference")
