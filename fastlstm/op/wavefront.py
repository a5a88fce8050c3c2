"""The layers of one LSTM in one call, for a backend that runs them at once, and its gradients.

Only autograd may see such a call: under a compiler, a tracer, a mode or ``torch.func`` layers go
one after the other, each as the sequence op. What is asked beyond the first gradient is computed in
plain torch, as :mod:`fastlstm.op.second_order` does for one layer.
"""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlstm import tracing
from fastlstm.backends import pointers, reference
from fastlstm.call import Call, Problem, split


def refusal(backend: ModuleType, problem: Problem, weight: Tensor | None = None) -> str | None:
    """None, or why ``backend`` runs the layers of ``problem`` one after the other.

    It is asked about the device of ``weight``, or about the current one. A backend that can run
    them at once has ``layers_refusal``, ``layers_forward`` and ``layers_backward``, which may still
    take one after the other.
    """
    if problem.L == 1:
        return "there is one"
    if not hasattr(backend, "layers_refusal"):
        return "its kernels have one layer each"
    if torch.compiler.is_compiling():
        return "a compiler sees each as an op"
    with nullcontext() if weight is None else torch.cuda.device_of(weight):
        reason: str | None = backend.layers_refusal(problem, "forward")
    return reason


def describe(backend: ModuleType, problem: Problem) -> str:
    """How it runs them, in words."""
    reason = refusal(backend, problem)
    if reason is not None:
        return f"one after the other: {reason}"
    reason = backend.layers_refusal(problem, "backward") if problem.requires_grad else None
    return "at once" + (f", backward one after the other: {reason}" if reason else "")


def is_hidden(call: Call) -> bool:
    """Whether nothing but autograd watches the call."""
    transformed = tracing.is_active() or tracing.is_forward_mode()
    return not transformed and not tracing.is_watched(call.tensors)


def run(backend: ModuleType, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """y (T, B, H) of the last layer, hy and cy (L, B, H); the groups of ``call`` are layers."""
    call = pointers.plain_call(call)
    if not torch.is_grad_enabled() or not any(t.requires_grad for t in call.tensors):
        y, hy, cy, *_ = backend.layers_forward(call, train=False)
        return y, hy, cy
    counts = [len(weights) for weights in call.groups]
    y, hy, cy = _Layers.apply((backend, counts, call.course), *call.tensors)
    return y, hy, cy


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, options: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.backend, counts, course = options
        call = _call(tensors, counts, course)
        y, hy, cy, *kept = ctx.backend.layers_forward(call, train=True)
        ctx.counts, ctx.reverse = counts, course.reverse
        ctx.save_for_backward(y, *kept, *course[1:], *tensors)
        ctx.set_materialize_grads(False)
        return y, hy, cy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        y, below, reserve, *course, input, hx, cx = (saved := ctx.saved_tensors)[:9]
        call = _call((input, hx, cx, *saved[9:]), ctx.counts, (ctx.reverse, *course))
        if torch.is_grad_enabled() or any(map(tracing.is_batched_by_autograd, grads)):
            return None, *_in_plain_torch(grads, call)
        flags = ctx.needs_input_grad
        w_ih, b_ih, b_hh, w_hh, w_ch, _ = map(any, split(flags[4:], ctx.counts))
        needs = [flags[1], w_ih, b_ih or b_hh, w_hh, w_ch]
        grads = tuple(
            None if grad is None else pointers.plain(name, grad)
            for name, grad in zip(("dy", "dhy", "dcy"), grads, strict=True)
        )
        dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dhx, dcx = ctx.backend.layers_backward(
            grads, y, below, reserve, pointers.plain_call(call), needs
        )
        # Both biases have one gradient, but not one pointers.
        dbias_hh = dbias.clone() if b_ih and b_hh else dbias
        found = (dweight_ih, dbias, dbias_hh, dweight_hh, dweight_ch, None)
        asked = (w_ih, b_ih, b_hh, w_hh, w_ch, False)
        dweights = (
            list(gradient) if is_asked else [None] * count
            for gradient, is_asked, count in zip(found, asked, ctx.counts, strict=True)
        )
        return None, dinput, dhx, dcx, *chain.from_iterable(dweights)


def _call(tensors: Any, counts: list[int], course: Any) -> Call:
    input, hx, cx, *weights = tensors
    return Call._make((input, *split(weights, counts), hx, cx, *course))


def _in_plain_torch(grads: tuple[Tensor | None, ...], call: Call) -> tuple[Tensor, ...]:
    """Gradients of ``call.tensors`` that can be differentiated again, by the reference."""

    def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        return _one_after_the_other(call.replace_tensors(tensors))

    with torch.autocast(call.input.device.type, enabled=False):
        found, pull = torch.func.vjp(outputs, *call.tensors)[:2]
        cotangents = (
            torch.zeros_like(output) if grad is None else grad
            for output, grad in zip(found, grads, strict=True)
        )
        gradients: tuple[Tensor, ...] = pull(tuple(cotangents))
    return gradients


def _one_after_the_other(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    x, hy, cy = call.input, [], []
    for layer in range(len(call.weight_hh)):
        own = slice(layer, layer + 1)
        weights = [group[own] for group in call.groups]
        states = (call.hx[own], call.cx[own])
        one = Call._make((x, *weights, *states, call.reverse[own], *call.course[1:]))
        y, h, c, _ = reference.lstm_sequence(*one)
        x = y[:, :, 0]
        hy.append(h)
        cy.append(c)
    return x, torch.cat(hy), torch.cat(cy)
