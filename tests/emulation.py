"""Builds and imports the CUDA kernels as tests/cuda_emulation runs them, on a CPU."""

import functools
import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "cuda_emulation"
BUILD = Path(__file__).parents[1] / "build" / "cuda_emulation"


@functools.cache
def module(name):
    """A module of the emulation, compiled if its sources have changed.

    ``cuda_emulation`` has the functions of ``fastlstm._C.cuda``, ``emulation_harness`` the kernels
    that the emulation itself is tested with. A machine without the tools to build them skips.
    """
    tools = ["cmake", "ninja", "g++"]
    if missing := [tool for tool in tools if shutil.which(tool, path=_path()) is None]:
        pytest.skip(f"the emulation of CUDA is built by {', '.join(missing)}, which is not here")
    import pybind11

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


def _path():
    """Where programs are: beside the interpreter, where pip puts cmake, and then as usual."""
    import os

    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


def _run(*command):
    import os

    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PATH": _path()}
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
