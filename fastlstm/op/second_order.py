"""The gradients of the sequence op as a differentiable function, and so its second derivative.

Kernels have one backward pass and no derivative of it. The inputs of the backward op are all that
its results are a function of, though, so what is asked beyond the first gradient is computed from
them once more in plain torch (``backends/reference.py``): as slow as the reference, exact, and
differentiable without end, in reverse and in forward mode. By ``torch.func``, not by
``torch.autograd.grad``: no tensor can be told to require a gradient inside of ``torch.func.grad``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlstm.backends import reference
from fastlstm.call import Call


def gradients(
    outer: Sequence[Tensor | None], call: Call, needs: Sequence[bool]
) -> tuple[Tensor, ...]:
    """What the backward op returns: (dinput, the weights' over the groups, dhx, dcx).

    Args:
        outer: dy, dhy, dcy, dcells; None for an output that nothing depends on.
        call: the forward op's inputs.
        needs: of the first six results; those not asked for are empty.
    """

    def run(*tensors: Tensor) -> tuple[Tensor, ...]:
        return reference.lstm_sequence(*call.replace_tensors(tensors))

    with torch.autocast(call.input.device.type, enabled=False):
        outputs, pull = torch.func.vjp(run, *call.tensors)[:2]
        cotangents = [
            torch.zeros_like(output) if grad is None else grad
            for output, grad in zip(outputs, outer, strict=True)
        ]
        found = call.replace_tensors(pull(tuple(cotangents)))
    empty = call.input.new_empty(0)
    weight_ih, bias_ih, bias_hh, *others = found.groups
    dweights = (
        torch.stack(group) if need else empty
        for group, need in zip((weight_ih, bias_ih or bias_hh, *others), needs[1:], strict=True)
    )
    return found.input if needs[0] else empty, *dweights, found.hx, found.cx


def differentiate(
    dgradients: Sequence[Tensor | None],
    outer: Sequence[Tensor | None],
    call: Call,
    needs: Sequence[bool],
) -> tuple[list[Tensor | None], Call]:
    """From the gradients that arrive at those of the backward op to those of all its inputs.

    Returns:
        Of dy, dhy, dcy and dcells, None where they are, and of the tensors in ``call``. y and the
        reserve of the forward pass have none: they are no variables of their own.
    """
    arriving = [dd for dd in dgradients if dd is not None]
    if not arriving:
        return [None] * len(outer), call.replace_tensors([None] * len(call.tensors))
    given = [grad for grad in outer if grad is not None]

    def run(*variables: Tensor) -> list[Tensor]:
        grads = iter(variables[: len(given)])
        some = [None if grad is None else next(grads) for grad in outer]
        first = gradients(some, call.replace_tensors(variables[len(given) :]), needs)
        return [d for d, dd in zip(first, dgradients, strict=True) if dd is not None]

    pull = torch.func.vjp(run, *given, *call.tensors)[1]
    found = pull(arriving)
    douter = iter(found[: len(given)])
    return (
        [None if grad is None else next(douter) for grad in outer],
        call.replace_tensors(found[len(given) :]),
    )
