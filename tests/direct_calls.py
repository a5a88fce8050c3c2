"""What the tests of direct calls share: a call made by each way, and the comparison of outcomes."""

import pytest
import torch

import fastlstm
from fastlstm import _C
from fastlstm.nn.direct import record

READINGS = ["dlpack", "attributes"]
T, B, I, H = 5, 3, 7, 6


def outcome(function, reading, *arguments, **keywords):
    """What a call returns, as a flat list, or the exception that it raises."""
    if not _C.set_direct(reading):
        pytest.skip("this version of torch has no exchange functions")
    try:
        return _flat(function(*arguments, **keywords))
    except Exception as error:
        return [type(error), str(error)]


def _flat(value):
    return [item for v in value for item in _flat(v)] if isinstance(value, tuple) else [value]


def _is_same(mine, general):
    if not isinstance(general, torch.Tensor):
        return mine == general
    same = type(mine) is type(general) and mine.device == general.device
    same = same and mine.shape == general.shape and mine.dtype == general.dtype
    same = (
        same and mine.stride() == general.stride() and mine.is_inference() == general.is_inference()
    )
    same = same and mine.requires_grad == general.requires_grad
    if mine.is_meta or not same:
        return same
    return torch.equal(mine.nan_to_num(), general.nan_to_num())


def assert_same(function, *arguments, about=(), readings=READINGS, **keywords):
    """Assert that a function gives the same by each way: outputs, or an error and its text."""
    general = outcome(function, "off", *arguments, **keywords)
    for reading in readings:
        mine = outcome(function, reading, *arguments, **keywords)
        assert len(mine) == len(general), (about, mine[:2], general[:2])
        for a, b in zip(mine, general, strict=True):
            assert _is_same(a, b), (about, reading, a, b)


def is_direct(module, input, hx=None, lengths=None, reset=None):
    _C.set_direct("dlpack")
    if type(module).weights not in (fastlstm.LSTM.weights, fastlstm.LSTMCell.weights):
        return False
    if isinstance(module, fastlstm.LSTMCell):
        return _C.direct_cell(module, record, input, hx) is not None
    return _C.direct_lstm(module, record, input, hx, lengths, reset, None, None) is not None


def trained(module, input, hx, **keywords):
    """The outputs of a module, and the gradients of a function of all of them."""
    leaves = [input, *(hx or ()), *module.parameters()]
    outputs = _flat(module(input, hx, **keywords))
    loss = sum((y.sin() * (k + 1)).sum() for k, y in enumerate(outputs))
    return (*outputs, *torch.autograd.grad(loss, leaves))
