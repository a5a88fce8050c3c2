"""The options of an LSTM drawn for one call: masks from torch's generator, weights dropped out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.call import Call, GroupWeights, rows_of_packed
from fastlstm.options import PLAIN_CELLS, CellOptions, LayerNorm, LSTMOptions


def draw_options(call: Call, options: LSTMOptions, training: bool) -> Call:
    """The call with masks drawn for a step of training, or with their expectation."""
    weights = call.weights
    p_h, p_c = options.zoneout
    mask = None
    if training and options.recurrent_dropout:
        mask = _dropout_mask(call.hx.shape, options.recurrent_dropout, call.hx)
    if training and options.weight_dropout:
        p = options.weight_dropout
        dropped = [w * _dropout_mask(w.shape, p, w) for w in weights.weight_hh]
        call = call._replace(weights=weights._replace(weight_hh=dropped))
    keep_h = _share_kept(call, call.hx, p_h, training) if p_h else None
    keep_c = _share_kept(call, call.cx, p_c, training) if p_c else None
    clip = options.cell_clip or 0.0
    if mask is None and keep_h is None and keep_c is None and not clip:
        return call
    return call._replace(options=CellOptions(mask, keep_h, keep_c, cell_clip=clip))


def _share_kept(call: Call, state: Tensor, p: float, training: bool) -> Tensor:
    """The share of a state (G, B, n) that every step keeps: a mask of ones and zeros, or p."""
    G, _, n = state.shape
    rows = call.rows
    if not training:
        return state.new_full((1,) * len(rows) + (1, n), p).expand(*rows, G, n)
    return _happens((*rows, G, n), p, state).to(state.dtype)


def _dropout_mask(size: Sequence[int], p: float, like: Tensor) -> Tensor:
    """Zeros with probability p, and elsewhere 1 / (1 - p)."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    return (~_happens(size, p, like)).to(like.dtype) * scale


def _happens(size: Sequence[int], p: float, like: Tensor) -> Tensor:
    """Booleans that are true with a probability of p, which is rounded to 16 bits.

    Four of them are drawn from each number of the generator. On a CPU that takes 1.3 ns for each,
    where ``torch.rand(size) < p`` takes 3 and ``bernoulli_`` 8.
    """
    n = math.prod(size)
    words = torch.randint(-(2**63), 2**63 - 1, ((n + 3) // 4,), device=like.device)
    return (words.view(torch.int16)[:n] <= round(p * 2**16) - 2**15 - 1).reshape(tuple(size))


def drop_between_layers(
    x: Tensor, dropout: float, variational: float, batch_sizes: Tensor | None, B: int
) -> Tensor:
    """The output of a layer in training as the next one reads it.

    Args:
        x: (T, B, n), or (N, n) of a PackedSequence.
        dropout: probability of zeroing a number.
        variational: probability of zeroing a column in all steps of a row.
        batch_sizes: of the PackedSequence, or None.
        B: rows of the batch.
    """
    if dropout:
        return F.dropout(x, dropout)
    if not variational:
        return x
    mask = _dropout_mask((B, x.shape[-1]), variational, x)
    if batch_sizes is not None:
        mask = mask[rows_of_packed(batch_sizes, B).to(x.device)]
    return x * mask


def normalized(call: Call, norms: Sequence[LayerNorm]) -> Call:
    """The call of a layer with layer norm: its input is projected and normalised already.

    The gains of W_ih x and the biases are used here, and the recurrence gets the gates that the
    input contributes: ``norm_ih * normalise(W_ih x) + b_ih + b_hh``.
    """
    weights, igates = call.weights, []
    for g, weight in enumerate(weights.weight_ih):
        biases = [b[g] for b in (weights.bias_ih, weights.bias_hh) if b]
        gain, size = norms[g].norm_ih, (weight.shape[0],)
        # Under autocast the gain keeps its own dtype, and torch wants the bias to have that too.
        bias = sum(biases[1:], biases[0]).to(gain.dtype) if biases else None
        x = F.linear(call.input, weight)
        igates.append(F.layer_norm(x, size, gain, bias).to(x.dtype))
    options = (call.options or PLAIN_CELLS)._replace(
        norm_hh=torch.stack([norm.norm_hh for norm in norms]).to(call.input.dtype),
        norm_c=torch.stack([norm.norm_c for norm in norms]).to(call.input.dtype),
    )
    recurrent = GroupWeights((), weights.weight_hh, weight_ch=weights.weight_ch)
    recurrent = recurrent._replace(weight_hr=weights.weight_hr)
    input = igates[0].unsqueeze(-2) if len(igates) == 1 else torch.stack(igates, -2)
    return call._replace(input=input, weights=recurrent, options=options)
