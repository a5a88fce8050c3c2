"""The small model of the tests of bases, and its videos."""

import math

import torch

from fastlstm import CompositeLSTM

HEIGHT, WIDTH, K, T, B, HIDDEN, STEPS = 6, 8, 3, 5, 3, 7, 4
SHAPES = [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 3)]


def size_of(shape):
    return math.prod(shape)


def composite(conditional=True, shape=SHAPES[0], **options):
    """A model whose gates and frames vary; its closed loop is not at a fixed point."""
    torch.manual_seed(0)
    options = {"dtype": torch.float64, "num_layers": 2} | options
    kinds = {"conditional_reconstruction": conditional, "conditional_future": conditional}
    basis = {"basis": "dct", "basis_size": K, "frame_shape": shape}
    model = CompositeLSTM(size_of(shape), HIDDEN, **kinds, **basis, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def videos(shape=SHAPES[0], dtype=torch.float64):
    values = torch.rand(T + STEPS, B, size_of(shape), dtype=dtype)
    return values[:T], values[T:]
