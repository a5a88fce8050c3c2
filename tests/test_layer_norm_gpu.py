"""The triton and cuda backends with layer norm, against the reference.

As in the other tests, Triton's kernels run under its interpreter and those of cuda are emulated,
where there is no GPU.
"""

import pytest
import torch
from helpers import Case, assert_close, skip_unless_supported
from option_cases import check_call, needs_of, option_call, results_of, to_dtype

import fastlstm
from fastlstm.backends import select
from fastlstm.call import OutputGradients, Saved, Wanted

NORMS = ("norm_hh", "norm_c")
ALL = (*NORMS, "hidden_mask", "keep_h", "keep_c", "cell_clip")
BOTH = (False, True)


def check(case, names, backend):
    """Compare results in float64."""
    skip_unless_supported(backend, case.problem(torch.float64))
    check_call(select.get(backend), option_call(case, names), case, case.cotangents())


@pytest.mark.parametrize(
    "names, layout",
    [
        (("norm_hh", "keep_c", "cell_clip"), {"peephole": False}),
        (NORMS, {"lengths": True}),
        (ALL, {"packed": True}),
        (NORMS, {"reset": True}),
        (ALL, {"lengths": True, "reset": True, "uses": ("y", "hy", "cy", "cells")}),
    ],
    ids=str,
)
def test_layer_norm(gpu_backend, names, layout):
    check(Case(T=3, B=3, H=9, reverse=BOTH, **layout), names, gpu_backend)


@pytest.mark.parametrize("B, H", [(9, 33), (2, 600)])
def test_sizes(gpu_backend, B, H):
    """More rows than a program has, and more units than a block has threads."""
    check(Case(T=1, B=B, H=H, reverse=BOTH, lengths=True), ALL, gpu_backend)


def test_outputs_unused(gpu_backend):
    check(Case(T=2, B=2, H=5, uses=("cy",), lengths=True), NORMS, gpu_backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_error_is_that_of_torch(gpu_backend, dtype):
    case = Case(T=2, B=3, H=20, reverse=BOTH, lengths=True)
    call = to_dtype(option_call(case, ALL[:-1]), dtype)  # near the limit a rounding decides
    cotangents = {name: value.to(dtype) for name, value in case.cotangents().items()}
    check_call(select.get(gpu_backend), call, case, cotangents)


def test_the_mean_of_a_row_does_not_cancel_its_digits(gpu_backend):
    """z is about 64: float32 has its square with an error of 2e-4, where the variance is 0.1."""
    case = Case(T=2, B=2, H=16)
    call, cotangents = option_call(case, NORMS), case.cotangents()
    weight = call.weights.weight_hh[0].clone()
    weight[:, 0], hx = 64.0, call.hx.clone()
    hx[..., 0] = 1.0
    call = call._replace(weights=call.weights._replace(weight_hh=[weight]), hx=hx)
    check_call(select.get(gpu_backend), to_dtype(call, torch.float32), case, cotangents)


def test_what_is_past_a_length_may_be_anything(gpu_backend):
    case = Case(T=3, B=3, H=6, reverse=(True,), lengths=True)
    backend, call, cotangents = select.get(gpu_backend), option_call(case, ALL), case.cotangents()
    past = torch.arange(3)[:, None] >= call.layout.lengths
    assert past.any()
    truth = results_of(backend, call, case, cotangents)
    call = call._replace(input=call.input.masked_fill(past[:, :, None, None], torch.nan))
    found = results_of(backend, call, case, cotangents)
    assert all(torch.equal(found[name], truth[name]) for name in truth)


def test_no_row(gpu_backend):
    call = option_call(Case(T=2, B=2, H=5, reverse=BOTH), NORMS)
    call = call._replace(input=call.input[:, :0], hx=call.hx[:, :0], cx=call.cx[:, :0])
    backend = select.get(gpu_backend)
    results = backend.forward(call, Wanted(train=True))
    grads, saved = OutputGradients(dhy=call.hx), Saved(results.y, results.reserve)
    found = backend.backward(call, saved, grads, needs_of(call))
    assert found.norm_hh.shape == call.options.norm_hh.shape and not found.norm_hh.any()
    assert found.norm_c.shape == call.options.norm_c.shape and not found.norm_c.any()
    assert not found.weight_hh.any()


def test_lstm(gpu_backend):
    """A whole LSTM, whose masks are drawn from torch's generator."""
    found = {}
    for backend in (gpu_backend, "reference"):
        torch.manual_seed(1)
        module = fastlstm.LSTM(
            5,
            7,
            bidirectional=True,
            peephole=True,
            layer_norm=True,
            zoneout=(0.1, 0.2),
            checkpoint_every=2,
            dtype=torch.float64,
            backend=backend,
        )
        y, (h, c) = module(torch.randn(3, 2, 5, dtype=torch.float64))
        loss = y.sin().sum() + h.sum() + c.cos().sum()
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        found[backend] = dict(enumerate([y.detach(), h.detach(), c.detach(), *gradients]))
    assert_close(found[gpu_backend], found["reference"], 1e-12)


def test_a_cell(gpu_backend):
    found = {}
    for backend in (gpu_backend, "reference"):
        torch.manual_seed(1)
        cell = fastlstm.LSTMCell(5, 7, layer_norm=True, dtype=torch.float64, backend=backend)
        h, c = cell(torch.randn(3, 5, dtype=torch.float64))
        gradients = torch.autograd.grad((h.sin() + c.cos()).sum(), list(cell.parameters()))
        found[backend] = dict(enumerate([h.detach(), c.detach(), *gradients]))
    assert_close(found[gpu_backend], found["reference"], 1e-12)
