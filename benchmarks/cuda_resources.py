"""Print the registers, stack and shared memory of the CUDA kernels; needs no GPU.

    python -m benchmarks.cuda_resources [FILE] [--json FILE]

Reads the machine code in FILE (default: fastlstm._C; any output of nvcc) with cuobjdump from the
CUDA toolkit or from triton. Shared memory is the static part; the dynamic part that a launch asks
for is ``shared_bytes`` of its plan. The exit status is 1 if a kernel uses a stack: registers were
spilled to it, or an array is indexed at run time.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from . import common


class Kernel(NamedTuple):
    """One kernel as compiled for one architecture."""

    name: str
    architecture: int
    registers: int
    """per thread"""
    stack: int
    """bytes per thread"""
    shared: int
    """bytes per block, the static part"""


def tool() -> str | None:
    """Return the path of cuobjdump, or None if it is not installed."""
    folders = ["/usr/local/cuda/bin"]
    triton = find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    found = shutil.which("cuobjdump")
    return found or shutil.which("cuobjdump", path=":".join(folders))


def read(file: str | Path) -> list[Kernel]:
    """Read the kernels of every architecture in an output file of nvcc.

    Raises:
        RuntimeError: cuobjdump is not installed.
    """
    cuobjdump = tool()
    if cuobjdump is None:
        raise RuntimeError("cuobjdump: expected it on PATH, in the CUDA toolkit or in triton")
    command = [cuobjdump, "-res-usage", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse(done.stdout)


def parse(usage: str) -> list[Kernel]:
    """Parse the output of ``cuobjdump -res-usage``."""
    kernels, architecture, name = [], 0, ""
    for line in usage.splitlines():
        if found := re.match(r"arch = sm_(\d+)", line):
            architecture = int(found[1])
        elif found := re.match(r"\s*Function (\S+):", line):
            name = found[1]
        elif found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) ", line):
            kernels.append(Kernel(name, architecture, *map(int, found.groups())))
    return kernels


def demangled(kernels: list[Kernel]) -> list[Kernel]:
    """Replace mangled names by those in the source, without argument types, if c++filt is there."""
    if shutil.which("c++filt") is None:
        return kernels
    names = "\n".join(kernel.name for kernel in kernels)
    done = subprocess.run(["c++filt"], input=names, capture_output=True, text=True, check=True)
    scopes, arguments = r"^void |fastlstm::cuda::|\(anonymous namespace\)::", r"\(.*\)$"
    short = [re.sub(arguments, "", re.sub(scopes, "", n)) for n in done.stdout.splitlines()]
    return [kernel._replace(name=n) for kernel, n in zip(kernels, short, strict=True)]


def main() -> None:
    """Parse arguments, print the table, and write JSON if asked to."""
    from fastlstm import _C

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", default=_C.__file__)
    parser.add_argument("--json", help="file to write the rows to")
    arguments = parser.parse_args()
    kernels = sorted(demangled(read(arguments.file)))
    if not kernels:
        raise SystemExit(f"{arguments.file} has no CUDA kernels; {_C.cuda.reason or ''}")
    width = max(len(kernel.name) for kernel in kernels)
    print(f"{'kernel':<{width}}{'sm':>5}{'registers':>11}{'stack':>7}{'shared':>8}")
    for kernel in kernels:
        print(f"{kernel.name:<{width}}{kernel.architecture:>5}{kernel.registers:>11}", end="")
        print(f"{kernel.stack:>7}{kernel.shared:>8}{'  spills' if kernel.stack else ''}")
    common.write(arguments.json, {}, [kernel._asdict() for kernel in kernels])
    raise SystemExit(any(kernel.stack for kernel in kernels))


if __name__ == "__main__":
    main()
