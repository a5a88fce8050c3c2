"""A decoder in closed loop as one function of autograd, or as a loop that other observers follow.

Where only autograd watches, one ``torch.autograd.Function`` runs all steps on the fused kernels.
Its backward pass computes the gradient of each weight as one matrix product over all steps, where
autograd would make one product a step, and the gradient through the emitted frames only if it is
asked for. Compilers, tracers, ``torch.func`` and forward mode see the loop itself.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from fastlstm.autocast import cast_tensors
from fastlstm.backends.select import select
from fastlstm.call import Layers, Wanted
from fastlstm.op.closed_loop_gradients import Backward, KeptLayer, differentiable_gradients
from fastlstm.op.closed_loop_steps import ClosedLoop, run_steps
from fastlstm.op.run import run
from fastlstm.problem import pose_problem
from fastlstm.tracing import Mode, autocast_dtype, find_mode, records_gradients


def run_closed_loop(loop: ClosedLoop, backend: str) -> Tensor:
    """Return the read-outs (steps, B, I) of a decoder in closed loop.

    Args:
        loop: its sizes and dtypes fit; under autocast the dtypes may differ.
        backend: "auto", or the name of one.

    Raises:
        ValueError: a backend that is unknown or cannot run a step.
    """
    given = [tensor for tensor in loop.tensors if tensor is not None]
    mode = find_mode(given)
    lowered = None if loop.hx.dtype is torch.float64 else autocast_dtype(loop.hx)
    if lowered is not None:
        loop = _lowered(loop, lowered, mode)
    first = loop.step(0, None, loop.hx[0], loop.cx[0])
    problem = pose_problem(Layers(first.input, [first.weights], *first[2:5]), Wanted(), "sequence")
    chosen = select(problem[2], backend, mode)
    if mode is Mode.AUTOGRAD and hasattr(chosen, "backward") and loop.options.readout is None:
        readouts: Tensor = _ClosedLoop.apply(chosen, loop, *loop.tensors)
        return readouts
    wanted = Wanted(train=records_gradients(mode, given))

    def step(layer: int, x: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        results = run(chosen, loop.step(layer, x, h, c), wanted, mode)
        return results.hy[0], results.cy[0]

    return torch.stack(run_steps(loop, step)[0])


def _lowered(loop: ClosedLoop, dtype: torch.dtype, mode: Mode) -> ClosedLoop:
    """The loop in autocast's dtype."""
    bias, options = loop.readout_bias, loop.options
    loop = loop.with_tensors(cast_tensors(loop.tensors, dtype, mode))
    if options.basis is None:
        return loop
    if mode is Mode.AUTOGRAD:  # the backward pass may run outside of autocast
        options = options._replace(basis=options.basis.in_dtype(dtype))
    # A sum with a float32 bias gives float32 logits, the dtype that the loss needs.
    return loop._replace(readout_bias=bias, options=options)


class _ClosedLoop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: ModuleType, loop: ClosedLoop, *tensors: Tensor) -> Tensor:
        kept: list[list[tuple[Tensor, ...]]] = [[] for _ in loop.weights]

        def step(layer: int, x: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            results = backend.forward(loop.step(layer, x, h, c), Wanted(train=True))
            kept[layer].append((results.hy, results.cy, results.reserve))
            return results.hy[0], results.cy[0]

        steps, inputs = run_steps(loop, step)
        readouts, weight = torch.stack(steps), loop.weights[0].weight_ih
        x = weight.new_zeros(len(steps), loop.hx.shape[1], weight.shape[1])  # step 0 reads nothing
        if inputs:
            torch.stack(inputs, out=x[1:])
        of_layers = [torch.cat(pieces) for each in kept for pieces in zip(*each, strict=True)]
        ctx.backend, ctx.num_tensors = backend, len(tensors)
        ctx.loop = loop.with_tensors([None] * len(tensors))._replace(own=None)
        ctx.save_for_backward(x, readouts, loop.own, *tensors, *of_layers)
        ctx.set_materialize_grads(False)
        return readouts

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        flags = ctx.needs_input_grad[2:]
        if grad is None:
            return None, None, *[None] * len(flags)
        x, readouts, own, *saved = ctx.saved_tensors
        tensors, of_layers = saved[: ctx.num_tensors], saved[ctx.num_tensors :]
        loop = ctx.loop.with_tensors(tensors)._replace(own=own)
        is_batched = is_legacy_batchedtensor(grad)
        mode = find_mode([grad, *(tensor for tensor in tensors if tensor is not None)])
        if is_batched or torch.is_grad_enabled() or mode not in (Mode.AUTOGRAD, Mode.NONE):
            return None, None, *differentiable_gradients(loop, grad, is_batched)
        kept = [KeptLayer(*of_layers[n : n + 3]) for n in range(0, len(of_layers), 3)]
        backward = Backward(loop, ctx.backend, x, readouts, kept, loop.with_tensors(flags))
        return None, None, *backward.gradients(grad)
