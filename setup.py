"""Builds fastlstm._C, the compiled kernels, with CMake. Everything else is in pyproject.toml.

The CUDA kernels are built where nvcc is found, for the GPUs of this machine.
FASTLSTM_CUDA_ARCHITECTURES in the environment names others ("80-real;90"), ALL of them (sm_80, 90
and 100) or OFF for none; see csrc/cuda/kernels.cmake. FASTLSTM_ISAS=native compiles the CPU kernels
for this machine's instruction sets only, which takes a fifth of the time.

Where the kernels cannot be built, fastlstm is installed without them, and says so when it is
imported; see fastlstm/_C.py. With FASTLSTM_REQUIRE_KERNELS=1 installing then fails.
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
COMPILERS = ["c++", "g++", "clang++"]  # as CMake tries them
CUDA = "FASTLSTM_CUDA_ARCHITECTURES"
ISAS = "FASTLSTM_ISAS"
REQUIRED = os.environ.get("FASTLSTM_REQUIRE_KERNELS", "0") not in ("", "0")
OLDEST_GPU = 80  # that the CUDA kernels can be compiled for


def architectures() -> str:
    """The GPUs to compile for, as csrc/cuda/kernels.cmake takes them."""
    asked = os.environ.get(CUDA, "")
    if asked:
        return "" if asked == "ALL" else asked
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
        found = {int(line.replace(".", "")) for line in said.split()}
    except (OSError, subprocess.SubprocessError, ValueError):
        return "NO_GPU"
    names = [f"{number}-real" for number in sorted(found) if number >= OLDEST_GPU]
    return ";".join(names) or "NO_GPU"


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
        configure += [f"-D{ISAS}={os.environ.get(ISAS, '')}"]
        self._run("configure", [*configure, f"-D{CUDA}={architectures()}"])
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


# setuptools installs a project without an optional extension that fails to build.
kernels = Extension("fastlstm._C", sources=[], optional=not REQUIRED)
setup(ext_modules=[kernels], cmdclass={"build_ext": CMakeBuild})
