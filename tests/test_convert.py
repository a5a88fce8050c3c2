"""``fastlstm.nn.convert``: weights from and to the layouts of other libraries."""

import itertools

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm.nn import convert

T, B, I, H = 5, 4, 3, 6


def _loop(kernel, recurrent_kernel, bias, order, x):
    """Run one LSTM over x (T, B, I); ``order`` is the order of gates in the kernels."""
    h = c = x.new_zeros(x.shape[1], recurrent_kernel.shape[0])
    for x_t in x:
        gates = x_t @ kernel + h @ recurrent_kernel + bias
        gate = dict(zip(order, gates.chunk(4, dim=1), strict=True))
        c = gate["f"].sigmoid() * c + gate["i"].sigmoid() * gate["g"].tanh()
        h = gate["o"].sigmoid() * c.tanh()
    return h


@pytest.mark.parametrize("order", [*map("".join, itertools.permutations("ifgo"))])
def test_kernels_both_ways(order):
    kernel, recurrent_kernel, bias = (
        torch.randn(*size, dtype=torch.float64) for size in ((I, 4 * H), (H, 4 * H), (4 * H,))
    )
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = _loop(kernel, recurrent_kernel, bias, order, x)
    state = convert.from_kernels(kernel.numpy(), recurrent_kernel, bias, gate_order=order)
    for cls in (fastlstm.LSTM, nn.LSTM):
        module = cls(I, H, dtype=torch.float64)
        module.load_state_dict(state)
        torch.testing.assert_close(module(x)[0][-1], expected, rtol=1e-10, atol=1e-10)
        module.bias_hh_l0.data += 1
        module.bias_ih_l0.data -= 1
        back = convert.to_kernels(module.state_dict(), gate_order=order)
        for mine, theirs in zip(back, (kernel, recurrent_kernel, bias), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_kernels_of_a_cell_and_without_bias():
    cell = fastlstm.LSTMCell(I, H, bias=False)
    kernels = convert.to_kernels(cell.state_dict(), gate_order="igfo", suffix="")
    assert kernels[2] is None
    state = convert.from_kernels(*kernels, gate_order="igfo", suffix="")
    assert state.keys() == cell.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in cell.state_dict().items())


def test_kernels_that_do_not_fit():
    kernel, recurrent_kernel = torch.zeros(I, 4 * H), torch.zeros(H, 4 * H)
    with pytest.raises(
        ValueError, match="gate_order: expected a permutation of 'ifgo', got 'ifco'"
    ):
        convert.from_kernels(kernel, recurrent_kernel, gate_order="ifco")
    with pytest.raises(RuntimeError, match="kernel: expected 2 dimensions, the last of 4H = 24"):
        convert.from_kernels(kernel.t(), recurrent_kernel, gate_order="ifgo")
    with pytest.raises(RuntimeError, match="bias"):
        convert.from_kernels(kernel, recurrent_kernel, torch.zeros(2, 4 * H), gate_order="ifgo")
    for options in ({"peephole": True}, {"proj_size": 2}):
        with pytest.raises(ValueError, match="weight_"):
            convert.to_kernels(fastlstm.LSTM(I, H, **options).state_dict(), gate_order="ifgo")
    with pytest.raises(TypeError, match=r"^state_dict: expected a mapping, got LSTM$"):
        convert.to_kernels(fastlstm.LSTM(I, H), gate_order="ifgo")
    with pytest.raises(KeyError, match="weight_ih_l1"):
        convert.to_kernels(fastlstm.LSTM(I, H).state_dict(), gate_order="ifgo", suffix="_l1")
