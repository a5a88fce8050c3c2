"""How long the path of a call through the package is: functions entered, files, changes of file.

This is the general path, which a reader follows; a direct call enters the module's forward alone.
"""

import itertools
import sys
from pathlib import Path

import torch

import fastlstm
from fastlstm import _C

PACKAGE = str(Path(fastlstm.__file__).parent)


def _path(call):
    """What ``call`` returns, and the file of each function of the package that it entered.

    Comprehensions, lambdas and the compiled module are left out.
    """
    files = []

    def record(frame, event, _):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE) and code.co_name[0] != "<":
            files.append(code.co_filename)

    before = sys.getprofile()
    sys.setprofile(record)
    try:
        return call(), files
    finally:
        sys.setprofile(before)


def _changes(files):
    return sum(a != b for a, b in itertools.pairwise(files))


def _assert_short(files, functions, distinct, changes):
    found = len(files), len(set(files)), _changes(files)
    text = "functions, files, changes of file: {} {} {}".format
    assert all(a <= b for a, b in zip(found, (functions, distinct, changes), strict=True)), (
        f"{text(*found)}; at most {text(functions, distinct, changes)}"
    )


def test_a_direct_call():
    lstm, x = fastlstm.LSTM(64, 64), torch.randn(20, 4, 64)
    lstm(x)[0].sum().backward()
    (y, _), files = _path(lambda: lstm(x))
    _assert_short(files, 2, 2, 1)
    _, files = _path(lambda: y.sum().backward())
    _assert_short(files, 1, 1, 0)


def test_inference():
    _C.set_direct("off")
    lstm, x = fastlstm.LSTM(64, 64), torch.randn(20, 4, 64)
    with torch.no_grad():
        lstm(x)
        _, files = _path(lambda: lstm(x))
    _assert_short(files, 24, 11, 14)


def test_training():
    _C.set_direct("off")
    lstm, x = fastlstm.LSTM(64, 64), torch.randn(20, 4, 64)
    lstm(x)[0].sum().backward()
    (y, _), files = _path(lambda: lstm(x))
    _assert_short(files, 34, 13, 20)
    _, files = _path(lambda: y.sum().backward())
    _assert_short(files, 30, 6, 10)


def test_loss_of_the_composite_model():
    model, frames = fastlstm.CompositeLSTM(16, 8), torch.rand(5, 2, 16)
    model.loss(frames, frames)
    _, files = _path(lambda: model.loss(frames, frames))
    assert len(files) <= 95
    assert _changes(files) <= 56
