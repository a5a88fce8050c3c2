"""Builds fastlstm._C, the compiled kernels, with CMake. Everything else is in pyproject.toml.

The CUDA kernels are built where nvcc is found. FASTLSTM_CUDA_ARCHITECTURES in the environment says
for which GPUs ("80-real;90"), or OFF for none; see csrc/cuda/kernels.cmake.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
COMPILERS = ["c++", "g++"]  # as CMake tries them
CUDA = "FASTLSTM_CUDA_ARCHITECTURES"


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt; the module lands where setuptools wants it."""

    def build_extension(self, ext: Extension) -> None:
        compilers = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else COMPILERS
        if not any(map(shutil.which, compilers)):
            raise CompileError(
                f"fastlstm needs a C++17 compiler and found no {' or '.join(compilers)}: install "
                "one (Debian, Ubuntu: apt install g++; conda: conda install cxx-compiler)."
            )
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release"]
        configure += [f"-DPython_EXECUTABLE={sys.executable}"]
        configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
        cuda = os.environ.get(CUDA, "")
        self._run("configure", [*configure, f"-D{CUDA}={cuda}"])
        try:
            self._run("build", ["cmake", "--build", build])
        except CompileError:  # the CPU's kernels do not wait for an nvcc that works
            print(f"fastlstm: the build failed; it is tried again with {CUDA}=OFF", file=sys.stderr)
            self._run("configure", [*configure, f"-D{CUDA}=OFF"])
            self._run("build", ["cmake", "--build", build])
        self._run("install", ["cmake", "--install", build, "--prefix", target])

    def _run(self, step: str, command: list[str | Path]) -> None:
        done = subprocess.run(command, capture_output=not self.verbose, text=True)
        if done.returncode:
            print(done.stdout or "", done.stderr or "", file=sys.stderr)
            raise CompileError(f"fastlstm: the {step} step failed; its output is above.")


setup(ext_modules=[Extension("fastlstm._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
