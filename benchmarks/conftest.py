"""pytest-benchmark's part: options, one benchmark for each contender, and the stored description.

``pytest benchmarks/`` runs the suite quick; ``--bench "--suite cell --rounds 3"`` takes the words
of ``fastlstm bench run``.
"""

from __future__ import annotations

import shlex
from functools import lru_cache
from typing import Any

import pytest
import torch

from fastlstm_bench import parse

from . import machine
from .cases import Case
from .contests import Effort, Measured
from .suites import cases


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bench", default="", help="words of `fastlstm bench run`")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        options = parse(["run", *shlex.split(metafunc.config.getoption("--bench"))])
        found = [(case, name) for case in cases(options) for name in case.ours]
        ids = [f"{case.suite}-{case.name}-{name}" for case, name in found]
        metafunc.parametrize(("case", "contender"), found, ids=ids)


@pytest.fixture(scope="session")
def effort(request: pytest.FixtureRequest) -> Effort:
    """How long to measure, on how many threads."""
    options = parse(["run", *shlex.split(request.config.getoption("--bench"))])
    threads = options.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    return Effort(options.rounds, options.max_seconds, threads, options.device)


@lru_cache(maxsize=1)  # the contenders of a case are timed in the same rounds, and tested in turn
def measured(case: Case, effort: Effort) -> Measured:
    torch.manual_seed(0)
    return case.measure(effort)


@pytest.fixture
def result(case: Case, effort: Effort) -> Measured:
    """The contest of a case, measured."""
    return measured(case, effort)


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    machine.describe(machine_info)


@pytest.hookimpl(tryfirst=True)
def pytest_benchmark_generate_commit_info() -> dict[str, Any]:
    return machine.commit()
