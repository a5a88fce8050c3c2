"""The formulas by which ``torch.utils.flop_counter.FlopCounterMode`` counts the sequence op."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from fastlstm.call import Call
from fastlstm.op import schema  # noqa: F401, it defines them

_INPUTS = len(Call._fields)


@register_flop_formula(torch.ops.fastlstm.lstm_sequence)
def _forward(*shapes: Any, out_shape: Any = None) -> int:
    """Of the matrix products, as torch counts; a row with a length counts all T steps."""
    return sum(_products(Call._make(shapes[:_INPUTS])))


@register_flop_formula(torch.ops.fastlstm.lstm_sequence_backward)
def _backward(*shapes: Any, out_shape: Any = None) -> int:
    """As many again for the gradient of each factor; those of the states are always needed."""
    call, needs, checkpoint_every, _ = Call._make(shapes[6 : 6 + _INPUTS]), *shapes[6 + _INPUTS :]
    needs_input, needs_weight_ih, _, needs_weight_hh, _, needs_weight_hr = needs
    of_input, of_states, of_projection = products = _products(call)
    return (
        of_input * (needs_input + needs_weight_ih)
        + of_states * (1 + needs_weight_hh)
        + of_projection * (1 + needs_weight_hr)
        + (sum(products) if checkpoint_every else 0)  # the forward once more
    )


def _products(call: Any) -> list[int]:
    """Those with weight_ih, weight_hh and weight_hr; tensors are their shapes here."""
    rows = call.input[0] * (1 if call.batch_sizes is not None else call.hx[1])
    groups = (call.weight_ih, call.weight_hh, call.weight_hr)
    return [2 * rows * sum(map(prod, weights)) for weights in groups]
