"""The CPU kernels of LSTMs with layer norm: threads, dtypes and shapes."""

import pytest
import torch
from helpers import Case, assert_as_close_as_torch, assert_close, error
from option_cases import option_call, results_of, to_dtype

from fastlstm.backends import cpu, reference
from fastlstm.call import Needs, OutputGradients, Saved, Wanted

USES = ("y", "hy", "cy", "cells")
NORMS = ("norm_hh", "norm_c")
ALL = (*NORMS, "hidden_mask", "keep_h", "keep_c", "cell_clip")


@pytest.fixture(params=cpu.isas())
def isa(request):
    """Every instruction set that this build and this machine support, in turn."""
    return request.param


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    """Few threads, of which the last one has less to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "T, B, H, G", [(8, 1, 130, 1), (8, 2, 300, 1), (8, 150, 20, 2), (5, 3, 100, 3)]
)
def test_rows_and_units_are_shared_out(threads, T, B, H, G):
    """More steps than a block has, more units than a panel has, and few rows for many threads."""
    case = Case(T, B, H, reverse=(False, True, False)[:G], peephole=True, uses=USES, lengths=True)
    call, cotangents = option_call(case, ALL), case.cotangents()
    truth = results_of(reference, call, case, cotangents)
    assert_close(results_of(cpu, call, case, cotangents), truth, case.tolerance)


@pytest.mark.parametrize("names", [NORMS, ALL[:-1]], ids=str)
@pytest.mark.parametrize("T, B, H", [(5, 1, 17), (6, 9, 64)])
def test_bfloat16(isa, T, B, H, names):
    """Without cell_clip: rounding decides whether a cell near the limit has a gradient."""
    case = Case(T, B, H, reverse=(False, True), peephole=True, uses=USES)
    call = to_dtype(option_call(case, names), torch.bfloat16)
    cotangents = {name: d.bfloat16().double() for name, d in case.cotangents().items()}
    truth = results_of(reference, to_dtype(call, torch.float64), case, cotangents)
    found = results_of(cpu, call, case, cotangents, isa=isa)
    assert_as_close_as_torch(found, results_of(reference, call, case, cotangents), truth)


def test_float16():
    case = Case(6, 3, 33, uses=USES)
    call = to_dtype(option_call(case, ALL), torch.float16)
    cotangents = {name: d.half().double() for name, d in case.cotangents().items()}
    truth = results_of(reference, to_dtype(call, torch.float64), case, cotangents)
    found = results_of(cpu, call, case, cotangents)
    for name, value in truth.items():
        assert error(found[name], value) < 1e-2, name


@pytest.mark.parametrize("layout", [{}, {"lengths": True, "reset": True}, {"packed": True}])
def test_layouts_and_threads(isa, layout, threads):
    """All memory is NaN at first, in every test: what is not written must not be read."""
    case = Case(6, 5, 33, reverse=(False, True), peephole=True, uses=USES, **layout)
    call, cotangents = option_call(case, ALL), case.cotangents()
    truth = results_of(reference, call, case, cotangents)
    assert_close(results_of(cpu, call, case, cotangents, isa=isa), truth, case.tolerance)


def test_outputs_that_are_not_asked_for():
    case = Case(6, 5, 33, reverse=(False, True), uses=USES)
    call, grads = option_call(case, ALL), OutputGradients(dhy=torch.ones(2, 5, 33).double())
    results = cpu.forward(call, Wanted(train=True))
    alone = cpu.forward(call, Wanted(y=False))
    assert alone.y.numel() == 0
    assert torch.equal(alone.hy, results.hy)
    assert torch.equal(alone.cy, results.cy)
    saved = Saved(results.y, results.reserve)
    everything = cpu.backward(call, saved, grads, Needs(True, False, False, True, False, False))
    states = cpu.backward(call, saved, grads, Needs(False, False, False, False, False, False))
    assert states.input.numel() == 0
    assert states.weight_hh.numel() == 0
    for name in ("hx", "cx", "norm_hh", "norm_c"):
        assert torch.equal(getattr(states, name), getattr(everything, name)), name


def test_no_step_and_no_row():
    call = option_call(Case(2, 2, 5, reverse=(False, True)), NORMS)
    no_step = call._replace(input=call.input[:0])
    no_row = call._replace(input=call.input[:, :0], hx=call.hx[:, :0], cx=call.cx[:, :0])
    for empty in (no_step, no_row):
        results = cpu.forward(empty, Wanted(train=True))
        assert torch.equal(results.hy, empty.hx)
        assert torch.equal(results.cy, empty.cx)
        grads = OutputGradients(dhy=empty.hx, dcy=empty.cx)
        saved = Saved(results.y, results.reserve)
        found = cpu.backward(empty, saved, grads, Needs(True, False, False, True, False, False))
        assert torch.equal(found.hx, empty.hx)
        assert torch.equal(found.cx, empty.cx)
        assert not found.weight_hh.any()
        assert not found.norm_hh.any()


def test_same_bits_every_time(threads):
    case = Case(20, 3, 130, reverse=(False, True), uses=USES)
    call, cotangents = to_dtype(option_call(case, ALL), torch.float32), case.cotangents()
    first = results_of(cpu, call, case, cotangents)
    for _ in range(3):
        again = results_of(cpu, call, case, cotangents)
        assert all(torch.equal(first[name], again[name]) for name in first)
