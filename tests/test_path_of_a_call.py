"""The way of a call through the library stays short: functions, files and changes of file.

Counted are the Python functions of the package that are entered, in order. Comprehensions and
compiled functions do not count.
"""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import fastlstm

ROOT = str(Path(fastlstm.__file__).parent)
NOT_COUNTED = {"<genexpr>", "<listcomp>", "<lambda>", "<dictcomp>", "<setcomp>"}


def path_of(call):
    """(functions, files, changes of file) that a call enters."""
    files = []

    def enter(frame, event, argument):
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if event == "call" and file.startswith(ROOT) and name not in NOT_COUNTED:
            files.append(file)

    sys.setprofile(enter)
    try:
        call()
    finally:
        sys.setprofile(None)
    changes = sum(a != b for a, b in pairwise(files))
    assert files
    return len(files), len(set(files)), changes


def assert_within(path, functions, files, changes):
    assert path[0] <= functions and path[1] <= files and path[2] <= changes


@pytest.fixture
def lstm():
    """An LSTM that has been called before, and its input."""
    module, x = fastlstm.LSTM(64, 64), torch.randn(20, 4, 64)
    module(x)[0].sum().backward()
    return module, x


def test_inference(lstm):
    module, x = lstm
    with torch.no_grad():
        module(x)
        assert_within(path_of(lambda: module(x)), 24, 10, 14)


def test_training(lstm):
    module, x = lstm
    assert_within(path_of(lambda: module(x)), 34, 12, 20)


def test_backward(lstm):
    module, x = lstm
    loss = module(x)[0].sum()
    assert_within(path_of(loss.backward), 30, 6, 9)


def test_composite_loss():
    model, frames = fastlstm.CompositeLSTM(16, 8), torch.rand(5, 2, 16)
    model.loss(frames, frames)
    functions, _, changes = path_of(lambda: model.loss(frames, frames))
    assert functions <= 95 and changes <= 50
