"""All layers of one LSTM in one call, for a backend that runs them as a wavefront, with gradients.

Only autograd may watch such a call: under a compiler, a tracer, a dispatch mode or ``torch.func``
layers go one after the other, each as the sequence op. What is asked beyond the first gradient is
computed in plain torch, as :mod:`fastlstm.op.second_order` does for one layer.
"""

from __future__ import annotations

from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from fastlstm.backends import reference
from fastlstm.call import (
    Call,
    GroupWeights,
    Layers,
    OutputGradients,
    Results,
    Saved,
    split,
)
from fastlstm.op import second_order
from fastlstm.op.autograd import needs_of, save_call, saved_call, tensor_gradients


def stacked_call(layers: Layers) -> Call:
    """A call whose groups are the layers, which have one direction."""
    parameters = zip(*layers.weights, strict=True)
    weights = GroupWeights(*[list(chain.from_iterable(parameter)) for parameter in parameters])
    layout = layers.layout._replace(reverse=[False] * len(layers.weights))
    return Call(layers.input, weights, layers.hx, layers.cx, layout)


def run_stacked(backend: ModuleType, call: Call, train: bool) -> Results:
    """y (T, B, H) of the last layer, hy and cy (L, B, H); the groups of ``call`` are layers."""
    if not train:
        return backend.forward_stacked(call, train=False)[0]
    return Results(*_Stacked.apply((backend, call), *call.tensors))


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.backend, call = arguments
        results, below = ctx.backend.forward_stacked(call, train=True)
        save_call(ctx, call, results.y, below, results.reserve)
        return results[:3]

    @staticmethod
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        call, (y, below, reserve) = saved_call(ctx, 3)
        is_batched = any(grad is not None and is_legacy_batchedtensor(grad) for grad in outer)
        if torch.is_grad_enabled() or is_batched:
            return None, *_gradients_in_plain_torch(call, outer)
        needs_input, _, _, *flags = ctx.needs_input_grad[1:]
        asked = GroupWeights._make(map(any, split(flags, ctx.counts)))
        saved, grads = Saved(y, reserve), OutputGradients(*outer)
        needs = needs_of(needs_input, asked)
        found = ctx.backend.backward_stacked(call, saved, below, grads, needs)
        return None, *tensor_gradients(found, needs_input, asked, call).tensors


def _gradients_in_plain_torch(call: Call, grads: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    """The gradients of ``call.tensors``, by the reference, differentiable again."""

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        return _one_after_the_other(call.with_tensors(tensors))

    return second_order.pull_back(outputs, call.tensors, grads)


def _one_after_the_other(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    x, hy, cy = call.input, [], []
    for layer in range(len(call.weights.weight_hh)):
        own = slice(layer, layer + 1)
        layout = call.layout._replace(reverse=[False])
        results = reference.forward(
            Call(x, call.weights.of(own), call.hx[own], call.cx[own], layout)
        )
        x = results.y[:, :, 0]
        hy.append(results.hy)
        cy.append(results.cy)
    return x, torch.cat(hy), torch.cat(cy)
