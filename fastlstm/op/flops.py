"""The formulas by which ``torch.utils.flop_counter.FlopCounterMode`` counts the sequence op."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from fastlstm.op import schema


@register_flop_formula(torch.ops.fastlstm.lstm_sequence)
def _forward(*shapes: Any, out_shape: Any = None) -> int:
    """Count the matrix products, as torch does; a row with a length counts all T steps."""
    call, _, _ = schema.unflatten_forward(shapes)
    return sum(_products(call))


@register_flop_formula(torch.ops.fastlstm.lstm_sequence_backward)
def _backward(*shapes: Any, out_shape: Any = None) -> int:
    """Count one product for the gradient of each factor; that of the states is always computed."""
    call, saved, _, needs, _ = schema.unflatten_backward(shapes)
    needs_input, needs_weight_ih, _, needs_weight_hh, _, needs_weight_hr = needs
    of_input, of_states, of_projection = products = _products(call)
    return (
        of_input * (needs_input + needs_weight_ih)
        + of_states * (1 + needs_weight_hh)
        + of_projection * (1 + needs_weight_hr)
        + (sum(products) if saved.checkpoint_every else 0)  # the forward once more
    )


def _products(call: Any) -> list[int]:
    """The operations with weight_ih, weight_hh and weight_hr; tensors are their shapes here."""
    rows = call.input[0] * (1 if call.layout.batch_sizes is not None else call.hx[1])
    weights = call.weights
    groups = (weights.weight_ih, weights.weight_hh, weights.weight_hr)
    return [2 * rows * sum(map(prod, parameter)) for parameter in groups]
