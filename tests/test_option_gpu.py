"""The triton and cuda backends with the options of cells, against the reference.

As in the other tests, Triton's kernels run under its interpreter and those of cuda are emulated,
where there is no GPU.
"""

import itertools

import emulation
import pytest
import torch
from helpers import Case, assert_as_close_as_torch, assert_close, skip_unless_supported
from option_cases import check_call, option_call, results_of, to_dtype

import fastlstm
from fastlstm.backends import cuda, reference, select
from fastlstm.backends.cuda import recurrence
from fastlstm.kernels import configurations
from fastlstm.options import LSTMOptions
from fastlstm.problem import Problem

ALL = ("hidden_mask", "keep_h", "keep_c", "cell_clip")
CELLS = [*[(name,) for name in ALL], ALL]
LAYOUTS = [
    {},
    {"lengths": True, "peephole": False},
    {"lengths": True, "I": 5},
    {"packed": True},
    {"packed": True, "I": 5, "peephole": False},
    {"lengths": True, "reset": True, "uses": ("y", "hy", "cy", "cells")},
]
BOTH = (False, True)


@pytest.fixture(params=["one launch", "step by step"])
def way(gpu_backend, request, monkeypatch):
    """The name of the backend, for each of its ways. In float64 cuda always goes step by step."""
    if request.param == "one launch":
        monkeypatch.setattr(recurrence, "is_stepwise", lambda *_: False)
    else:
        monkeypatch.setattr(configurations, "single_launch", lambda *_: None)
        monkeypatch.setattr(recurrence, "best_plan", lambda *_: (None, ""))
    return gpu_backend


def check(case, names, backend, **keywords):
    """Compare results in float64 and, with the error of plain torch, in float32."""
    skip_unless_supported(backend, case.problem(torch.float64))
    backend, cotangents = select.get(backend), case.cotangents()
    call = option_call(case, names, **keywords)
    check_call(backend, call, case, cotangents)
    check_call(backend, to_dtype(call, torch.float32), case, cotangents)


def _cases():
    """All options in every layout, and each alone in one; the others are slow."""
    for (number, names), layout in itertools.product(enumerate(CELLS), LAYOUTS):
        is_first = names == ALL or layout == LAYOUTS[number + 1]
        yield pytest.param(names, layout, marks=() if is_first else pytest.mark.slow)


@pytest.mark.parametrize("names, layout", _cases(), ids=str)
def test_options(way, names, layout):
    check(Case(T=4, B=3, H=9, reverse=BOTH, **layout), names, way)


@pytest.mark.parametrize("T, B, H", [(1, 3, 20), (3, 18, 16), (2, 9, 130), (2, 40, 5)])
def test_sizes(gpu_backend, T, B, H):
    """One step, full blocks, and more rows and units than a block has."""
    check(Case(T=T, B=B, H=H, I=7, reverse=BOTH, lengths=True), ALL, gpu_backend)


@pytest.mark.parametrize("uses", [("y",), ("hy",), ("cy",)])
def test_outputs_unused(way, uses):
    check(Case(T=3, B=2, H=5, reverse=BOTH, uses=uses, lengths=True), ALL, way)


def test_what_is_past_a_length_may_be_anything(way):
    case = Case(T=3, B=3, H=6, reverse=(True,), lengths=True)
    backend, call, cotangents = select.get(way), option_call(case, ALL), case.cotangents()
    past = torch.arange(3)[:, None] >= call.layout.lengths
    assert past.any()
    truth = results_of(backend, call, case, cotangents)
    call = call._replace(input=call.input.masked_fill(past[:, :, None, None], torch.nan))
    found = results_of(backend, call, case, cotangents)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


@pytest.mark.parametrize("layout", [{}, {"packed": True}], ids=str)
def test_the_expectation_of_zoneout(way, layout):
    """Shares of which all steps and rows are the same number in memory."""
    case = Case(T=3, B=2, H=6, reverse=BOTH, **layout)
    check(case, ("keep_h", "keep_c"), way, expected=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(way, dtype):
    """Masks of float32, as those that are drawn before autocast, are cast."""
    case = Case(T=5, B=4, H=20, I=7, reverse=BOTH, lengths=True)
    names, backend = ALL[:3], select.get(way)  # near the limit a rounding decides on a gradient
    call = to_dtype(option_call(case, names), dtype)
    cotangents = {name: value.to(dtype) for name, value in case.cotangents().items()}
    ours = check_call(backend, call, case, cotangents)
    wide = call.options.map(lambda name, tensor: tensor.float())
    again = results_of(backend, call._replace(options=wide), case, cotangents)
    assert all(torch.equal(again[name], ours[name]) for name in ours)


@pytest.mark.parametrize(
    "dtype, case",
    [
        (torch.float32, Case(T=3, B=8, H=48, reverse=(True,), reset=True)),
        (torch.bfloat16, Case(T=3, B=9, H=40, reverse=BOTH, lengths=True, peephole=False)),
        (torch.float16, Case(T=3, B=17, H=72, lengths=True)),
    ],
)
def test_every_plan_of_cuda(monkeypatch, dtype, case):
    """Each plan of both passes, emulated, with another order of threads."""
    kernels = emulation.install(monkeypatch, seed=0)
    name, G = str(dtype).removeprefix("torch."), len(case.reverse)
    how = {"products": "tf32x3", "device": kernels.device(0)}
    plans = [
        kernels.plans(direction, name, case.B, G, case.H, **how)[0]
        for direction in ("forward", "backward")
    ]
    names = ALL if dtype == torch.float32 else ALL[:3]
    call = to_dtype(option_call(case, names), dtype)
    cotangents = {name: value.to(dtype) for name, value in case.cotangents().items()}
    torchs = results_of(reference, call, case, cotangents)
    truth = results_of(reference, to_dtype(call, torch.float64), case, cotangents)
    for turn in range(max(map(len, plans))):
        forward, backward = (those[turn % len(those)] for those in plans)
        chosen = {"forward": (forward, ""), "backward": (backward, "")}
        monkeypatch.setattr(recurrence, "best_plan", lambda _, way, *__, of=chosen: of[way])
        monkeypatch.setattr(recurrence, "is_stepwise", lambda *_: False)
        kernels.set_schedule(turn)
        assert_as_close_as_torch(results_of(cuda, call, case, cotangents), torchs, truth)


def test_a_limit_that_float32_does_not_have(way):
    case = Case(T=4, B=3, H=9)
    call, cotangents = option_call(case, ("cell_clip",)), case.cotangents()
    call = call._replace(options=call.options._replace(cell_clip=0.1))
    check_call(select.get(way), call, case, cotangents)


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("training", [True, False])
def test_lstm(way, training, checkpoint_every):
    """A whole LSTM, whose masks are drawn from torch's generator."""
    module = fastlstm.LSTM(5, 9, 2, bidirectional=True, peephole=True, dtype=torch.float64)
    weights = [fastlstm.LSTMWeights(*w) for w in weights_of(module)]
    x = torch.randn(4, 3, 5, dtype=torch.float64)
    options = LSTMOptions(recurrent_dropout=0.3, zoneout=(0.1, 0.2), cell_clip=0.3)
    found = {}
    for backend in (way, "reference"):
        torch.manual_seed(1)
        y, (h, c) = fastlstm.lstm(
            x,
            None,
            weights,
            bidirectional=True,
            training=training,
            options=options,
            checkpoint_every=checkpoint_every,
            backend=backend,
        )
        loss = y.sin().sum() + h.sum() + c.cos().sum()
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        found[backend] = dict(enumerate([y.detach(), h.detach(), c.detach(), *gradients]))
    assert_close(found[way], found["reference"], 1e-12)


def weights_of(module):
    """The parameters of each layer and direction, in the order of ``LSTMWeights``."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_ch")
    for layer in range(module.num_layers):
        for end in ("", "_reverse"):
            yield [getattr(module, f"{name}_l{layer}{end}") for name in names]


def test_what_is_accepted(gpu_backend):
    device = torch.get_default_device().type
    problem = Problem(device, torch.float32, 5, 2, 1, 8, whole_layers=True)
    why_not = select.get(gpu_backend).why_not
    accepted = ("layer_norm", "recurrent_dropout", "zoneout", "cell_clip")
    outside = ("weight_dropout", *accepted)
    assert why_not(problem._replace(options=outside, cell_options=accepted)) is None
    refused = problem._replace(cell_options=accepted, proj_size=3)
    assert why_not(refused) == "has no projection (proj_size=3)"
