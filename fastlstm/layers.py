"""Arguments of an LSTM as the layers that the op runs, and the heads of a layer as groups.

A layer with n heads is block-diagonal in h: each head is an LSTM of H / n units, which reads the
whole x. So n heads are n groups of the sequence op, which share their input. Only weights and
states, which are small, are copied for that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.call import GroupWeights, Layers, LSTMWeights, SequenceLayout
from fastlstm.tracing import autocast_dtype


def make_layers(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[LSTMWeights],
    layout: SequenceLayout,
    batch_first: bool,
    autocast: torch.dtype | None,
    num_heads: int = 1,
) -> Layers:
    """Arguments of ``lstm``, once they are checked, as layers: time first, rows sorted.

    The groups of a layer are its directions, and of each direction the heads.
    """
    D = len(layout.reverse)
    if isinstance(input, PackedSequence):
        x, B = input.data, int(input.batch_sizes[0])
        if hx is not None and input.sorted_indices is not None:
            hx = tuple(state.index_select(1, input.sorted_indices) for state in hx)  # type: ignore
    else:
        x = input.transpose(0, 1) if batch_first else input  # a view: kernels take any stride
        B = x.shape[1]
    groups = []
    for start in range(0, len(weights), D):
        parameters = zip(*weights[start : start + D], strict=True)
        groups.append(GroupWeights(*[() if p[0] is None else p for p in parameters]))
    if num_heads > 1:
        groups = [_split_weights(of_layer, num_heads) for of_layer in groups]
        reverse = [backwards for backwards in layout.reverse for _ in range(num_heads)]
        layout = layout._replace(reverse=reverse)
    like = groups[0].weight_hh[0]
    if hx is None:
        rows, (four_h, P) = (len(weights) * num_heads, B), like.shape
        zeros = like.new_zeros(*rows, P)
        hx = (zeros, zeros if four_h == 4 * P else like.new_zeros(*rows, four_h // 4))
    elif num_heads > 1:
        hx = _split_states(hx[0], num_heads), _split_states(hx[1], num_heads)
    autocast = None if like.dtype is torch.float64 else autocast
    return Layers(x, groups, *hx, layout, autocast=autocast, num_heads=num_heads)


def make_cell(input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: LSTMWeights) -> Layers:
    """Arguments of ``lstm_cell``, once they are checked, as a layer without a time dimension.

    Under autocast ``nn.LSTMCell`` carries its state on a CPU in float32, if it came so, and so does
    this: rounding the state in every step would lose small changes. All is float32 then.
    """
    if hx is None:
        zeros = input.new_zeros(input.shape[0], weights.weight_hh.shape[1])
        hx = (zeros, zeros)
    h, c = hx
    lowered = None if input.dtype is torch.float64 else autocast_dtype(input)
    if lowered is not None and input.device.type == "cpu":
        carried = torch.promote_types(c.dtype, lowered)
        if carried != lowered:
            lowered = None
            input, h, c = (tensor.to(carried) for tensor in (input, h, c))
            weights = LSTMWeights._make(w if w is None else w.to(carried) for w in weights)
    group = GroupWeights(*[() if weight is None else (weight,) for weight in weights])
    return Layers(input, [group], h, c, SequenceLayout([False]), autocast=lowered)


def _split_weights(weights: GroupWeights, num_heads: int) -> GroupWeights:
    """The weights of each head in the place of those of each direction."""

    def split(parameter: Sequence[Tensor], gates: int) -> Sequence[Tensor]:
        if not parameter:
            return ()
        # One contiguous tensor, over which the kernels go in even steps.
        heads = [w.unflatten(0, (gates, num_heads, -1)).transpose(0, 1) for w in parameter]
        return torch.cat(heads).flatten(1, 2).unbind()

    w_ih, w_hh, b_ih, b_hh, w_ch, _ = weights
    return GroupWeights(
        split(w_ih, 4), split(w_hh, 4), split(b_ih, 4), split(b_hh, 4), split(w_ch, 3)
    )


def _split_states(states: Tensor, num_heads: int) -> Tensor:
    """(L * D, B, H) as (L * D * n, B, H / n)."""
    return states.unflatten(2, (num_heads, -1)).transpose(1, 2).flatten(0, 1)


def join_heads(states: Tensor, num_heads: int) -> Tensor:
    """The states (L * D * n, B, H / n) of all heads as (L * D, B, H)."""
    return states.unflatten(0, (-1, num_heads)).transpose(1, 2).flatten(2)


def dense_weight(weight_hh: Tensor, num_heads: int) -> Tensor:
    """The block-diagonal matrix (4H, H) for the weight_hh (4H, H / n) of n heads."""
    if num_heads == 1:
        return weight_hh
    heads = weight_hh.unflatten(0, (4, num_heads, -1))  # (4, n, m, m) where m = H / n
    diagonal = heads.permute(0, 2, 3, 1).diag_embed(dim1=1, dim2=3)  # (4, n, m, n, m)
    return diagonal.flatten(3).flatten(0, 2)
