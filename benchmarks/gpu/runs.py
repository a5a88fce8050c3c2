"""Test that everything runs on a GPU and is correct, and measure what a step waits for.

    python -m benchmarks.gpu.runs --out FOLDER [--device cpu --small]

The steps, of which the end of the output is recorded: small calls of every kernel; the tests marked
``gpu``; compute-sanitizer's memcheck, racecheck and synccheck on small calls; the latency of a
barrier between blocks and of rows that all blocks read (``barrier.cu``). A step that fails does not
stop the next ones.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.gpu import record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
_TAIL = 4000  # characters of a step's output that are recorded

# Small calls that reach every kernel, in all dtypes, with weights that fit on the chip or do not.
CALLS = """
import torch, fastlstm
for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
    for H, B, options in SIZES:
        module = fastlstm.LSTM(16, H, device=DEVICE, dtype=dtype, backend=BACKEND, **options)
        x = torch.randn(3, B, 16, device=DEVICE, dtype=dtype, requires_grad=True)
        lengths = torch.randint(1, 4, (B,), device=DEVICE)
        output, (h, c) = module(x, lengths=lengths)
        (output.sum() + h.sum() + c.sum()).backward()
        assert all(p.grad.isfinite().all() for p in module.parameters())
print("calls done")
"""
SIZES = [
    (40, 3, {"peephole": True}),
    (128, 9, {"bidirectional": True}),
    (512, 17, {"peephole": True, "bidirectional": True}),
    (4096, 2, {}),
]


def step(results: record.Results, name: str, command: list[str], limit: float) -> None:
    """Run a command, and record its exit status, time and output."""
    seconds = min(limit, results.seconds_left)
    if seconds < 5:
        results.add(step=name, ended="not begun: no time left")
        return
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=seconds
        )
        ended, said = f"exit {done.returncode}", done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        ended, said = f"not done after {seconds:.0f} s", str(error.stdout or "")
    except OSError as error:
        ended, said = f"not run: {error}", ""
    took = time.monotonic() - start
    results.add(step=name, ended=ended, seconds=took, program=command[0], tail=said[-_TAIL:])


def calls(device: str, backend: str, small: bool) -> list[str]:
    """Return a Python command that makes the small calls."""
    sizes = SIZES[:2] if small else SIZES
    code = CALLS.replace("SIZES", repr(sizes)).replace("DEVICE", repr(device))
    return [sys.executable, "-c", code.replace("BACKEND", repr(backend))]


def main() -> None:
    options = record.parser(__doc__, minutes=9)
    options.add_argument("--arch", help="for nvcc, as sm_90; default: the GPU's")
    arguments = options.parse_args()
    results = record.Results(arguments, "runs")
    backends = ("cuda", "triton") if arguments.device == "cuda" else ("cpu",)

    for backend in backends:
        step(results, f"calls {backend}", calls(arguments.device, backend, arguments.small), 120)
    tests = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--tb=short", "-x", "--maxfail=20"]
    if arguments.small:
        tests += ["--collect-only"]
    step(results, "pytest -m gpu", tests, 300)
    sanitizer = shutil.which("compute-sanitizer") or "compute-sanitizer"
    for tool in ("memcheck", "racecheck", "synccheck"):
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        command += calls(arguments.device, backends[0], small=True)
        step(results, f"compute-sanitizer {tool}", command, 120)
    nvcc = shutil.which("nvcc") or "nvcc"
    capability = torch.cuda.get_device_capability() if arguments.device == "cuda" else (9, 0)
    arch = arguments.arch or "sm_{}{}".format(*capability)
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/barrier"
        build = [nvcc, "-std=c++17", "-O3", f"-arch={arch}", "-I", str(ROOT / "csrc")]
        step(results, "build barrier.cu", [*build, str(HERE / "barrier.cu"), "-o", binary], 120)
        step(results, "barrier", [binary], 60)


if __name__ == "__main__":
    main()
