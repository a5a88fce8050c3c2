"""Modules without memory: the meta device, and parameters that are materialised later."""

import pytest
import torch
from torch import nn

import fastlstm

T, B, I, H = 5, 4, 3, 6
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    {"peephole": True, "learn_initial_state": True},
    {"proj_size": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_outputs_on_meta_have_the_real_sizes(options):
    real = fastlstm.LSTM(I, H, **options)
    with torch.device("meta"):
        module = fastlstm.LSTM(I, H, **options)
    assert all(parameter.is_meta for parameter in module.parameters())
    y, states = module(torch.empty(T, B, I, device="meta"))
    expected, expected_states = real(torch.randn(T, B, I))
    assert [t.shape for t in (y, *states)] == [t.shape for t in (expected, *expected_states)]
    assert all(t.is_meta and t.dtype == torch.float32 for t in (y, *states))
    y.sum().backward()
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in module.parameters())
    assert "on meta" in fastlstm.explain(module)


@pytest.mark.parametrize("peephole", [False, True])
def test_lengths_and_autocast_on_meta(peephole):
    module = fastlstm.LSTM(I, H, peephole=peephole, backend="reference", device="meta")
    x, lengths = torch.empty(T, B, I, device="meta"), torch.ones(B, dtype=int, device="meta")
    assert module(x, lengths=lengths)[0].shape == (T, B, H)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x)[0].dtype == torch.float32


@pytest.mark.parametrize("peephole", [False, True])
def test_a_cell_on_meta(peephole):
    cell = fastlstm.LSTMCell(I, H, peephole=peephole, device="meta")
    h, c = cell(torch.empty(B, I, device="meta"))
    assert h.is_meta and h.shape == c.shape == (B, H)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_memory_that_comes_later(options):
    torch.manual_seed(3)
    expected = fastlstm.LSTM(I, H, **options)
    x = torch.randn(T, B, I)
    assigned = fastlstm.LSTM(I, H, **options, device="meta")
    assigned.load_state_dict(expected.state_dict(), assign=True)
    assert all(
        mine.data_ptr() == theirs.data_ptr()
        for mine, theirs in zip(assigned.parameters(), expected.parameters(), strict=True)
    )
    torch.testing.assert_close(assigned.eval()(x)[0], expected.eval()(x)[0])
    emptied = fastlstm.LSTM(I, H, **options, device="meta").to_empty(device="cpu")
    torch.manual_seed(3)
    emptied.reset_parameters()
    assert all(
        torch.equal(mine, theirs)
        for mine, theirs in zip(emptied.parameters(), expected.parameters(), strict=True)
    )


def test_skip_init():
    before = torch.get_rng_state()
    for cls in (fastlstm.LSTM, fastlstm.LSTMCell):
        module = nn.utils.skip_init(cls, I, H, peephole=True, dtype=torch.float64)
        assert all(p.device.type == "cpu" for p in module.parameters())
        assert module.weight_hh_l0.shape if cls is fastlstm.LSTM else module.weight_hh.shape
    assert torch.equal(torch.get_rng_state(), before)
