"""The Triton kernels fit on the GPUs they are written for: no spills, enough shared memory."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from benchmarks.triton_resources import (
    ARCHITECTURES,
    Case,
    Resources,
    cases,
    measure,
    spills_in_loops,
)
from fastlstm.kernels import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="kernels are to be compiled")

# The fullest block of each kind of number, and the cell, on one GPU each.
A_FEW = [
    Case("lstm_forward", 80, "bfloat16", 128, True),
    Case("lstm_forward", 100, "float32", 64, True),
    Case("lstm_backward", 90, "bfloat16", 128, True),
    Case("lstm_backward", 90, "float16", 100, True),
    Case("lstm_backward", 80, "float64", 32, True),
    Case("lstm_backward", 100, "float32", 64, True, "tf32"),
    Case("lstm_cell_forward", 90, "bfloat16", 2048, True),
    Case("lstm_cell_backward", 90, "float32", 2047, True),
    Case("normalized_cell_backward", 80, "float32", 2048, True, masks=True),
]


@pytest.mark.parametrize("case", A_FEW, ids=str)
def test_a_few_fit(case):
    resources = measure(case)
    assert resources.fits(case.architecture), resources


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_fit(architecture):
    measured = {case: measure(case) for case in cases(architecture)}
    too_much = {case: r for case, r in measured.items() if not r.fits(architecture)}
    assert not too_much


def test_what_does_not_fit_is_found():
    assert Resources(255, 40, 0, 227 * 1024).fits(90)
    assert not Resources(255, 40, 1, 0).fits(90)
    assert not Resources(64, 0, 0, 163 * 1024 + 1).fits(80)


def test_spills_are_counted_inside_loops_only():
    assembly = """
        /*0430*/                   STL [R1], R38 ;
        /*1080*/                   LDG.E R2, [R4.64] ;
        /*1090*/                   LDL.LU R3, [R1] ;
        /*2900*/               @P1 BRA 0x1080 ;
        /*2960*/                   LDL.LU R2, [R1] ;
        /*2970*/                   BRA 0x2970 ;
    """
    assert spills_in_loops(assembly) == 1
