"""The kernels of the cpu backend with the options of cells, against the reference."""

import pairwise
import pytest
import torch
from helpers import Case, assert_as_close_as_torch, assert_close
from option_cases import option_call, results_of, to_dtype

from fastlstm.backends import cpu, reference

USES = ("y", "hy", "cy", "cells")
LAYOUTS = [{}, {"lengths": True, "reset": True}, {"packed": True}]
CELLS = [
    ("hidden_mask",),
    ("keep_h",),
    ("keep_c",),
    ("cell_clip",),
    ("hidden_mask", "keep_h", "keep_c", "cell_clip"),
]
NORMS = [
    ("norm_hh",),
    ("norm_hh", "norm_c"),
    ("norm_hh", "norm_c", "hidden_mask", "keep_h", "keep_c", "cell_clip"),
]


@pytest.fixture(params=cpu.isas())
def isa(request):
    """Every instruction set that this build and this machine support, in turn."""
    return request.param


def _check(case, names, isa, expected=False):
    call, cotangents = option_call(case, names, expected=expected), case.cotangents()
    truth = results_of(reference, call, case, cotangents)
    assert_close(results_of(cpu, call, case, cotangents, isa=isa), truth, case.tolerance)
    single = to_dtype(call, torch.float32)
    assert_as_close_as_torch(
        results_of(cpu, single, case, cotangents, isa=isa),
        results_of(reference, single, case, cotangents),
        truth,
    )


@pairwise.parametrize(
    {
        "T, B, H, I, peephole": [(5, 1, 17, 0, True), (6, 7, 33, 9, False)],
        "names": CELLS,
        "layout": LAYOUTS,
    }
)
def test_masks_and_clips(isa, T, B, H, I, peephole, names, layout):
    case = Case(T, B, H, I=I, reverse=(False, True), peephole=peephole, uses=USES, **layout)
    _check(case, names, isa)


@pairwise.parametrize(
    {"T, B, H, peephole": [(4, 1, 17, True), (6, 7, 33, False)], "names": NORMS, "layout": LAYOUTS}
)
def test_layer_norm(isa, T, B, H, peephole, names, layout):
    case = Case(T, B, H, reverse=(False, True), peephole=peephole, uses=USES, **layout)
    _check(case, names, isa)


@pytest.mark.parametrize("T, B, H, I", [(1, 3, 20, 7), (40, 70, 20, 33), (3, 2, 130, 64)])
def test_the_expectation_of_zoneout(isa, T, B, H, I):
    """One step, more rows than a block has, and more units than a panel has."""
    case = Case(T, B, H, I=I, reverse=(True, False), uses=USES)
    _check(case, ("keep_h", "keep_c", "hidden_mask"), isa, expected=True)
