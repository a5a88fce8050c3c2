"""The backward pass of the sequence op as a differentiable function, and so its second derivative.

Kernels have a backward pass, but no derivative of it. Higher derivatives are therefore computed in
plain torch (``backends/reference.py``), from the inputs of the backward op. They are exact, as slow
as the reference, and differentiable any number of times, in reverse and in forward mode. The code
uses ``torch.func.vjp`` and not ``torch.autograd.grad``, because inside ``torch.func.grad`` one
cannot set ``requires_grad`` on a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastlstm.backends import reference
from fastlstm.call import Call, Gradients, Needs, OutputGradients


def pull_back(
    run: Callable[..., tuple[Tensor, ...]],
    tensors: Sequence[Tensor],
    grads: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The gradients of ``tensors``, differentiable again.

    Args:
        run: differentiable code of the tensors, which returns outputs.
        tensors: its arguments.
        grads: of the outputs; None is zero.
    """
    with torch.autocast(tensors[0].device.type, enabled=False):
        outputs, pull = torch.func.vjp(run, *tensors)[:2]
        cotangents = [
            torch.zeros_like(output) if grad is None else grad
            for output, grad in zip(outputs, grads, strict=True)
        ]
        gradients: tuple[Tensor, ...] = pull(tuple(cotangents))
    return gradients


def gradients(call: Call, grads: OutputGradients, needs: Needs) -> Gradients:
    """The backward pass of a call in differentiable torch code."""

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return reference.forward(call.with_tensors(tensors))[:4]

    found = call.with_tensors(pull_back(run, call.tensors, grads))
    nothing = call.input.new_empty(0)
    weight_ih, weight_hh, bias_ih, bias_hh, *others = found.weights
    parameters = (weight_ih, bias_ih or bias_hh, weight_hh, *others)
    dweights = (
        torch.stack(tuple(parameter)) if need else nothing
        for parameter, need in zip(parameters, needs[1:], strict=True)
    )
    dinput = found.input if needs.input else nothing
    norms = [] if found.options is None else found.options.gains
    return Gradients(*[dinput, *dweights, found.hx, found.cx, *norms])


def differentiate(
    dgradients: Sequence[Tensor | None], grads: OutputGradients, call: Call, needs: Needs
) -> tuple[list[Tensor | None], Call]:
    """From the gradients of the backward op's results to those of its inputs.

    Returns:
        The gradients of dy, dhy, dcy and dcells, None where those are None, and of the tensors in
        ``call``. y and the reserve have none: they are no variables of their own.
    """
    arriving = [dd for dd in dgradients if dd is not None]
    if not arriving:
        return [None] * len(grads), call.with_tensors([None] * len(call.tensors))
    given = [grad for grad in grads if grad is not None]

    def run(*variables: Tensor) -> list[Tensor]:
        each = iter(variables[: len(given)])
        some = OutputGradients(*[None if grad is None else next(each) for grad in grads])
        first = gradients(call.with_tensors(variables[len(given) :]), some, needs)
        return [d for d, dd in zip(first, dgradients, strict=False) if dd is not None]

    pull = torch.func.vjp(run, *given, *call.tensors)[1]
    found = pull(arriving)
    each = iter(found[: len(given)])
    return (
        [None if grad is None else next(each) for grad in grads],
        call.with_tensors(found[len(given) :]),
    )
