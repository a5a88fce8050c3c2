"""Fixtures for all test files, and fixtures that every test runs with."""

import os
import zlib
from contextlib import nullcontext
from importlib.util import find_spec

import emulation
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastlstm import _C
from fastlstm.backends import select
from fastlstm.kernels import INTERPRETED
from fastlstm.problem import Problem

# Without it cuBLAS promises the same bits on a single stream only. It is read with the first
# product on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Packages of the extras "train" and "experiments". Where some are missing, files that cannot be
# imported are skipped, and the others run: a machine with a GPU often has little beside torch.
_EXTRAS = {
    "av",
    "jsonargparse",
    "lightning",
    "matplotlib",
    "mlxtend",
    "PIL",
    "pyarrow",
    "safetensors",
    "skvideo",
    "tensorboard",
    "yaml",
    "zarr",
}


def pytest_report_header() -> str:
    return f"fastlstm: {_C.__file__}"


class _TestFile(pytest.Module):
    """A test file, which is skipped if it imports an extra that is not installed."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError as error:
            missing = sorted(name for name in _EXTRAS if find_spec(name) is None)
            if isinstance(error.__cause__, ImportError) and missing:
                pytest.skip(f"{error.__cause__}; without {missing}", allow_module_level=True)
            raise


def pytest_pycollect_makemodule(module_path, parent):
    return _TestFile.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def _same_seed_and_poisoned_memory():
    """Every test draws the same numbers, and uninitialised memory is NaN (255 in a byte tensor).

    With deterministic algorithms torch fills what ``empty``, ``new_empty`` and ``empty_like``
    return, so a kernel that reads what it did not write gives NaN. On a GPU products of float32 do
    not use TF32, which is the default of cuDNN and of kernels that follow its setting.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    threads = torch.get_num_threads()
    tf32 = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    _C.poison_scratch(True)
    torch.manual_seed(0)
    yield
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_num_threads(threads)
    _C.set_direct("dlpack")
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)


def _device(backend):
    """The device of the tests of a backend. Without a GPU the cuda backend is emulated."""
    needs_gpu = {"cuda": torch.cuda.is_available(), "triton": not INTERPRETED}
    return "cuda" if needs_gpu.get(backend) else "cpu"


def _backends(function="why_not"):
    """The name of every backend that has this function, with the marks of its tests.

    The triton backend needs a GPU, or a process with TRITON_INTERPRET=1, which ``make test``
    starts.
    """
    smallest = Problem("cpu", torch.float32, 1, 1, 1, 1, whole_layers=True)
    for module in filter(lambda module: hasattr(module, function), select.BACKENDS):
        name = select.name(module)
        if _device(name) == "cuda":
            missing = not torch.cuda.is_available()
            marks = [
                pytest.mark.gpu,
                pytest.mark.skipif(missing, reason="there is no CUDA device"),
            ]
        else:
            reason = module.why_not(smallest) if name != "cuda" else None
            marks = [pytest.mark.skipif(reason is not None, reason=str(reason))]
        yield pytest.param(name, marks=marks)


def _where_it_runs(request):
    """While a test runs, new tensors are on the backend's device, also those of the reference.

    Each test of the emulated backend runs the threads in another order.
    """
    name = request.param
    if name == "cuda" and _device(name) == "cpu":
        order = zlib.crc32(request.node.nodeid.encode())
        emulation.install(request.getfixturevalue("monkeypatch"), order, longest=2)
    with torch.device(_device(name)):
        yield name


@pytest.fixture(params=_backends())
def backend(request):
    """The name of every backend in turn; see :func:`helpers.skip_unless_supported`."""
    yield from _where_it_runs(request)


@pytest.fixture(params=_backends("backward"))
def fused_backend(request):
    """The name of every backend that implements the sequence op, in turn."""
    yield from _where_it_runs(request)


@pytest.fixture(params=[p for p in _backends("backward") if p.values[0] in ("cuda", "triton")])
def gpu_backend(request):
    """The names of the backends with kernels for GPUs, in turn."""
    yield from _where_it_runs(request)


@pytest.fixture(params=[parameter for parameter in _backends() if "triton" in parameter.values])
def triton_backend(request):
    """The name "triton", if its kernels can run."""
    yield from _where_it_runs(request)


@pytest.fixture
def quiet_command_line(monkeypatch):
    """The command ``fastlstm`` on one thread, without what it leaves behind in the process."""
    # Lightning warns if it is given words and the process has words of its own too
    monkeypatch.setattr("sys.argv", ["fastlstm"])
    torch.set_num_threads(1)
    yield
    torch.set_flush_denormal(False)  # fastlstm.cli.main sets it


@pytest.fixture
def compiled():
    """``torch.compile`` without graph breaks and without a code generator."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()


class _Listener(TorchDispatchMode):
    """Sees every op, so that the kernels are called as an op and not directly."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **kwargs or {})


@pytest.fixture(params=["direct", "autograd", "op"])
def path(request):
    """Each path to the kernels: a direct call, the general path's function, and the op."""
    _C.set_direct("dlpack" if request.param == "direct" else "off")
    with _Listener() if request.param == "op" else nullcontext():
        yield request.param
