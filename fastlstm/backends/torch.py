"""PyTorch's own LSTM (oneDNN on a CPU, cuDNN on a GPU): the fallback, which takes whole layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastlstm.call import Layers, LSTMWeights, Results
from fastlstm.problem import Problem

CHECKPOINTS = False


def why_not(problem: Problem) -> str | None:
    """Why PyTorch's LSTM cannot run ``problem``; None if it can."""
    if not problem.whole_layers:
        return "takes whole layers, not igates that are already projected"
    if problem.transformed:
        return "has no rules for torch.func.vmap and for forward mode"
    if problem.has_peepholes:
        return "has no peephole connections"
    if problem.num_heads > 1:
        return "has no heads"
    if problem.options:
        return f"has no {problem.options[0]}"
    if problem.has_reset:
        return "has no reset mask"
    if problem.return_all_cells:
        return "returns only the last cell state"
    if problem.checkpointed:
        return "keeps every step for its backward pass"
    on_host = problem.has_lengths and not problem.is_packed_sequence
    if on_host and problem.device == "cuda" and torch.cuda.is_current_stream_capturing():
        return "copies lengths to the cpu, which ends the capture of a CUDA graph"
    return None


def forward_layers(layers: Layers) -> Results:
    """Run whole layers by ``torch._VF.lstm``, the function behind ``nn.LSTM``.

    Lengths become a PackedSequence, the only variable length that torch has.
    """
    x, hx, layout = layers.input, (layers.hx, layers.cx), layers.layout
    G = len(layout.reverse)
    parameters, has_biases = _flat_parameters(layers)
    options = (
        parameters,
        has_biases,
        len(layers.weights),
        layers.dropout,
        # Two things in one flag: cuDNN keeps what the backward pass needs, and dropout is applied.
        torch.is_grad_enabled() or layers.dropout > 0,
        G == 2,
    )
    if layout.lengths is not None:
        packed = pack_padded_sequence(x, layout.lengths.cpu(), enforce_sorted=False)
        data, batch_sizes, order, inverse = packed
        assert order is not None and inverse is not None
        hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
        data, hy, cy = torch._VF.lstm(data, batch_sizes, hx, *options)
        packed = packed._replace(data=data)
        y = pad_packed_sequence(packed, total_length=x.shape[0])[0]
        hy, cy = hy.index_select(1, inverse), cy.index_select(1, inverse)
    elif layout.batch_sizes is not None:
        y, hy, cy = torch._VF.lstm(x, layout.batch_sizes, hx, *options)
    else:
        y, hy, cy = torch._VF.lstm(x, hx, *options, False)
    return Results(y, hy, cy)


def lstm_cell(
    input: Tensor, hx: tuple[Tensor, Tensor], weights: LSTMWeights
) -> tuple[Tensor, Tensor]:
    """Run one step by ``torch._VF.lstm_cell``, the function behind ``nn.LSTMCell``."""
    return torch._VF.lstm_cell(input, hx, *weights[:4])


def _flat_parameters(layers: Layers) -> tuple[list[Tensor], bool]:
    """All parameters in the order of ``nn.LSTM``, which wants both biases or none."""
    flat = []
    has_biases = False
    for weights in layers.weights:
        has_biases = bool(weights.bias_ih or weights.bias_hh)
        for group, weight_hh in enumerate(weights.weight_hh):
            flat += [weights.weight_ih[group], weight_hh]
            if has_biases:
                zeros = weight_hh.new_zeros(weight_hh.shape[0])
                biases = (weights.bias_ih, weights.bias_hh)
                flat += [bias[group] if bias else zeros for bias in biases]
            if weights.weight_hr:
                flat.append(weights.weight_hr[group])
    return flat, has_biases
