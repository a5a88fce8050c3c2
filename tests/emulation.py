"""The CUDA kernels on a CPU, as ``tests/cuda_emulation`` runs them: built and put in place."""

import functools
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastlstm import backends

SOURCE = Path(__file__).parent / "cuda_emulation"
BUILD = Path(__file__).parents[1] / "build" / "cuda_emulation"
# Where pip puts cmake and ninja, beside the interpreter, and then as usual.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


@functools.cache
def module(name):
    """A module of the emulation, compiled if its sources have changed.

    ``cuda_emulation`` has the functions of ``fastlstm._C.cuda``, ``emulation_harness`` the kernels
    that the emulation itself is tested with. A machine without the tools to build them skips.
    """
    tools = ["cmake", "ninja", "g++"]
    if missing := [tool for tool in tools if shutil.which(tool, path=PATH) is None]:
        pytest.skip(f"the emulation of CUDA is built by {', '.join(missing)}, which is not here")
    pybind11 = pytest.importorskip("pybind11")
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
    """The cuda backend runs on the tensors of the CPU until the test is over.

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
    """About how long forward and backward take in float32 by the emulation, on one core.

    Measured on an AMD Zen 4: 3 us for a product of fragments, of which tf32x3 makes three in place
    of one, and 0.4 ms for all else in a step.
    """
    H = -(-problem.H // 8) * 8
    fragments = 3 * -(-problem.B // 8) * 4 * H * H / (16 * 8)
    return 2 * problem.T * problem.G * (3e-6 * fragments + 4e-4)
