"""Casts under autocast: each tensor once, none of a gradient or of what is not returned."""

import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm


class Casts(TorchDispatchMode):
    """The sizes of all tensors that are cast inside the block."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default:
            self.sizes.append(tuple(args[0].shape))
        return function(*args, **kwargs or {})


def test_the_input_is_cast_once_whether_the_sequence_is_returned_or_not():
    lstm, x = fastlstm.LSTM(16, 8), torch.randn(50, 4, 16)
    for return_sequence in (True, False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts() as casts:
            lstm(x, return_sequence=return_sequence)
        assert casts.sizes.count(tuple(x.shape)) == 1


def test_gradients_of_weights_are_not_rounded_on_a_cpu():
    lstm, x = fastlstm.LSTM(5, 7), torch.randn(6, 3, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        lstm(x)[0].float().square().sum().backward()
    narrow = copy.deepcopy(lstm).bfloat16()
    narrow.zero_grad()
    narrow(x)[0].float().square().sum().backward()
    for name, parameter in narrow.named_parameters():
        found = lstm.get_parameter(name).grad
        assert found.dtype == torch.float32
        assert not torch.equal(found.bfloat16().float(), found)
        torch.testing.assert_close(found.bfloat16(), parameter.grad)  # the same sums, rounded


def test_second_derivatives_reach_weights_under_autocast():
    lstm, x = fastlstm.LSTM(5, 7), torch.randn(6, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = lstm(x)[0].float().square().sum()
    first = torch.autograd.grad(loss, list(lstm.parameters()), create_graph=True)
    assert {gradient.dtype for gradient in first} == {torch.float32}
    penalty = sum(gradient.square().sum() for gradient in first)
    second = torch.autograd.grad(penalty, list(lstm.parameters()))
    exact = lstm(x)[0].square().sum()
    exact = torch.autograd.grad(exact, list(lstm.parameters()), create_graph=True)
    exact = sum(gradient.square().sum() for gradient in exact)
    for found, expected in zip(
        second, torch.autograd.grad(exact, list(lstm.parameters())), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0.1, atol=0.05 * expected.abs().max())
