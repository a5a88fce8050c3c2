"""The plans of the CUDA kernels: the list, the one that a call uses, and plans that are refused.

test_cuda_emulation.py tests that every plan on the list computes correct numbers.
"""

import itertools
import re

import emulation
import pytest
import torch
from helpers import Case, run_case

from fastlstm.backends.cuda import recurrence
from fastlstm.call import (
    Call,
    GroupWeights,
    Needs,
    OutputGradients,
    Results,
    Saved,
    SequenceLayout,
)

DIRECTIONS = ("forward", "backward")
SHAPE = ("bfloat16", 9, 2, 40)  # dtype, B, G, H


@pytest.fixture
def kernels(monkeypatch):
    return emulation.install(monkeypatch, seed=0)


def plans(kernels, direction, shape=SHAPE, products="tf32x3", **device):
    device = kernels.device(0) | device
    return kernels.plans(direction, *shape, products=products, device=device)


def step_ns(kernels, direction, plan, shape=SHAPE, **costs):
    costs = kernels.costs() | costs
    return kernels.step_ns(direction, *shape, products="tf32x3", plan=plan, costs=costs)


def follow(kernels, direction, plan, shape=SHAPE, weight_hh=None, **changed):
    """Run one step of one pass by this plan, on arbitrary numbers, with these arguments changed."""
    dtype, B, G, H = shape
    new = {"dtype": getattr(torch, dtype)}
    y, reserve = torch.zeros(1, B, G, H, **new), torch.zeros(1, B, G, 5 * H, **new)
    hx = torch.zeros(G, B, H, **new)
    weight_hh = torch.zeros(G, 4 * H, H, **new) if weight_hh is None else weight_hh
    igates, layout = y.repeat(1, 1, 1, 4), SequenceLayout([False] * G)
    call = Call(igates, GroupWeights([], list(weight_hh)), hx, hx, layout)
    launch = recurrence.prepare(kernels, direction, y, layout)
    launch = launch._replace(plan=plan, arguments=launch.arguments | changed)
    if direction == "forward":
        results = Results(y, hx.clone(), hx.clone(), reserve=reserve)
        recurrence.forward(launch, igates, call, results)
    else:
        needs = Needs(True, False, True, True, False, False)
        recurrence.backward(launch, call, Saved(y, reserve), OutputGradients(y), needs)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    "dtype, B, G, H", [SHAPE, ("float32", 64, 1, 256), ("float16", 1, 1, 2048)]
)
def test_the_list_is_ranked_and_its_first_is_taken(kernels, direction, dtype, B, G, H):
    shape = (dtype, B, G, H)
    found, refusal = plans(kernels, direction, shape)
    assert refusal == "" and len(found) > 3
    expected = [step_ns(kernels, direction, plan, shape) for plan in found]
    assert expected == sorted(expected)
    y = torch.empty(2, B, G, H, dtype=getattr(torch, dtype))
    launch = recurrence.prepare(kernels, direction, y, SequenceLayout([False] * G))
    assert launch.plan == found[0]


def test_a_call_takes_the_first_of_each_list(kernels, monkeypatch):
    taken = {}
    for direction in DIRECTIONS:
        run = getattr(recurrence, direction)

        def noted(launch, *arguments, direction=direction, run=run):
            taken[direction] = launch.plan
            return run(launch, *arguments)

        monkeypatch.setattr(recurrence, direction, noted)
    case = Case(T=2, B=9, H=40, reverse=(False, True))
    run_case(case, case.inputs(), case.cotangents(), "cuda", torch.bfloat16)
    assert taken == {direction: plans(kernels, direction)[0][0] for direction in DIRECTIONS}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_plans_differ_and_fit(kernels, direction):
    device = {"multiprocessors": 12, "shared_memory": 49152}
    found, _ = plans(kernels, direction, ("bfloat16", 40, 1, 200), **device)
    assert len({tuple(plan.values()) for plan in found}) == len(found)
    for plan in found:
        assert plan["slices"] * plan["tiles"] <= 12
        assert plan["shared_bytes"] <= 49152
    for chosen in ("kernel", "k_warps", "tiles", "chunk_steps"):
        assert len({plan[chosen] for plan in found}) > 1


def test_products_matter_to_float32_only(kernels):
    """The setting for products of float32 does not change the plans of other types."""
    for direction, dtype in itertools.product(DIRECTIONS, ("bfloat16", "float16")):
        first, second = (
            plans(kernels, direction, (dtype, 1, 1, 2048), products)
            for products in ("tf32", "tf32x3")
        )
        assert first == second and first[0]


@pytest.mark.parametrize(
    "shape, device, reason",
    [
        (("float64", 9, 2, 40), {}, "float64 has no resident kernel"),
        (SHAPE, {"major": 7, "minor": 5}, r"compute capability 7\.5 is below 8\.0"),
        (("bfloat16", 2**31, 1, 8), {}, "B=2147483648 rows are more than the 2147483647 "),
        (("bfloat16", 2**32, 1, 8), {}, "B=4294967296 rows are more than the 2147483647 "),
        (("float32", 1, 133, 40), {}, "G=133 groups are more than the 132 multiprocessors"),
        (("float32", 1, 1, 4096), {}, "W_hh of H=4096, G=1 in float32 takes .* KB"),
    ],
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_empty_list_comes_with_the_reason(kernels, direction, shape, device, reason):
    found, refusal = plans(kernels, direction, shape, **device)
    assert found == [] and re.match(reason, refusal)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_plan_with_a_wrong_number_is_refused(kernels, direction):
    """The error comes before any launch, and names the number and the problem."""
    right = plans(kernels, direction)[0][0]
    follow(kernels, direction, right)
    chosen = ("kernel", "k_warps", "tiles", "chunk_steps")
    of = f"of the {direction} pass of bfloat16 B=9 G=2 H=40"
    for name, number in right.items():
        for wrong in (number + 1, 2 * number + 16):
            # another plan may be chosen, and another of its numbers be the first wrong one
            message = rf"^plan: (expected one|\w+: expected \d+) {of}, got "
            if name not in chosen:
                message = f"^plan: {name}: expected {number} {of}, got {wrong}$"
            with pytest.raises(ValueError, match=message):
                step_ns(kernels, direction, right | {name: wrong})
            with pytest.raises(ValueError, match=message):
                follow(kernels, direction, right | {name: wrong})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_invalid_plans_are_refused(kernels, direction):
    right = plans(kernels, direction)[0][0]
    other = plans(kernels, DIRECTIONS[direction == "forward"])[0][0]
    larger = plans(kernels, direction, ("bfloat16", 9, 2, 400))[0][0]
    for plan, message in [
        ({}, "^plan: kernel: expected a number, got none$"),
        ({k: v for k, v in right.items() if k != "units"}, "^plan: units: .*, got none$"),
        (right | {"k_warps": "two"}, "^plan: k_warps: expected a number that fits, got 'two'$"),
        (
            right | {"kernel": 2**40},
            "^plan: kernel: expected a number that fits, got 1099511627776$",
        ),
        (right | {"shared_bytes": -1}, "^plan: shared_bytes: expected a number that fits, got -1$"),
        (right | {"tiles": 0}, "^plan: expected one of the .* pass .*, got .* tiles=0 "),
        (other, "^plan: .*expected "),
        (larger, "^plan: .*expected "),
    ]:
        with pytest.raises(ValueError, match=message):
            step_ns(kernels, direction, plan)
    with pytest.raises(
        ValueError, match=r"^direction: expected forward or backward, got sideways$"
    ):
        plans(kernels, "sideways")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_more_than_kernels_count_is_refused(kernels, direction):
    """Before any launch, of a persistent kernel and of a cell; SHAPE has two groups."""
    plan = plans(kernels, direction)[0][0]
    with pytest.raises(ValueError, match=r"^T: expected at most 2147483646 steps, got 2147483647$"):
        follow(kernels, direction, plan, T=2**31 - 1)
    with pytest.raises(ValueError, match=r"^plan: expected one of the .* B=4294967296 G=2 H=40"):
        follow(kernels, direction, plan, B=2**32)
    rows = "^B: expected at most 2147483647 rows of up to 256 units in all groups, got "
    for B in (2**30, 2**31):  # 2^32 blocks and 1 block are alike to a driver
        with pytest.raises(ValueError, match=f"{rows}{2 * B}$"):
            follow(kernels, direction, None, B=B)


def test_a_plan_of_a_larger_gpu_is_refused_by_the_driver(kernels):
    shape = ("bfloat16", 1, 1, 1024)
    large = plans(kernels, "forward", shape)[0][0]
    kernels.pretend(multiprocessors=large["slices"] - 1)
    try:
        with pytest.raises(RuntimeError, match="cudaErrorCooperativeLaunchTooLarge"):
            follow(kernels, "forward", large, shape)
    finally:
        kernels.pretend()


def test_the_limit_of_shared_memory_is_set_once_and_never_lowered(kernels):
    """A thread that lowered it would break the launch of another thread with the same kernel."""
    shapes = [("bfloat16", B, 1, 1024) for B in (8, 64, 16)]
    kernel = 3
    kernels.pretend(shared_memory=100_000)
    found = [plans(kernels, "forward", shape)[0] for shape in shapes]
    large = [[p for p in ps if p["kernel"] == kernel and p["shared_bytes"] > 49152] for ps in found]
    kernels.pretend()
    follow(kernels, "forward", large[1][0], shapes[1])  # sets the limit if no other test has
    kernels.take_limits()
    sizes = set()
    for shape, candidates in zip(shapes, large, strict=True):
        sizes |= {plan["shared_bytes"] for plan in candidates[:2]}
        for plan in candidates[:2]:
            follow(kernels, "forward", plan, shape)
    assert len(sizes) > 1 and kernels.take_limits() == []


@pytest.mark.parametrize(
    "shape, device",
    [
        (("bfloat16", 9, 1, 64), {}),  # a single block
        (("float16", 9, 1, 256), {}),  # several blocks, and as many tiles as are best
        (("float32", 3, 1, 128), {}),
        (("bfloat16", 17, 1, 256), {"multiprocessors": 2}),  # weights in shared memory too
    ],
)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_weights_are_loaded_by_copies_of_16_bytes(kernels, direction, shape, device):
    """Each number of W_hh once for each tile of the batch, and none by the 2 bytes of a number."""
    dtype, _, G, H = shape
    weight_hh = torch.zeros(G, 4 * H, H, dtype=getattr(torch, dtype))
    kernels.pretend(**device)
    plan = plans(kernels, direction, shape)[0][0]
    if device:
        assert plan["shared_steps"] > 0
    kernels.count_copies(weight_hh.data_ptr(), weight_hh.nbytes)
    follow(kernels, direction, plan, shape, weight_hh)
    kernels.pretend()
    assert kernels.count_copies(0, 0) == plan["tiles"] * weight_hh.nbytes / 16


def test_rows_of_weights_that_are_not_aligned_are_not_copied_so(kernels):
    shape = ("bfloat16", 9, 1, 100)  # 200 bytes a row
    weight_hh = torch.zeros(1, 400, 100, dtype=torch.bfloat16)
    kernels.count_copies(weight_hh.data_ptr(), weight_hh.nbytes)
    follow(kernels, "forward", plans(kernels, "forward", shape)[0][0], shape, weight_hh)
    assert kernels.count_copies(0, 0) == 0


@pytest.mark.parametrize("wrong", [0, -1.0, float("nan"), "much"])
def test_costs_are_positive_numbers(kernels, wrong):
    plan = plans(kernels, "forward")[0][0]
    with pytest.raises(ValueError, match=r"^costs: barrier: expected "):
        step_ns(kernels, "forward", plan, barrier=wrong)


def test_each_cost_counts(kernels):
    """Each constant of the model makes some plan slower or faster."""
    shape = ("float32", 16, 1, 256)
    found, _ = plans(kernels, "backward", shape)
    few, _ = plans(kernels, "backward", shape, multiprocessors=20)
    for name, cost in kernels.costs().items():
        both = ({}, {name: 20 * cost}), ({}, {name: cost / 20})
        assert any(
            step_ns(kernels, "backward", plan, shape, **a)
            != step_ns(kernels, "backward", plan, shape, **b)
            for plan in found + few
            for a, b in both
        ), name
