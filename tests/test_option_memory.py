"""What the kernels for CPUs read of the options' tensors: dtypes, strides, lengths, and bits."""

import pytest
import torch
from helpers import Case, assert_as_close_as_torch, assert_close, error
from option_cases import option_call, results_of, to_dtype

import fastlstm
from fastlstm.backends import cpu, reference
from fastlstm.call import Wanted
from fastlstm.options import LSTMOptions
from fastlstm.problem import Problem

MASKS = ("hidden_mask", "keep_h", "keep_c", "cell_clip")
USES = ("y", "hy", "cy", "cells")


@pytest.fixture(params=cpu.isas())
def isa(request):
    """Every instruction set that this build and this machine support, in turn."""
    return request.param


def _results(case, call, isa="auto"):
    torch.manual_seed(1)
    return results_of(cpu, call, case, case.cotangents(), isa=isa)


def _assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def _case(**layout):
    sizes = {"T": 6, "B": 5, "H": 20, "I": 9}
    return Case(**sizes, reverse=(False, True), uses=USES, **layout)


@pytest.mark.parametrize("layout", [{"lengths": True, "reset": True}, {"packed": True}], ids=str)
def test_masks_of_any_stride(isa, layout):
    case = _case(**layout)
    call = option_call(case, MASKS, torch.float32)

    def in_another_layout(_, mask):
        wide = mask.new_full((*mask.shape[:-1], mask.shape[-1] + 3), float("nan"))
        wide = wide.transpose(0, 1).contiguous().transpose(0, 1)
        wide[..., 2:-1] = mask
        return wide[..., 2:-1]

    other = call._replace(options=call.options.map(in_another_layout))
    _assert_same_bits(_results(case, other, isa), _results(case, call, isa))


def test_no_mask_is_read_past_a_length(isa):
    case = _case(lengths=True)
    call = option_call(case, MASKS, torch.float32)
    past = torch.arange(case.T).unsqueeze(1) >= case.row_lengths()

    def without_the_rest(name, mask):
        stepwise = name.startswith("keep")
        return torch.where(past[:, :, None, None], torch.nan, mask) if stepwise else mask

    other = call._replace(options=call.options.map(without_the_rest))
    _assert_same_bits(_results(case, other, isa), _results(case, call, isa))


@pytest.mark.parametrize("names", [(name,) for name in MASKS] + [MASKS], ids=str)
def test_many_rows_in_float32(isa, names):
    """AMX multiplies a float as a sum of bfloat16 numbers."""
    case = Case(T=16, B=33, H=128, I=20, reverse=(False, True), uses=USES)
    call, cotangents = option_call(case, names), case.cotangents()
    truth = results_of(reference, call, case, cotangents)
    single = to_dtype(call, torch.float32)
    ours = results_of(cpu, single, case, cotangents, isa=isa)
    assert_as_close_as_torch(ours, results_of(reference, single, case, cotangents), truth)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", [MASKS[:3], MASKS[3:]], ids=str)
def test_low_precision(isa, names, dtype):
    case = _case(lengths=True)
    call, cotangents = option_call(case, names), case.cotangents()
    low = to_dtype(call, dtype)
    call = to_dtype(low, torch.float64)
    cotangents = {name: value.to(dtype).double() for name, value in cotangents.items()}
    truth = results_of(reference, call, case, cotangents)
    torchs = results_of(reference, low, case, cotangents)
    ours = results_of(cpu, low, case, cotangents, isa=isa)
    assert_as_close_as_torch({name: ours[name].to(dtype) for name in ours}, torchs, truth)


@pytest.mark.parametrize("B, H", [(1, 130), (2, 200), (7, 33), (64, 5)])
def test_any_number_of_threads(B, H):
    case = Case(T=5, B=B, H=H, I=50, reverse=(False, True), uses=USES, reset=True)
    call = option_call(case, MASKS)
    torch.set_num_threads(1)
    alone = _results(case, call)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_close(_results(case, call), alone, case.tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequence_in_two_calls(isa, dtype):
    case = Case(T=7, B=9, H=20, I=9, uses=USES)
    call = option_call(case, MASKS, dtype)
    y, hy, cy, cells, _ = cpu.forward(call, Wanted(cells=True), isa=isa)
    h, c, halves = call.hx, call.cx, []
    for steps in (slice(0, 3), slice(3, 7)):
        options = call.options.within(steps, case.B)
        half = call._replace(input=call.input[steps], hx=h, cx=c, options=options)
        halves.append(cpu.forward(half, Wanted(cells=True), isa=isa))
        h, c = halves[-1].hy, halves[-1].cy
    parts = zip(*((half.y, half.cells) for half in halves), strict=True)
    found = [*map(torch.cat, parts), h, c]
    for ours, whole in zip(found, (y, cells, hy, cy), strict=True):
        # In bfloat16 c is rounded between the calls.
        assert torch.equal(ours, whole) if dtype is torch.float32 else error(ours, whole) < 0.02


def test_cells_that_are_exactly_at_the_limit(isa):
    """A clip passes the gradient on where the sum equals the limit, as ``torch.clamp`` does."""
    case = Case(T=1, B=1, H=1, I=0, peephole=False, uses=("y", "hy", "cy"))
    call = option_call(case, ("cell_clip",))
    igates = torch.tensor([-1e3, 1e3, 0.0, 0.0], dtype=torch.float64).view(1, 1, 1, 4)
    weights = call.weights._replace(weight_hh=[torch.zeros(4, 1, dtype=torch.float64)])
    for c, gradient in ((0.25, 1.0), (0.2500001, 0.0)):
        at = call._replace(input=igates, weights=weights, cx=torch.full_like(call.cx, c))
        ones = {"cy": torch.ones(1, 1, 1, dtype=torch.float64)}
        for backend, keywords in ((reference, {}), (cpu, {"isa": isa})):
            assert results_of(backend, at, case, ones, **keywords)["dcx"].item() == gradient


def test_a_module_runs_on_the_kernels():
    weights = fastlstm.LSTMWeights(*(torch.randn(80, n).div(9).requires_grad_() for n in (9, 20)))
    x = torch.randn(6, 5, 9)

    def run(backend, autocast=False, cell_clip=None):
        options = LSTMOptions(0.3, zoneout=(0.2, 0.1), cell_clip=cell_clip)
        torch.manual_seed(3)  # the masks are drawn in float32, under autocast too
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, _ = fastlstm.lstm(
                x, None, [weights], options=options, training=True, backend=backend
            )
        (gradient,) = torch.autograd.grad(y.float().sum(), weights.weight_hh)
        return {"y": y.detach(), "dweight_hh": gradient}

    assert_close(run("cpu", cell_clip=0.5), run("reference", cell_clip=0.5), 1e-5)
    ways = (("cpu", True), ("reference", True), ("reference", False))
    # near the limit of a clip a rounding to bfloat16 decides on a gradient
    for cell_clip, names in ((None, ("y", "dweight_hh")), (0.5, ("y",))):
        found = [run(*way, cell_clip) for way in ways]
        assert_as_close_as_torch(*({name: one[name] for name in names} for one in found))


def test_what_the_kernels_refuse():
    problem = Problem("cpu", torch.float32, 3, 2, 1, 20, cell_options=("zoneout", "cell_clip"))
    assert cpu.why_not(problem) is None
    assert cpu.why_not(problem._replace(proj_size=3)) == "has no zoneout beside proj_size"
    only_inputs = problem._replace(proj_size=3, cell_options=(), options=("weight_dropout",))
    assert cpu.why_not(only_inputs) is None
