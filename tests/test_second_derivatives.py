"""Derivatives of derivatives: ``gradcheck``, ``gradgradcheck``, gradient penalties.

Each test with the fixture ``path`` runs by the direct path to the kernels and by the op.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastlstm
from fastlstm import lstm_sequence

T, B, I, H = 4, 2, 3, 5
TOLERANCE = {"rtol": 1e-11, "atol": 1e-13}


def _randn(*size, **options):
    return torch.randn(*size, dtype=torch.float64, **options)


def _lstm(*args, **options):
    return fastlstm.LSTM(*(args or (I, H)), dtype=torch.float64, **{"backend": "cpu"} | options)


def _leaves(*sizes):
    return [_randn(*size).mul_(0.7).requires_grad_() for size in sizes]


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize(
    "options", [{}, {"peephole": True}, {"num_layers": 2, "bidirectional": True, "peephole": True}]
)
def test_lstm_differentiates_twice(path, check, options):
    module = _lstm(2, 2, **options)
    names, parameters = zip(*module.named_parameters(), strict=True)
    states = 2 * 2 if options.get("bidirectional") else 1
    inputs = [*_leaves((2, 2, 2), (states, 2, 2), (states, 2, 2)), *parameters]

    def run(x, h, c, *weights):
        y, (h, c) = torch.func.functional_call(
            module,
            dict(zip(names, weights, strict=True)),
            (x, (h, c)),
            {"lengths": torch.tensor([2, 1])},
        )
        return y, h, c

    assert check(run, inputs, fast_mode=True)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
@pytest.mark.parametrize("peephole", [False, True])
def test_cell_differentiates_twice(check, peephole):
    cell = fastlstm.LSTMCell(2, 2, peephole=peephole, backend="cpu", dtype=torch.float64)
    inputs = _leaves((2, 2), (2, 2), (2, 2))
    assert check(lambda x, h, c: cell(x, (h, c)), inputs)


@pytest.mark.parametrize("check", [gradcheck, gradgradcheck])
def test_igates_differentiate_twice(path, check):
    inputs = _leaves((2, 2, 2, 4), (2, 2, 1), (2, 2, 1), (4, 1), (4, 1), (3,), (3,))

    def run(igates, hx, cx, *weights):
        return lstm_sequence(
            igates,
            weights[:2],
            hx,
            cx,
            weight_ch=weights[2:],
            reverse=[False, True],
            backend="cpu",
        )

    assert check(run, inputs)


def test_forward_mode_and_forward_over_reverse():
    module = _lstm(2, 2, peephole=True)
    (x,) = _leaves((3, 2, 2))
    assert gradcheck(lambda x: module(x)[0], (x,), check_forward_ad=True, check_backward_ad=True)
    assert gradgradcheck(lambda x: module(x)[0], (x,), check_fwd_over_rev=True)


def test_third_derivative(path):
    module, (x,) = _lstm(2, 2), _leaves((3, 1, 2))
    twin = _lstm(2, 2, backend="reference")
    twin.load_state_dict(module.state_dict())

    def third(module):
        value = module(x)[0].sin().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = gradient.square().sum()
        return gradient

    torch.testing.assert_close(third(module), third(twin), **TOLERANCE)


@pytest.mark.parametrize("frozen", ["nothing", "weight_hh", "input"])
def test_gradient_penalty(path, frozen):
    """The penalty of a WGAN-GP critic: gradients of the norm of the gradient of the input."""
    module, (x,) = _lstm(peephole=True, num_layers=2), _leaves((T, B, I))
    if frozen == "weight_hh":
        module.weight_hh_l0.requires_grad_(False)
    twin = _lstm(peephole=True, num_layers=2, backend="reference")
    twin.load_state_dict(module.state_dict())

    def penalties(module):
        y, (_, c) = module(x)
        score = y.sum() + c.square().sum()
        wanted = module.weight_ih_l0 if frozen == "input" else x
        (gradient,) = torch.autograd.grad(score, wanted, create_graph=True)
        penalty = (gradient.flatten(1).norm(dim=1) - 1).square().mean()
        wanted = [p for name, p in module.named_parameters() if not name.startswith(frozen)]
        return torch.autograd.grad(penalty, wanted, materialize_grads=True, allow_unused=True)

    torch.testing.assert_close(penalties(module), penalties(twin), **TOLERANCE)


def test_second_derivative_where_inputs_depend_on_each_other():
    """Each input is a variable of its own, whatever it was computed from."""
    module, (x,) = _lstm(H, H), _leaves((T, B, H))
    twin = _lstm(H, H, backend="reference")
    twin.load_state_dict(module.state_dict())

    def second(module):
        y, _ = module(x, (x[:1].sin(), x[1:2] * x[:1]))
        (gradient,) = torch.autograd.grad(y.sin().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), [x, *module.parameters()])

    torch.testing.assert_close(second(module), second(twin), **TOLERANCE)
