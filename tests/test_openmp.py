"""The kernels use the OpenMP runtime of torch, and no second one is loaded."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastlstm import openmp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_there_is_one_runtime():
    code = """
import torch, fastlstm
torch.set_num_threads(2)
with torch.no_grad():
    fastlstm.LSTM(64, 64, backend="cpu")(torch.randn(50, 32, 64))
names = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line}
assert len(names) <= 1, names
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def _loader(monkeypatch, has_system):
    """Replace ctypes.CDLL: the process has no runtime, the system one or none."""
    loaded = []

    def cdll(name, mode=ctypes.DEFAULT_MODE):
        if name is None:
            return SimpleNamespace()
        if not has_system:
            raise OSError(f"{name}: cannot open shared object file")
        loaded.append((name, mode))
        return SimpleNamespace()

    monkeypatch.setattr(ctypes, "CDLL", cdll)
    return loaded


def test_without_torchs_the_systems_is_loaded(monkeypatch):
    loaded = _loader(monkeypatch, has_system=True)
    openmp.share()
    assert loaded == [("libgomp.so.1", ctypes.RTLD_GLOBAL)]


def test_without_any_the_error_says_what_to_install(monkeypatch):
    _loader(monkeypatch, has_system=False)
    with pytest.raises(ImportError, match="apt install libgomp1"):
        openmp.share()
