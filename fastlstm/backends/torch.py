"""PyTorch's own LSTM (oneDNN on a CPU, cuDNN on a GPU): the fallback, which takes whole layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm.call import LSTMWeights, Problem


def supports(problem: Problem) -> str | None:
    """None, or why PyTorch's LSTM cannot run ``problem``."""
    if not problem.whole_layers:
        return "takes whole layers, not igates that are already projected"
    if problem.transformed:
        return "has no rules for torch.func.vmap and for forward mode"
    if problem.peephole:
        return "has no peephole connections"
    if problem.reset:
        return "has no reset mask"
    if problem.return_all_cells:
        return "returns only the last cell state"
    if problem.checkpoint_every:
        return "keeps every step for its backward pass"
    on_host = problem.lengths and not problem.batch_sizes
    if on_host and problem.device == "cuda" and torch.cuda.is_current_stream_capturing():
        return "copies lengths to the cpu, which ends the capture of a CUDA graph"
    return None


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor],
    weights: Sequence[LSTMWeights],
    D: int,
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None,
) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
    """Whole layers by ``torch._VF.lstm``, the function behind ``nn.LSTM``.

    Arguments as in :func:`fastlstm.functional.lstm`; D is the number of directions, ``dropout``
    what is to be applied now. ``lengths`` become a PackedSequence, torch's only variable length.
    """
    if lengths is not None:
        assert isinstance(input, Tensor)
        packed = pack_padded_sequence(input, lengths.cpu(), batch_first, enforce_sorted=False)
        output, state = lstm(packed, hx, weights, D, batch_first, dropout, None)
        assert isinstance(output, PackedSequence)
        T = input.shape[1 if batch_first else 0]
        return pad_packed_sequence(output, batch_first, total_length=T)[0], state

    has_biases = weights[0].bias_ih is not None or weights[0].bias_hh is not None
    options = (
        [p for entry in weights for p in _parameters(entry)],
        has_biases,
        len(weights) // D,
        dropout,
        # Two things in one flag: cuDNN keeps what the backward pass needs, and dropout is applied.
        torch.is_grad_enabled() or dropout > 0,
        D == 2,
    )
    if not isinstance(input, PackedSequence):
        y, hy, cy = torch._VF.lstm(input, hx, *options, batch_first)
        return y, (hy, cy)
    data, batch_sizes, order, inverse = input
    if order is not None:
        hx = hx[0].index_select(1, order), hx[1].index_select(1, order)
    data, hy, cy = torch._VF.lstm(data, batch_sizes, hx, *options)
    if inverse is not None:
        hy, cy = hy.index_select(1, inverse), cy.index_select(1, inverse)
    return PackedSequence(data, batch_sizes, order, inverse), (hy, cy)


def lstm_cell(
    input: Tensor, hx: tuple[Tensor, Tensor], weights: LSTMWeights
) -> tuple[Tensor, Tensor]:
    """One step by ``torch._VF.lstm_cell``, the function behind ``nn.LSTMCell``."""
    return torch._VF.lstm_cell(input, hx, *weights[:4])


def _parameters(weights: LSTMWeights) -> list[Tensor]:
    """One layer and direction in the order of ``nn.LSTM``, which wants both biases or none."""
    weight_ih, weight_hh, bias_ih, bias_hh, _, weight_hr = weights
    parameters = [weight_ih, weight_hh]
    if bias_ih is not None or bias_hh is not None:
        zeros = weight_hh.new_zeros(weight_hh.shape[0])
        parameters += [zeros if bias is None else bias for bias in (bias_ih, bias_hh)]
    if weight_hr is not None:
        parameters.append(weight_hr)
    return parameters
