"""The ops can be called directly: arguments that do not fit together raise a clear error."""

import itertools

import pytest
import torch
from helpers import error
from test_ops import _backward_arguments, _forward_arguments

from fastlstm.op import schema

GIVEN = ("input", "weight_ih", "bias", "weight_hh", "weight_ch", "weight_hr")
WEIGHTS = ("weight_ih", "bias_ih", "bias_hh", "weight_hh", "weight_ch", "weight_hr")
forward = torch.ops.fastlstm.lstm_sequence
backward = torch.ops.fastlstm.lstm_sequence_backward
NAMES = [argument.name for argument in forward.default._schema.arguments]


@pytest.mark.parametrize("kept", [(0, True), (2, True), (2, False)], ids=str)
@pytest.mark.parametrize("I", [0, 3])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("peephole", [False, True])
def test_every_combination_of_needs(peephole, proj_size, I, kept):
    """A gradient of a tensor that was given is computed; of one that was not, it is an error."""
    options = {"peephole": peephole, "proj_size": proj_size, "I": I}
    *arguments, _, every, backend = _backward_arguments(options, kept=kept)
    call = schema.unflatten_call(arguments[6:])
    there = dict.fromkeys(GIVEN, True)
    names = ("weight_ih", "weight_ch", "weight_hr")
    there |= {name: bool(getattr(call.weights, name)) for name in names}
    there["bias"] = bool(call.weights.bias_ih)
    whole = backward(*arguments, [there[name] for name in GIVEN], every, backend)
    for needs in itertools.product([False, True], repeat=6):
        asked = dict(zip(GIVEN, needs, strict=True))
        absent = [name for name in GIVEN if asked[name] and not there[name]]
        if absent:
            with pytest.raises(ValueError, match=f"needs: expected False for {absent[0]}, which"):
                backward(*arguments, list(needs), every, backend)
            continue
        found = backward(*arguments, list(needs), every, backend)
        for need, mine, expected in zip((*needs, True, True), found, whole, strict=True):
            assert error(mine, expected) < 1e-12 if need else mine.numel() == 0


@pytest.mark.parametrize("absent", ["dy", "dhy", "dcy", "dcells"])
def test_gradients_that_do_not_arrive(absent):
    """A gradient None is zero."""
    arguments = list(_backward_arguments({"peephole": True, "I": 3, "proj_size": 2}))
    place = ("dy", "dhy", "dcy", "dcells").index(absent)
    zero, none = arguments.copy(), arguments.copy()
    zero[place], none[place] = torch.zeros_like(arguments[place]), None
    for mine, expected in zip(backward(*none), backward(*zero), strict=True):
        assert error(mine, expected) < 1e-12


@pytest.mark.parametrize(
    "name, change, match",
    [
        ("needs", lambda needs: needs[:5], "needs: expected 6 flags, got 5"),
        ("dy", lambda t: t[1:], "dy: expected size"),
        ("dhy", lambda t: t.float(), "dhy: expected dtype torch.float64"),
        ("dcy", lambda t: t[..., 1:], "dcy: expected size"),
        ("dcells", lambda t: t[:, 1:], "dcells: expected size"),
        ("y", lambda t: t.new_empty(0), "y: expected size"),
        ("reserve", lambda t: t.new_empty(0), "reserve: expected size"),
        ("reserve", lambda t: t.float(), "reserve: expected dtype torch.float64"),
        ("input", lambda t: t[1:], "expected size"),
        ("hx", lambda t: t[:1], "expected size"),
        ("cx", lambda t: t.float(), "cx: expected dtype torch.float64"),
        ("weight_hh", lambda w: w[:1], "expected 1 groups|expected 1 tensors|expected 1 flags"),
        ("reverse", lambda flags: flags[:1], "reverse: expected 2 flags"),
        ("checkpoint_every", lambda every: -1, "checkpoint_every: expected at least 0, got -1"),
        ("checkpoint_every", lambda every: 2, "reserve: expected size"),
        ("backend", lambda name: "reference", "expected one with kernels for the op"),
        ("backend", lambda name: "nonsense", "backend: expected 'auto'"),
    ],
)
def test_backward_arguments_that_do_not_fit(name, change, match):
    names = ("dy", "dhy", "dcy", "dcells", "y", "reserve", *NAMES[:13])
    names += ("needs", "checkpoint_every", "backend")
    arguments = list(_backward_arguments({"peephole": True, "I": 3}))
    place = names.index(name)
    arguments[place] = change(arguments[place])
    with pytest.raises((ValueError, RuntimeError), match=match):
        backward(*arguments)


@pytest.mark.parametrize("checkpoint_every", [0, 2])
@pytest.mark.parametrize("I", [0, 3])
@pytest.mark.parametrize("name", [*WEIGHTS, "input", "hx", "cx", "lengths", "reset"])
def test_forward_arguments_of_another_size_or_dtype(name, I, checkpoint_every):
    """One row, column or group less, or another dtype: an error that names it, or none."""
    options = {"peephole": True, "I": I, "lengths": True, "reset": True, "proj_size": 2}
    arguments = list(_forward_arguments(options, differentiable=False))
    arguments[-3] = checkpoint_every
    place = NAMES.index(name)
    value = arguments[place]
    if not isinstance(value, (list, torch.Tensor)) or (isinstance(value, list) and not value):
        return  # igates have no weight_ih and no biases
    changes = [lambda t: t[..., 1:], lambda t: t.float(), lambda t: t.unsqueeze(0)]
    if isinstance(value, list):
        wrong = [[change(value[0]), *value[1:]] for change in changes] + [value[:1]]
    else:
        wrong = [change(value) for change in changes]
    for changed in wrong:
        arguments[place] = changed
        with pytest.raises((ValueError, RuntimeError), match="expected"):
            forward(*arguments)


@pytest.mark.parametrize("I", [0, 3])
@pytest.mark.parametrize("absent", WEIGHTS)
def test_weights_that_are_absent(absent, I):
    """Optional weights may be absent; the gradients of the others are then correct."""
    options = {"peephole": True, "I": I, "proj_size": 2}
    arguments = list(_forward_arguments(options, differentiable=False))
    arguments[NAMES.index(absent)] = []
    required = {"weight_hh", "weight_hr"} | ({"weight_ih"} if I else set())
    if absent in required:
        with pytest.raises(RuntimeError, match="expected"):
            forward(*arguments)
    else:
        assert forward(*arguments)[0].isfinite().all()


def test_lengths_are_clamped():
    """The op takes segments of a sequence, in which a row may have ended before."""
    arguments = list(_forward_arguments({"peephole": True, "I": 3, "lengths": True}))
    place = NAMES.index("lengths")
    arguments[place] = torch.tensor([0, 3])
    y = torch.ops.fastlstm.lstm_sequence(*arguments)[0]
    assert (y[:, 0] == 0).all() and (y[:, 1] != 0).all()
    arguments[place] = torch.tensor([3, 4])
    beyond = torch.ops.fastlstm.lstm_sequence(*arguments)[0]
    arguments[place] = torch.tensor([3, 3])
    assert torch.equal(beyond, torch.ops.fastlstm.lstm_sequence(*arguments)[0])
