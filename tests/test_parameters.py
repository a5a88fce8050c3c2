"""Parameters: as ``nn.LSTM`` names, draws, stores and replaces them, in any dtype."""

import pytest
import torch
from helpers import DUPLICATES
from pairs import TOLERANCE, B, H, I, T, double, input_of, pair
from torch import nn

import fastlstm


def test_same_initial_parameters_from_the_same_seed():
    for options in ({}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}):
        torch.manual_seed(7)
        theirs = nn.LSTM(I, H, **options).state_dict()
        torch.manual_seed(7)
        mine = fastlstm.LSTM(I, H, **options).state_dict()
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("hidden_size", range(1, 40))
def test_initial_parameters_to_the_last_bit_of_float64(hidden_size):
    """1 / sqrt(H) and H**-0.5 differ in the last bit for some H."""
    for cls in ("LSTM", "LSTMCell"):
        modules = []
        for library in (nn, fastlstm):
            torch.manual_seed(7)
            modules.append(getattr(library, cls)(2, hidden_size, dtype=torch.float64))
        torchs, ours = (module.state_dict() for module in modules)
        assert all(torch.equal(ours[name], torchs[name]) for name in torchs)


def test_state_dict_both_ways():
    options = {"num_layers": 2, "bidirectional": True}
    ours, torchs = fastlstm.LSTM(I, H, **options), nn.LSTM(I, H, **options)
    torchs.load_state_dict(ours.state_dict(), strict=True)
    fresh = fastlstm.LSTM(I, H, **options)
    fresh.load_state_dict(torchs.state_dict(), strict=True)
    x = torch.randn(T, B, I)
    torch.testing.assert_close(fresh(x)[0], torchs(x)[0])
    with pytest.raises(RuntimeError, match="weight_ch_l0"):
        torchs.load_state_dict(fastlstm.LSTM(I, H, **options, peephole=True).state_dict())


def test_to_torch_and_back():
    options = {"bias": False, "batch_first": True, "dropout": 0.25, "proj_size": 2}
    ours = fastlstm.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64, **options).eval()
    torchs = ours.to_torch()
    again = fastlstm.LSTM.from_torch(torchs, backend="torch")
    assert type(torchs) is nn.LSTM and not torchs.training and not again.training
    assert again.backend == "torch" and again.dropout == 0.25
    x = input_of(ours)
    for other in (torchs, again):
        torch.testing.assert_close(other(x)[0], ours(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    torchs.weight_ih_l0.data.zero_()
    assert ours.weight_ih_l0.abs().min() > 0  # copies, not views
    with pytest.raises(ValueError, match="peephole"):
        fastlstm.LSTM(I, H, peephole=True).to_torch()


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.LSTMCell])
@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_copies_are_equal_and_independent(duplicate, cls, peephole):
    module = cls(I, H, peephole=peephole, backend="cpu")
    again = duplicate(module)
    x = torch.randn(*([T, B] if cls is fastlstm.LSTM else [B]), I)
    assert repr(again) == repr(module)
    assert torch.equal(again(x)[0], module(x)[0])
    for parameter in again.parameters():
        parameter.data.zero_()
    assert not torch.equal(again(x)[0], module(x)[0])


def test_replaced_weights_are_honoured():
    ours, torchs = pair("LSTM", I, H)
    x = input_of(ours)
    replacement = double(4 * H, H)
    for module in (ours, torchs):
        module.weight_hh_l0 = nn.Parameter(replacement.detach().clone())
    torch.testing.assert_close(ours(x)[0], torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    del ours.weight_hh_l0
    ours.weight_hh_l0 = 2 * replacement  # a plain tensor, as a hypernetwork sets
    torchs.weight_hh_l0.data.mul_(2)
    y = ours(x)[0]
    torch.testing.assert_close(y, torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    (gradient,) = torch.autograd.grad(y.sum(), replacement)
    assert gradient.abs().max() > 0


def test_functional_call_and_in_place_updates_are_honoured():
    ours, torchs = pair("LSTM", I, H)
    x = input_of(ours)
    doubled = {name: 2 * value for name, value in ours.state_dict().items()}
    before = ours(x)[0]
    found = torch.func.functional_call(ours, doubled, (x,))[0]
    for module in (ours, torchs):
        for parameter in module.parameters():
            parameter.data.mul_(2)  # bumps no version counter: nothing may be cached by one
    torch.testing.assert_close(found, torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(ours(x)[0], torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert not torch.allclose(before, found)


@pytest.mark.parametrize("peephole", [False, True])
def test_moves_between_dtypes(peephole):
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, peephole=peephole)
    x = torch.randn(T, B, I)
    expected = module(x)[0]
    torch.testing.assert_close(module.double()(x.double())[0].float(), expected)
    assert all(parameter.dtype == torch.float64 for parameter in module.parameters())
    for dtype in (torch.bfloat16, torch.float16):
        found = module.to(dtype)(x.to(dtype))[0]
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("peephole", [False, True])
def test_bfloat16_trains(peephole):
    module = fastlstm.LSTM(I, H, peephole=peephole, dtype=torch.bfloat16)
    module(torch.randn(T, B, I, dtype=torch.bfloat16))[0].sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(g.dtype == torch.bfloat16 and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.LSTMCell])
def test_autocast(cls, peephole):
    """Gradients have the parameters' dtype and are close to float32's."""
    module = cls(I, H, peephole=peephole)
    x = torch.randn(*([T, B] if cls is fastlstm.LSTM else [B]), I)

    def run():
        output, state = module(x)
        cy = state[1] if cls is fastlstm.LSTM else state
        loss = output.float().sin().sum() + cy.sum()
        gradients = torch.autograd.grad(loss, module.parameters())
        return [output.float(), cy.float(), *gradients]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    assert all(gradient.dtype == torch.float32 for gradient in found[2:])
    for mine, exact in zip(found, expected, strict=True):
        assert (mine - exact).abs().max() <= 0.05 * exact.abs().max()
    if cls is fastlstm.LSTM:
        assert not torch.equal(found[0], expected[0])
