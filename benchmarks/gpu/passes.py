"""Run the recurrence of the cuda backend alone, on random numbers, with any of its plans."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import fastlstm
from fastlstm.backends.cuda import recurrence
from fastlstm.call import (
    Call,
    GroupWeights,
    Needs,
    OutputGradients,
    Results,
    Saved,
    SequenceLayout,
)

DIRECTIONS = ("forward", "backward")


class Problem(NamedTuple):
    """The precision and sizes that a plan is made for."""

    precision: str
    H: int
    B: int
    G: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the tensors."""
        found = torch.float32 if self.precision == "tf32" else getattr(torch, self.precision)
        assert isinstance(found, torch.dtype)
        return found

    @property
    def reverse(self) -> tuple[bool, ...]:
        """Whether each group runs backwards in time: the second of two does."""
        return (False, True)[: self.G]


class Passes:
    """The forward and the backward pass of a problem on the same random numbers.

    Args:
        kernels: the kernels of the cuda backend.
        problem: precision and sizes.
        T: number of steps.
        device: "cuda" or "cpu".
    """

    def __init__(self, kernels: Any, problem: Problem, T: int, device: str) -> None:
        _, H, B, G = problem
        torch.manual_seed(0)
        new: dict[str, Any] = {"device": device, "dtype": problem.dtype}
        igates, self._dy = (torch.randn(T, B, G, n * H, **new) for n in (4, 1))
        hx, cx = torch.randn(2, G, B, H, **new)
        weight_hh = (2 * torch.rand(G, 4 * H, H, **new) - 1) * H**-0.5
        layout = SequenceLayout(problem.reverse)
        self._call = Call(igates, GroupWeights([], list(weight_hh)), hx, cx, layout)
        self._y, self._reserve = (torch.full((T, B, G, n * H), torch.nan, **new) for n in (1, 5))
        self._hy, self._cy = torch.empty_like(hx), torch.empty_like(cx)
        self.launches = {
            direction: recurrence.prepare(kernels, direction, self._y, layout)
            for direction in DIRECTIONS
        }

    def run(self, direction: str, plan: dict[str, int] | None) -> list[Tensor]:
        """Run a pass with a plan.

        The backward pass needs an earlier forward pass, with any plan.

        Returns:
            y and the last states; of the backward pass the gradients of igates and of the first
            states.
        """
        launch = self.launches[direction]._replace(plan=plan)
        if direction == "forward":
            results = Results(self._y, self._hy, self._cy, reserve=self._reserve)
            recurrence.forward(launch, self._call.input, self._call, results)
            return [self._y, self._hy, self._cy]
        saved, grads = Saved(self._y, self._reserve), OutputGradients(self._dy)
        needs = Needs(True, False, True, True, False, False)
        found = recurrence.backward(launch, self._call, saved, grads, needs)
        return [found[0], *found[3:]]

    def poison(self) -> None:
        """Fill the outputs with NaN, to detect numbers that a forward pass does not write."""
        for tensor in (self._y, self._reserve, self._hy, self._cy):
            tensor.fill_(torch.nan)

    def reference(self, dtype: torch.dtype) -> dict[str, list[Tensor]]:
        """Compute the results of both passes with the reference backend in ``dtype``."""
        inputs = (self._call.input, self._call.hx, self._call.cx)
        igates, hx, cx = leaves = [x.to(dtype, copy=True).requires_grad_() for x in inputs]
        outputs = fastlstm.lstm_sequence(
            igates,
            [w.to(dtype) for w in self._call.weights.weight_hh],
            hx,
            cx,
            reverse=self._call.layout.reverse,
            backend="reference",
        )
        gradients = torch.autograd.grad(outputs[0], leaves, self._dy.to(dtype))
        return {"forward": [x.detach() for x in outputs], "backward": list(gradients)}
