"""``lstm_sequence``: every fused backend equals the reference."""

import itertools

import pairwise
import pytest
import torch
from helpers import Case, assert_close, check_case, check_low_precision, error, run_case, weights_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastlstm import lstm_sequence

DIRECTIONS = [(False,), (True,), (False, True), (True, True), (True, False, True)]


@pairwise.parametrize({"reverse": DIRECTIONS, "peephole": [False, True], "lengths": [False, True]})
def test_options(fused_backend, reverse, peephole, lengths):
    check_case(
        Case(T=5, B=3, H=17, reverse=reverse, peephole=peephole, lengths=lengths), fused_backend
    )


@pairwise.parametrize(
    {
        "biases": [("bias_ih", "bias_hh"), ("bias_ih",), ()],
        "reverse": DIRECTIONS,
        "shared": [False, True],
    }
)
def test_input_projection(fused_backend, reverse, shared, biases):
    case = Case(T=5, B=3, H=17, I=11, reverse=reverse, shared=shared, biases=biases, lengths=True)
    check_case(case, fused_backend)


@pytest.mark.parametrize("T, B, H, I", [(1, 1, 33, 50), (2, 5, 8, 1), (30, 20, 24, 40)])
def test_input_projection_sizes(fused_backend, T, B, H, I):
    check_case(Case(T=T, B=B, H=H, I=I, reverse=(False, True)), fused_backend)


@pairwise.parametrize(
    {
        "T, B, H": [(1, 1, 16), (9, 3, 17), (20, 13, 40)],
        "peephole": [False, True],
        "lengths": [False, True],
        "I": [0, 9, 24],
        "dtype": [torch.bfloat16, torch.float16],
    }
)
def test_low_precision(fused_backend, dtype, T, B, H, I, peephole, lengths):
    case = Case(T=T, B=B, H=H, I=I, reverse=(False, True), peephole=peephole, lengths=lengths)
    check_low_precision(case, fused_backend, dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [{"packed": True}, {"reset": True}])
def test_low_precision_of_everything(fused_backend, dtype, layout):
    uses = ("y", "hy", "cy", "cells")
    case = Case(T=7, B=5, H=33, I=20, reverse=(False, True), proj_size=9, uses=uses, **layout)
    check_low_precision(case, fused_backend, dtype)


@pairwise.parametrize(
    {
        "T, B, H, I, proj_size": [(1, 1, 5, 3, 2), (4, 3, 40, 0, 17), (9, 7, 90, 30, 70)],
        "peephole": [False, True],
        "lengths": [False, True],
    }
)
def test_projection(fused_backend, T, B, H, I, proj_size, peephole, lengths):
    case = Case(
        T=T,
        B=B,
        H=H,
        I=I,
        proj_size=proj_size,
        reverse=(False, True),
        peephole=peephole,
        lengths=lengths,
    )
    check_case(case, fused_backend)


def test_projection_as_wide_as_the_cell(fused_backend):
    check_case(Case(T=3, B=2, H=6, I=4, proj_size=6), fused_backend)


@pairwise.parametrize({"T": [1, 2, 9], "B": [1, 2, 7], "H": [1, 3, 16, 17, 100]})
def test_sizes(fused_backend, T, B, H):
    check_case(Case(T=T, B=B, H=H, reverse=(False, True), lengths=True), fused_backend)


def test_long_sequence(fused_backend):
    check_case(Case(T=1000, B=2, H=3, reverse=(True,), lengths=True), fused_backend)


@pytest.mark.parametrize("broadcast", [(0,), (1,), (0, 1), (0, 1, 2)])
def test_broadcast_igates(fused_backend, broadcast):
    check_case(Case(T=4, B=3, H=5, reverse=(False, True), broadcast=broadcast), fused_backend)


@pytest.mark.parametrize("uses", [("y",), ("hy",), ("cy",), ("y", "cy")])
@pytest.mark.parametrize("lengths", [False, True])
def test_some_outputs_unused(fused_backend, uses, lengths):
    check_case(
        Case(T=4, B=3, H=5, reverse=(False, True), uses=uses, lengths=lengths), fused_backend
    )


def _last_dimension_strided(name, value):
    return value.repeat_interleave(2, -1)[..., ::2]


def _transposed(name, value):
    return value.transpose(0, -1).contiguous().transpose(0, -1)


def _batch_first(name, value):
    return value.transpose(0, 1).contiguous().transpose(0, 1) if value.dim() > 1 else value


@pytest.mark.parametrize("change", [_last_dimension_strided, _transposed, _batch_first])
def test_strided_inputs(fused_backend, change):
    case = Case(T=4, B=3, H=5, reverse=(False, True))
    igates = change("igates", case.inputs()["igates"])
    assert not igates.is_contiguous()
    check_case(case, fused_backend, change)


def test_strided_gradients_of_outputs(fused_backend):
    """The gradient of ``y.sum()`` has strides of zero; that of a slice is a view."""
    case = Case(T=4, B=3, H=5, reverse=(False, True))
    inputs = case.inputs()
    for cotangents in (
        {"y": torch.ones((), dtype=torch.float64).expand(4, 3, 2, 5)},
        {"y": torch.randn(3, 2, 5, 4, dtype=torch.float64).permute(3, 0, 1, 2)},
        {name: torch.randn(5, 3, 2, dtype=torch.float64).permute(2, 1, 0) for name in ("hy", "cy")},
    ):
        truth = run_case(case, inputs, cotangents, "reference")
        assert_close(run_case(case, inputs, cotangents, fused_backend), truth, case.tolerance)


@pytest.mark.parametrize("starts", [(0, 1, 2), (2, 1, 0), (0, 1, 3), (3, 0, 1), (1, 1, 1)])
def test_groups_lie_anywhere_in_memory(fused_backend, starts):
    """Evenly spaced, backwards, unevenly spaced, and the same weights for each group."""
    case = Case(T=3, B=2, H=5, reverse=(False, True, False))
    weight_hh = torch.randn(4, 20, 5, dtype=torch.float64)
    weight_ch = torch.randn(4, 15, dtype=torch.float64)
    inputs = case.inputs()

    def run(name, detach):
        leaves = [weight_hh.clone().requires_grad_(), weight_ch.clone().requires_grad_()]
        outputs = lstm_sequence(
            inputs["igates"],
            [detach(leaves[0][start]) for start in starts],
            weight_ch=[detach(leaves[1][start]) for start in starts],
            reverse=case.reverse,
            backend=name,
        )
        gradients = torch.autograd.grad([output.sin().sum() for output in outputs], leaves)
        return dict(enumerate([*outputs, *gradients]))

    ours = run(fused_backend, lambda weight: weight)
    assert_close(ours, run("reference", torch.clone), case.tolerance)


def test_weights_at_odd_addresses(fused_backend):
    """Two float32 matrices whose distance is no multiple of four bytes, as in a mapped file."""
    buffer = bytearray(4 * 16 * 3 + 1)
    first = torch.frombuffer(buffer, dtype=torch.float32, count=16).view(8, 2)
    second = torch.frombuffer(buffer, dtype=torch.float32, count=16, offset=4 * 16 + 1).view(8, 2)
    first.copy_(torch.randn(8, 2))
    second.copy_(torch.randn(8, 2))
    igates = torch.randn(3, 2, 2, 8)
    y = lstm_sequence(igates, [first, second], backend=fused_backend)[0]
    truth = lstm_sequence(igates, [first.clone(), second.clone()], backend=fused_backend)[0]
    torch.testing.assert_close(y, truth)


@pytest.mark.parametrize(
    "wanted",
    ["x", "hx", "cx", "weight_ih[0]", "bias_ih[1]", "bias_hh[0]", "weight_hh[1]", "weight_ch[0]"],
)
def test_gradient_of_one_input_alone(fused_backend, wanted):
    case = Case(T=4, B=3, H=5, I=6, reverse=(False, True))
    inputs = case.inputs()

    def gradient(name):
        values = {key: value.clone() for key, value in inputs.items()}
        values[wanted].requires_grad_()
        y, hy, cy = lstm_sequence(
            values["x"],
            weights_of(case, values, "weight_hh"),
            values["hx"],
            values["cx"],
            weight_ih=weights_of(case, values, "weight_ih"),
            bias_ih=weights_of(case, values, "bias_ih"),
            bias_hh=weights_of(case, values, "bias_hh"),
            weight_ch=weights_of(case, values, "weight_ch"),
            reverse=case.reverse,
            backend=name,
        )
        (y.sin().sum() + hy.sum() + cy.cos().sum()).backward()
        assert all(value.grad is None for key, value in values.items() if key != wanted)
        return values[wanted].grad

    assert error(gradient(fused_backend), gradient("reference")) <= case.tolerance


@pytest.mark.parametrize("peephole", [False, True])
def test_nan_stays_in_its_row(fused_backend, peephole):
    case = Case(T=6, B=3, H=17, peephole=peephole)
    inputs, cotangents = case.inputs(), case.cotangents()
    clean = run_case(case, inputs, cotangents, fused_backend)
    inputs["igates"][2, 1] = float("nan")
    ours = run_case(case, inputs, cotangents, fused_backend)
    assert ours["y"][2:, 1].isnan().all()
    assert not ours["y"][:2].isnan().any()
    assert ours["hy"][:, 1].isnan().all() and ours["cy"][:, 1].isnan().all()
    for name, batch_dim in {"y": 1, "hy": 1, "cy": 1, "digates": 1, "dhx": 1, "dcx": 1}.items():
        for row in (0, 2):
            mine, theirs = (r[name].select(batch_dim, row) for r in (ours, clean))
            assert torch.equal(mine, theirs), f"{name}, row {row}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("huge", [1e4, float("inf")])
def test_saturated_gates_are_finite(fused_backend, dtype, huge):
    """Every combination of signs: 16 rows, four gates."""
    case = Case(T=3, B=16, H=3, peephole=False)
    inputs, cotangents = case.inputs(), case.cotangents()
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4)), dtype=torch.float64)
    inputs["igates"] = (signs * huge).repeat_interleave(3, 1).expand(3, 16, 12).unsqueeze(2)
    inputs["igates"] = inputs["igates"].contiguous()
    ours = run_case(case, inputs, cotangents, fused_backend, dtype)
    assert all(value.isfinite().all() for value in ours.values())
    truth = run_case(case, inputs, cotangents, "reference")
    assert_close(ours, truth, case.tolerance * torch.finfo(dtype).eps / 2**-52)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    case=st.builds(
        Case,
        T=st.integers(1, 6),
        B=st.integers(1, 6),
        H=st.integers(1, 70),
        I=st.integers(0, 40),
        shared=st.booleans(),
        reverse=st.lists(st.booleans(), min_size=1, max_size=4).map(tuple),
        peephole=st.booleans(),
        lengths=st.booleans(),
        reset=st.booleans(),
        proj_size=st.integers(0, 70),
        broadcast=st.sets(st.integers(0, 2)).map(tuple),
        uses=st.sets(st.sampled_from(("y", "hy", "cy", "cells")), min_size=1)
        .map(sorted)
        .map(tuple),
    ),
    change=st.sampled_from([None, _last_dimension_strided, _transposed, _batch_first]),
)
def test_anything(fused_backend, case, change):
    torch.manual_seed(0)  # an example draws the same numbers, whatever ran before it
    check_case(case, fused_backend, change)
