"""Casts under autocast: each tensor once, and none of a tensor that is not returned."""

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
