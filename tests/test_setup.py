"""setup.py compiles CUDA kernels for the GPUs that are there, and can do without a compiler."""

import runpy
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("pybind11", reason="setup.py imports it")
SETUP = Path(__file__).parents[1] / "setup.py"
if not SETUP.is_file():
    pytest.skip("there is no source code around the tests", allow_module_level=True)


def load(monkeypatch):
    """The names of setup.py, and the arguments that it gives setuptools."""
    given = {}
    monkeypatch.setattr("setuptools.setup", lambda **keywords: given.update(keywords))
    return runpy.run_path(str(SETUP)), given


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("9.0\n", "90-real"),
        ("9.0\n9.0\n8.6\n", "86-real;90-real"),
        ("7.5\n10.0\n", "100-real"),
        ("7.5\n", "NO_GPU"),
        ("", "NO_GPU"),
        ('Field "compute_cap" is not a valid field', "NO_GPU"),
        (FileNotFoundError("nvidia-smi"), "NO_GPU"),
        (subprocess.CalledProcessError(9, "nvidia-smi"), "NO_GPU"),
        (subprocess.TimeoutExpired("nvidia-smi", 60), "NO_GPU"),
    ],
)
def test_the_gpus_of_this_machine_are_compiled_for(monkeypatch, said, expected):
    def nvidia_smi(command, **options):
        assert command[0] == "nvidia-smi"
        if isinstance(said, Exception):
            raise said
        return subprocess.CompletedProcess(command, 0, said)

    monkeypatch.delenv("FASTLSTM_CUDA_ARCHITECTURES", raising=False)
    monkeypatch.setattr(subprocess, "run", nvidia_smi)
    names, _ = load(monkeypatch)
    assert names["architectures"]() == expected


@pytest.mark.parametrize(("asked", "expected"), [("ALL", ""), ("OFF", "OFF"), ("90", "90")])
def test_the_environment_names_others(monkeypatch, asked, expected):
    monkeypatch.setenv("FASTLSTM_CUDA_ARCHITECTURES", asked)
    names, _ = load(monkeypatch)
    assert names["architectures"]() == expected


@pytest.mark.parametrize(("value", "optional"), [(None, True), ("0", True), ("1", False)])
def test_kernels_are_optional_unless_they_are_required(monkeypatch, value, optional):
    if value is None:
        monkeypatch.delenv("FASTLSTM_REQUIRE_KERNELS", raising=False)
    else:
        monkeypatch.setenv("FASTLSTM_REQUIRE_KERNELS", value)
    _, given = load(monkeypatch)
    assert given["ext_modules"][0].optional is optional
