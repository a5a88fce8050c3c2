"""The reference backend is right: against ``nn.LSTM``, the equations and numerical derivatives."""

import pytest
import torch
from helpers import assert_close
from torch import nn

from fastlstm import LSTMWeights, lstm, lstm_sequence


@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_reference_equals_torch(num_layers, bidirectional, proj_size):
    torchs = nn.LSTM(
        3, 5, num_layers, bidirectional=bidirectional, proj_size=proj_size, dtype=torch.float64
    )
    D = 2 if bidirectional else 1
    x = torch.randn(7, 4, 3, dtype=torch.float64, requires_grad=True)
    hx = tuple(
        torch.randn(num_layers * D, 4, size, dtype=torch.float64, requires_grad=True)
        for size in (proj_size or 5, 5)
    )
    weights = [
        LSTMWeights(*entry[:4], weight_hr=entry[4] if proj_size else None)
        for entry in torchs.all_weights
    ]

    def results(output, state):
        outputs = [output, *state]
        leaves = [x, *hx, *torchs.parameters()]
        gradients = torch.autograd.grad([o.sin().sum() for o in outputs], leaves)
        return dict(enumerate([*outputs, *gradients]))

    ours = results(*lstm(x, hx, weights, bidirectional=bidirectional, backend="reference"))
    assert_close(ours, results(*torchs(x, hx)), 1e-12)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize(
    "reverse, peephole, lengths, proj_size",
    [
        ((False,), False, False, 0),
        ((False, True), True, False, 0),
        ((True,), True, True, 0),
        ((False,), True, True, 1),
    ],
)
def test_reference_differentiates_twice(check, reverse, peephole, lengths, proj_size):
    T, B, G = 3, 2, len(reverse)
    H = 2 // G  # gradgradcheck takes number by number: few of them
    P = proj_size or H
    sizes = [(T, B, G, 4 * H), (G, B, P), (G, B, H), *[(4 * H, P)] * G]
    sizes += [(3 * H,)] * G * peephole + [(P, H)] * G * bool(proj_size)

    def run(igates, hx, cx, *weights):
        groups = [weights[start : start + G] for start in range(0, len(weights), G)]
        return lstm_sequence(
            igates,
            groups[0],
            hx,
            cx,
            weight_ch=groups[1] if peephole else None,
            weight_hr=groups[-1] if proj_size else None,
            reverse=reverse,
            lengths=torch.tensor([3, 1]) if lengths else None,
            backend="reference",
        )

    assert check(run, [torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in sizes])


def test_reference_peepholes_are_the_equations():
    """Compared with the scalar equations of the module's docstring, written out again."""
    igates, hx, cx = torch.randn(4).tolist(), *torch.randn(2).tolist()
    w_h, (w_ci, w_cf, w_co) = torch.randn(4).tolist(), torch.randn(3).tolist()

    def sigmoid(x):
        return 1 / (1 + 2.718281828459045**-x)

    def tanh(x):
        return 2 * sigmoid(2 * x) - 1

    a_i, a_f, a_g, a_o = (a + w * hx for a, w in zip(igates, w_h, strict=True))
    c = sigmoid(a_f + w_cf * cx) * cx + sigmoid(a_i + w_ci * cx) * tanh(a_g)
    h = sigmoid(a_o + w_co * c) * tanh(c)
    y, hy, cy = lstm_sequence(
        torch.tensor(igates, dtype=torch.float64).view(1, 1, 1, 4),
        [torch.tensor(w_h, dtype=torch.float64).view(4, 1)],
        torch.tensor(hx, dtype=torch.float64).view(1, 1, 1),
        torch.tensor(cx, dtype=torch.float64).view(1, 1, 1),
        weight_ch=[torch.tensor([w_ci, w_cf, w_co], dtype=torch.float64)],
        backend="reference",
    )
    assert [y.item(), hy.item(), cy.item()] == pytest.approx([h, h, c], rel=1e-12)
