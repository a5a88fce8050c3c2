"""Direct calls: ``LSTM.forward`` and ``LSTMCell.forward`` as one call of a compiled function.

The kernels run a call of few numbers in 1 us, and Python takes 50 us to get there: the general
path, from the module through :mod:`fastlstm.functional` to the backend. ``csrc/direct`` makes the
same checks in 2 us. It answers a call only if it knows all about it: plain tensors on a CPU, the
module's own parameters, and nothing but autograd that watches. For any other call, and for any
error, it returns None, and the general path answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fastlstm import _C
from fastlstm.call import LSTMWeights
from fastlstm.functional import lstm, lstm_cell


class Layout(NamedTuple):
    """How the tensors of a direct call are to be read; ``Layout`` of ``csrc/direct/call.h``."""

    input_size: int
    hidden_size: int
    num_layers: int
    num_directions: int
    is_cell: int
    batch_first: int
    has_bias: int
    has_peepholes: int
    has_states: int
    has_lengths: int
    has_reset: int


class _LSTM(torch.autograd.Function):
    """A direct call that has been run, for autograd.

    Its tensors are input, hx and cx if they were given, the weights of each layer and direction,
    lengths and reset.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layout: tuple[int, ...],
        outputs: tuple[Tensor, ...],
        kept: tuple[Tensor, ...],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.layout = layout
        ctx.save_for_backward(*tensors, *kept)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        found = _C.direct_gradients(ctx.layout, saved, grads, needs)
        if found is not None:
            return None, None, None, *found
        return None, None, None, *_general_gradients(Layout(*ctx.layout), saved, grads, needs)


# Function.apply without its preparations for torch.func, which cost 4 us: no transform is active.
record = super(torch.autograd.Function, _LSTM).apply


def _general_gradients(
    layout: Layout, saved: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], needs: Any
) -> list[Tensor | None]:
    """The gradients by the general path, as where a gradient is differentiated again.

    The forward pass runs once more, unseen: what watches is to see a backward pass.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False), _disable_current_modes():
        # Views, so that each tensor is a variable of its own, whatever it was computed from.
        tensors = [t.view_as(t) if t.requires_grad else t for t in saved[: len(needs)]]
        outputs = _general_call(layout, iter(tensors))
    asked = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
    given = [(y, grad) for y, grad in zip(outputs, grads, strict=True) if grad is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in given],
            asked,
            [grad for _, grad in given],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if need else None for need in needs]


def _general_call(layout: Layout, tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of the general path for the tensors of a direct call."""
    input = next(tensors)
    hx = (next(tensors), next(tensors)) if layout.has_states else None
    weights = []
    for _ in range(layout.num_layers * layout.num_directions):
        w_ih, w_hh = next(tensors), next(tensors)
        b_ih, b_hh = (next(tensors), next(tensors)) if layout.has_bias else (None, None)
        w_ch = next(tensors) if layout.has_peepholes else None
        weights.append(LSTMWeights(w_ih, w_hh, b_ih, b_hh, w_ch))
    lengths = next(tensors) if layout.has_lengths else None
    reset = next(tensors) if layout.has_reset else None
    # The dimensions of the batch in the input, and in each output.
    batches = (0, 0, 0) if layout.is_cell else (1 - layout.batch_first,) * 2 + (1, 1)
    is_batched = input.dim() == 3 - layout.is_cell
    if not is_batched:
        input = input.unsqueeze(batches[0])
        reset = None if reset is None else reset.unsqueeze(batches[0])
        hx = None if hx is None else (hx[0].unsqueeze(batches[-1]), hx[1].unsqueeze(batches[-1]))
    if layout.is_cell:
        outputs = lstm_cell(input, hx, weights[0], backend="cpu")
    else:
        y, states = lstm(
            input,
            hx,
            weights,
            bidirectional=layout.num_directions == 2,
            batch_first=bool(layout.batch_first),
            lengths=lengths,
            reset=reset,
            backend="cpu",
        )
        outputs = (y, *states)
    if is_batched:
        return outputs
    return tuple(s.squeeze(batch) for s, batch in zip(outputs, batches[1:], strict=True))
