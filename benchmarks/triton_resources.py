"""Print the registers, spills and shared memory of the Triton kernels; needs no GPU.

    python -m benchmarks.triton_resources [--architecture 80 90 100] [--dtype bfloat16 ...]
        [--json FILE]

Compiles every kernel in every configuration that the backend can choose, with all options, with
none and with masks, for sizes that fill a block and for sizes that do not. This takes some minutes
and needs triton. The exit status is 1 if a kernel spills registers inside a loop, or needs more
shared memory than a block can have.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

from . import common

ARCHITECTURES = (80, 90, 100)
SHARED_KIB = {80: 163, 90: 227, 100: 227}  # of a block; 99 on other architectures
ELEMENTS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
SEQUENCE = ("lstm_forward", "lstm_backward")
CELLS = ("lstm_cell_forward", "lstm_cell_backward")
NORMALIZED = ("normalized_cell_forward", "normalized_cell_backward")
SUMS = ("p_c", "p_dc", "p_dweight_ch", "p_dnorm_hh", "p_dnorm_c")
MASKS = ("p_hidden_mask", "p_masked_h")
# The optional arguments: each is a pointer that may be null.
OPTIONS = ("p_weight_ch", "p_lengths", "p_reserve", "p_dy", "p_dhy", "p_dcy", "p_dweight_ch")
OPTIONS += ("p_norm_c", "p_dnorm_c")


class Case(NamedTuple):
    """One kernel and the configuration that it is compiled in."""

    kernel: str
    architecture: int
    dtype: str
    H: int
    options: bool
    """with peepholes, lengths, reserve and all cotangents; without any"""
    precision: str = "tf32x3"
    masks: bool = False
    """with a mask of h, zoneout and a limit of c"""


class Resources(NamedTuple):
    """The resources of one compiled kernel."""

    registers: int
    """per thread"""
    stack: int
    """bytes of stack per thread, where registers are spilled"""
    spills: int
    """instructions inside loops that access the stack; outside of loops they cost nothing, and the
    assembler keeps values there that are needed only at the end"""
    shared: int
    """bytes of shared memory per block"""

    def fits(self, architecture: int) -> bool:
        """Return whether no loop has spills and the shared memory suffices."""
        return self.spills == 0 and self.shared <= SHARED_KIB.get(architecture, 99) * 1024


def cases(architecture: int, dtypes: tuple[str, ...] = tuple(ELEMENTS)) -> Iterator[Case]:
    """Yield every configuration that the backend can choose on an architecture."""
    from fastlstm.kernels.configurations import single_launch

    sizes = [((16, 32, 64, 128), SEQUENCE), ((2048,), CELLS), ((64, 1024, 2048), NORMALIZED)]
    for units, kernel in ((units, kernel) for units, kernels in sizes for kernel in kernels):
        is_sequence = kernel in SEQUENCE
        for dtype in dtypes:
            for block_h in units:
                capability = divmod(architecture, 10)
                if is_sequence and single_launch(capability, BYTES[dtype], block_h) is None:
                    continue
                both = is_sequence and dtype == "float32"
                for precision in ("tf32x3", "tf32") if both else ("tf32x3",):
                    for H in (block_h, block_h - 4, block_h - 1):
                        yield Case(kernel, architecture, dtype, H, True, precision)
                    yield Case(kernel, architecture, dtype, block_h, False, precision)
                    yield Case(kernel, architecture, dtype, block_h, True, precision, masks=True)


def measure(case: Case) -> Resources:
    """Compile a case, and read its resources from the machine code.

    Raises:
        RuntimeError: under Triton's interpreter, which does not compile.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastlstm.kernels import INTERPRETED

    if INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET: expected it unset, kernels are to be compiled")
    kernel, values, num_warps = _arguments(case)
    positions = {name: index for index, name in enumerate(kernel.arg_names)}
    types = {n: v if isinstance(v, (str, tuple)) else "constexpr" for n, v in values.items()}
    types |= dict.fromkeys(("PRECISION",) if "PRECISION" in values else (), "constexpr")
    # The same divisibility as the launcher finds: torch aligns memory to 16 bytes, and the rows of
    # most sizes are aligned too.
    aligned = [name for name, kind in types.items() if kind[0].startswith("*")]
    if case.H % 16 == 0:
        aligned += [n for n in types if n.startswith("stride") or (n == "H" and types[n] == "i32")]
    source = ASTSource(
        fn=kernel,
        signature={name: types[name] for name in kernel.arg_names},
        constexprs={(positions[n],): values[n] for n in types if types[n] == "constexpr"},
        attrs={
            (positions[name], *[0] * isinstance(types[name], tuple)): [["tt.divisibility", 16]]
            for name in aligned
        },
    )
    options = {"num_warps": num_warps, "enable_fp_fusion": True}
    target = GPUTarget("cuda", case.architecture, 32)
    compiled = triton.compile(source, target=target, options=options)
    tools = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, assembly = (
            subprocess.run(
                [os.path.join(tools, "cuobjdump"), option, file.name],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for option in ("-res-usage", "-sass")
        )
    registers, stack = map(int, re.findall(r"(?:REG|STACK):(\d+)", usage))
    return Resources(registers, stack, spills_in_loops(assembly), compiled.metadata.shared)


def spills_in_loops(assembly: str) -> int:
    """Count the instructions between a backward branch and its target that access the stack."""
    instructions = [
        (int(address, 16), text)
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", assembly)
    ]
    targets = ((a, re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)) for a, text in instructions)
    branches = ((int(found[1], 16), address) for address, found in targets if found)
    loops = [(start, end) for start, end in branches if start < end]  # one to itself is the end
    return sum(
        any(start <= address <= end for start, end in loops)
        for address, text in instructions
        if re.search(r"\b(STL|LDL)\b", text)
    )


def _arguments(case: Case) -> tuple[Any, dict[str, Any], int]:
    """Return the kernel, a type or a constant for each of its arguments, and the warps."""
    import triton.language as tl

    from fastlstm.kernels import configurations

    module = (
        "lstm_cell"
        if case.kernel in CELLS
        else case.kernel.replace("normalized_cell", "normalized")
    )
    kernel = getattr(import_module(f"fastlstm.kernels.{module}"), f"{case.kernel}_kernel")
    pointer = f"*{ELEMENTS[case.dtype]}"
    sums = "*fp64" if case.dtype == "float64" else "*fp32"
    values: dict[str, Any] = {}
    for name in kernel.arg_names:
        values[name] = pointer if name.startswith("p_") else "i32"
    values |= {name: sums for name in SUMS if name in values}
    values["p_lengths"] = "*i64"
    keep = (pointer, "i32", "i32", "i32") if case.masks else None
    values |= {"keep_h": keep, "keep_c": keep, "CLIP": 3.0 if case.masks else 0.0}
    if not case.masks:
        values |= dict.fromkeys(name for name in MASKS if name in values)
    if not case.options:
        is_forward = "forward" in case.kernel  # backward always has a reserve
        absent = [n for n in OPTIONS if n in values and (is_forward or n != "p_reserve")]
        values |= dict.fromkeys(absent)
    configuration: configurations.Configuration | None = configurations.CELL
    if case.kernel in NORMALIZED:
        configuration = configurations.normalized_cell(case.H)
    if "ACC" in values:
        capability = divmod(case.architecture, 10)
        configuration = configurations.single_launch(capability, BYTES[case.dtype], case.H)
        assert configuration is not None
        values |= {
            "H": case.H,
            "ACC": tl.float64 if case.dtype == "float64" else tl.float32,
            "PRECISION": case.precision,
            "NUM_STAGES": configuration.num_stages,
        }
    assert configuration is not None
    values |= {"BLOCK_B": configuration.block_b, "BLOCK_H": configuration.block_h}
    return kernel, values, configuration.num_warps


def _kind(case: Case) -> str:
    return "masks" if case.masks else "all" if case.options else "none"


def main() -> None:
    """Parse arguments, compile, print the table, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--dtype", nargs="+", default=list(ELEMENTS), choices=list(ELEMENTS))
    parser.add_argument("--json", help="file to write the rows to")
    arguments = parser.parse_args()
    print(f"{'kernel':<25}{'sm':>4} {'dtype':<9}{'':<7}{'H':>5} {'options':<8}", end="")
    print(f"{'registers':>10}{'stack':>7}{'spills':>8}{'shared':>9}")
    rows, bad = [], 0
    for architecture in arguments.architecture:
        for case in cases(architecture, tuple(arguments.dtype)):
            resources = measure(case)
            fits = resources.fits(architecture)
            bad += not fits
            print(f"{case.kernel:<25}{case.architecture:>4} {case.dtype:<9}", end="")
            precision = case.precision if case.dtype == "float32" else ""
            print(f"{precision:<7}{case.H:>5} {_kind(case):<8}", end="")
            print(f"{resources.registers:>10}{resources.stack:>7}{resources.spills:>8}", end="")
            print(f"{resources.shared:>9}{'' if fits else '  too much'}", flush=True)
            rows.append(case._asdict() | resources._asdict())
    common.write(arguments.json, {}, rows)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
