"""Fixtures that every test file shares, and the ones that no test can forget."""

import pytest
import torch

from fastlstm import dispatch


@pytest.fixture(autouse=True)
def _same_seed_and_poisoned_memory():
    """Every test draws the same numbers, and uninitialised memory is NaN (255 in a byte tensor).

    Torch fills what ``empty``, ``new_empty`` and ``empty_like`` return when it is asked for
    deterministic algorithms, so a kernel that reads what it did not write is found out.
    """
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)


@pytest.fixture(params=[dispatch.name(module) for module in dispatch.BACKENDS])
def backend(request):
    """The name of every backend in turn; see :func:`helpers.skip_unless_supported`."""
    return request.param


@pytest.fixture(params=[dispatch.name(m) for m in dispatch.BACKENDS if hasattr(m, "forward")])
def fused_backend(request):
    """The name of every backend that implements the sequence op, in turn."""
    return request.param


@pytest.fixture
def compiled():
    """``torch.compile`` without graph breaks and without a code generator."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda function: torch.compile(function, fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
