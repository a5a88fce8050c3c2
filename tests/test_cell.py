"""``fastlstm.LSTMCell`` is ``nn.LSTMCell``, with peepholes."""

import pytest
import torch
from helpers import assert_close, skip_unless_supported
from pairs import TOLERANCE, B, H, I, double, leaves_of, pair
from torch import nn

import fastlstm


def _cell_results(cell, input, hx):
    hy, cy = cell(input, hx)
    leaves = leaves_of(input, hx) | dict(cell.named_parameters())
    gradients = torch.autograd.grad(hy.sin().sum() + cy.cos().sum(), list(leaves.values()))
    return {"hy": hy, "cy": cy} | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(), (B,), (0,)], ids=["1-D", "2-D", "empty"])
@pytest.mark.parametrize("bias", [False, True])
def test_cell_equals_torch(backend, bias, batch, given):
    ours, torchs = pair("LSTMCell", I, H, bias=bias, backend=backend)
    input = double(*batch, I)
    hx = (double(*batch, H), double(*batch, H)) if given else None
    mine, theirs = (_cell_results(cell, input, hx) for cell in (ours, torchs))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("bias", [False, True])
def test_peephole_cell_is_one_step_of_the_lstm(backend, bias):
    options = {"bias": bias, "peephole": True, "dtype": torch.float64, "backend": backend}
    cell, module = fastlstm.LSTMCell(I, H, **options), fastlstm.LSTM(I, H, **options)
    skip_unless_supported(backend, cell.problem())
    module.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    input, hx = double(B, I), (double(B, H), double(B, H))
    _, (hy, cy) = module(input[None], (hx[0][None], hx[1][None]))
    found = _cell_results(cell, input, hx)
    assert_close({k: found[k] for k in ("hy", "cy")}, {"hy": hy[0], "cy": cy[0]}, TOLERANCE)
    leaves = [input, *hx, *module.parameters()]
    expected = torch.autograd.grad(hy.sin().sum() + cy.cos().sum(), leaves)
    for mine, theirs in zip(list(found.values())[2:], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_cell_parameters_and_seed():
    torch.manual_seed(7)
    theirs = nn.LSTMCell(I, H).state_dict()
    torch.manual_seed(7)
    mine = fastlstm.LSTMCell(I, H).state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert fastlstm.LSTMCell(I, H, peephole=True).weight_ch.shape == (3 * H,)
