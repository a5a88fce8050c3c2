"""examples/stream: a C program over csrc/stream.h is built and computes what the module does."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "stream"


def test_the_program_computes_what_the_module_does(tmp_path, monkeypatch):
    for tool in ("cmake", "cc", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    monkeypatch.setenv("CXX", "g++")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for command in (
        [
            "cmake",
            "-S",
            EXAMPLE,
            "-B",
            tmp_path,
            "-DCMAKE_BUILD_TYPE=Debug",
            "-DFASTLSTM_ISAS=native",
        ],
        ["cmake", "--build", tmp_path, "--parallel", "2"],
        [sys.executable, EXAMPLE / "check.py", tmp_path / "stream"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("relative error") == 3
