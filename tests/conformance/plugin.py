"""A pytest plugin: puts fastlstm's classes in the place of torch's, and records every test.

The record has one JSON object a line, written as things happen, so that a test which takes the
process down is the one with a start and no end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.ao.quantization  # its tables keep torch's classes as their keys, as they do for users
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.testing._internal import common_utils

NAMES = ("LSTM", "LSTMCell")
NAMESPACES = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)
TORCHS = tuple(getattr(torch.nn, name) for name in NAMES)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--lstm", choices=["torch", "fastlstm"], help="whose classes are torch.nn's")
    group.addoption("--record", type=Path, help="file to write what happened to")
    group.addoption("--only", type=Path, help="file with the ids of the tests to run, one a line")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--lstm") == "fastlstm":
        import fastlstm  # not needed by the run with torch's classes

        for namespace in NAMESPACES:
            for name in NAMES:
                setattr(namespace, name, getattr(fastlstm, name))
    with mock.patch.object(sys, "argv", ["pytest"]):
        common_utils.parse_cmd_line_args()  # torch's own runner does: it sets what TestJit asks for
    config.pluginmanager.register(Recorder(config.getoption("--record")))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--only") is not None:
        ids = set(config.getoption("--only").read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in ids]


class Recorder:
    """What every test did: its outcome, its error in one line, whether it made an LSTM."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w", buffering=1)
        register_module_parameter_registration_hook(self._see)

    def _see(self, module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
        self.makes_lstm = self.makes_lstm or isinstance(module, TORCHS)

    def _write(self, **entry: object) -> None:
        self.file.write(json.dumps(entry) + "\n")

    makes_lstm = False  # what is made while a file is imported belongs to none of its tests

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome, self.error, self.makes_lstm = "passed", "", False
        self._write(test=nodeid, event="start")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.outcome == "passed" or self.outcome == "failed":
            return
        self.outcome = report.outcome
        crash = getattr(report.longrepr, "reprcrash", None)
        text = crash.message if crash is not None else str(report.longrepr)
        self.error = " ".join(text.split())[:300]

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(
            test=nodeid,
            event="end",
            outcome=self.outcome,
            error=self.error,
            makes_lstm=self.makes_lstm,
        )
