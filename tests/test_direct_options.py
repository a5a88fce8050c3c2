"""Direct calls of modules with options give what the general path gives, from the same masks."""

from functools import partial

import pytest
import torch
from direct_calls import B, H, I, T, assert_same, trained

import fastlstm
from fastlstm import _C
from fastlstm.nn.direct import normalize_for_call, record

OPTIONS = {
    "recurrent dropout": {"recurrent_dropout": 0.3},
    "weight dropout": {"weight_dropout": 0.3},
    "zoneout": {"zoneout": (0.2, 0.4)},
    "zoneout of h": {"zoneout": (0.2, 0.0)},
    "clip": {"cell_clip": 0.1},
    "all": {
        "recurrent_dropout": 0.3,
        "weight_dropout": 0.3,
        "zoneout": (0.2, 0.4),
        "cell_clip": 0.1,
        "peephole": True,
    },
    "norm": {"layer_norm": True},
    "norm and all": {
        "layer_norm": True,
        "recurrent_dropout": 0.3,
        "weight_dropout": 0.3,
        "zoneout": (0.2, 0.4),
        "cell_clip": 0.1,
        "peephole": True,
    },
}


def _is_direct(module, x, hx=None, lengths=None, reset=None):
    _C.set_direct("dlpack")
    options = module._active_options(module._endings()).in_mode(module.training)
    normalize = None if options.norms is None else partial(normalize_for_call, options)
    return _C.direct_lstm(module, record, x, hx, lengths, reset, options, normalize) is not None


def _seeded(function, *arguments, **keywords):
    torch.manual_seed(5)
    return (*function(*arguments, **keywords), torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIONS)
def test_equal_to_the_general_path(name, dtype):
    options = OPTIONS[name] | {"dtype": dtype}
    for layers, bidirectional, batch_first in ((1, False, False), (1, True, True), (2, True, True)):
        if layers > 1 and "norm" in name:
            continue
        module = fastlstm.LSTM(I, H, layers, True, batch_first, 0.0, bidirectional, **options)
        for batch in ((), (B,)):
            steps = (*batch, T) if batch_first else (T, *batch)
            rows = (layers * (1 + bidirectional), *batch, H)
            x = torch.randn(*steps, I, dtype=dtype, requires_grad=True)
            hx = tuple(torch.randn(rows, dtype=dtype, requires_grad=True) for _ in range(2))
            keywords = {"reset": torch.rand(steps) < 0.3}
            if batch:
                keywords["lengths"] = torch.tensor([2, 5, 2])
            for given, own in ((None, {}), (hx, keywords)):
                for training in (True, False):
                    module.train(training)
                    readings = ["dlpack"] if training else ["dlpack", "attributes"]
                    assert _is_direct(module, x, given, **own)
                    call = partial(_seeded, trained, module)
                    assert_same(call, x, given, about=name, readings=readings, **own)
                    with torch.no_grad():
                        call = partial(_seeded, module)
                        assert_same(call, x, given, about=name, readings=readings, **own)


@pytest.mark.parametrize("name", ["all", "norm and all", "weight dropout"])
def test_second_derivatives_have_the_masks_of_the_call(name):
    for shape, layers, batch_first in (
        ((T, B, I), 1, False),
        ((B, T, I), 1, True),
        ((T, I), 1, True),
    ):
        module = fastlstm.LSTM(
            I,
            H,
            layers,
            batch_first=batch_first,
            bidirectional=True,
            dtype=torch.float64,
            **OPTIONS[name],
        )
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        reset = torch.rand(shape[:-1]) < 0.3
        found = []
        for reading in ("dlpack", "off"):
            _C.set_direct(reading)
            torch.manual_seed(3)
            y, _ = module(x, reset=reset)
            (dx,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
            found.append(torch.autograd.grad(dx.square().sum(), [x, *module.parameters()]))
        for ours, truth in zip(*found, strict=True):
            torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


def test_what_is_not_direct():
    x = torch.randn(T, B, I)
    for module, is_direct in (
        (fastlstm.LSTM(I, H, cell_clip=1.0), True),
        (fastlstm.LSTM(I, H, cell_clip=1.0, checkpoint_every=2), False),
        (fastlstm.LSTM(I, H, cell_clip=1.0, proj_size=2), False),
        (fastlstm.LSTM(I, H, 2, dropout=0.5, cell_clip=1.0), False),
        (fastlstm.LSTM(I, H, cell_clip=1.0, backend="reference"), False),
        (fastlstm.LSTM(I, H, cell_clip=1.0).eval().freeze("bfloat16"), False),
    ):
        before = torch.get_rng_state()
        assert _is_direct(module, x) is is_direct
        assert torch.equal(torch.get_rng_state(), before)


def test_layers_with_something_between_them():
    for options in ({"variational_dropout": 0.5}, {"layer_norm": True}):
        module, x = fastlstm.LSTM(I, H, 2, **options), torch.randn(T, B, I, requires_grad=True)
        assert_same(partial(_seeded, trained, module), x, None)


def test_only_the_gains_of_norms_are_trained():
    module, x = fastlstm.LSTM(I, H, layer_norm=True).requires_grad_(False), torch.randn(T, B, I)
    module.weight_ln_hh_l0.requires_grad_()
    found = []
    for reading in ("dlpack", "off"):
        _C.set_direct(reading)
        found.append(torch.autograd.grad(module(x)[0].sum(), module.weight_ln_hh_l0)[0])
    assert torch.equal(*found)


def test_bad_norms_raise_the_error_of_the_general_path():
    module = fastlstm.LSTM(I, H, layer_norm=True)
    module.weight_ln_hh_l0 = torch.nn.Parameter(torch.ones(4 * H + 1))
    assert_same(module, torch.randn(T, B, I))
