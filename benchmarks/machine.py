"""The description of the machine that is stored with a run, without names of hosts or users."""

from __future__ import annotations

import os
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

import fastlstm
from fastlstm import _C

from .timing import median_seconds

PACKAGES = ("torch", "numpy", "onnxruntime", "openvino", "jax")
_LOAD = round(os.getloadavg()[0], 2)  # of others: later it is that of the benchmarks
_KEPT = ("brand_raw", "arch", "count", "family", "model", "stepping", "l2_cache_size")


def describe(machine_info: dict[str, Any]) -> None:
    """Drop the host's name and build paths from pytest-benchmark's description, and add ours."""
    for name in ("node", "python_build", "python_compiler", "release"):
        machine_info.pop(name, None)
    cpu = machine_info.get("cpu", {})
    machine_info["cpu"] = {name: cpu[name] for name in _KEPT if name in cpu}
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    machine_info["fastlstm"] = {
        "version": fastlstm.__version__,
        "isa": fastlstm.backends.cpu.isas()[0],
        "threads": torch.get_num_threads(),
        "cores": psutil.cpu_count(logical=False) or os.cpu_count(),
        "usable_cpus": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "openmp": _openmp(),
        "packages": versions,
        "load": _LOAD,
        "peak_gflops": round(_C.fma_flops("auto", torch.get_num_threads()) / 1e9, 1),
        "bandwidth_gbs": round(copy_bandwidth() / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def copy_bandwidth() -> float:
    """Return the bytes that all threads read and write in a second when they copy 128 MiB."""
    source, target = torch.ones(2, 32 * 2**20)
    seconds = median_seconds(lambda: target.copy_(source), 0.1)
    return 2 * source.numel() * source.element_size() / seconds


def commit() -> dict[str, Any]:
    """Return the commit of this source code; empty if it is installed without its repository."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *words], capture_output=True, text=True
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", Path(__file__).name):  # an environment inside of another repository
            return {"id": "", "dirty": False}
        dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
        return {
            "id": git("rev-parse", "HEAD"),
            "time": git("log", "-1", "--format=%cI"),
            "dirty": dirty,
        }
    except OSError:
        return {"id": "", "dirty": False}


def _openmp() -> list[str]:
    """Return the names of the OpenMP libraries that the process has loaded."""
    paths = {Path(entry.path).name for entry in psutil.Process().memory_maps()}
    return sorted(name for name in paths if re.match(r"lib(g|i)?omp\d?[.-]", name))


def slug(machine_info: dict[str, Any]) -> str:
    """Return the name of a machine's folder of results, such as "amd-epyc-avx512bf16"."""
    cpu = machine_info.get("cpu", {}).get("brand_raw", machine_info.get("machine", "cpu"))
    cpu = re.sub(r"\((r|tm)\)|\bcpu\b|@.*|\d+-core processor|processor", "", cpu.lower())
    words = f"{cpu} {machine_info.get('fastlstm', {}).get('isa', '')}"
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")
