"""The LSTM as functions: every argument is checked here, once, and nowhere below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastlstm import backends, dispatch, ops
from fastlstm.checks import check_cell, check_layers, check_sequence
from fastlstm.types import LSTMWeights, Problem


def lstm_sequence(
    igates: Tensor,
    weight_hh: Sequence[Tensor],
    hx: Tensor | None = None,
    cx: Tensor | None = None,
    *,
    weight_ch: Sequence[Tensor] | None = None,
    weight_hr: Sequence[Tensor] | None = None,
    reverse: Sequence[bool] | None = None,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """The recurrence of G LSTMs of one shape, side by side, over a whole sequence.

    The groups share nothing but their sizes: each has its own weights, its own input and its own
    direction of time. The two directions of a bidirectional layer are G = 2 with the second
    reversed. ``y.flatten(2)`` is then ``nn.LSTM``'s output, and hx has the layout of its h_0.

    Args:
        igates: (T, B, G, 4H) ``x W_ih^T + b_ih + b_hh``, gates in order i, f, g, o. Any stride in
            T, B and G, zero included: an expanded bias costs no memory.
        weight_hh: G tensors (4H, P), where P = H unless ``weight_hr`` is given.
        hx: (G, B, P) first hidden state. Default: zeros.
        cx: (G, B, H) first cell state. Default: zeros.
        weight_ch: G tensors (3H), the diagonal peepholes i, f, o. Default: none.
        weight_hr: G tensors (P, H), output projections. Default: none.
        reverse: G flags, true for a group that reads from the last step to the first. Default:
            all false.
        lengths: (B,) integers in 1..T. A row ends after its length: y is zero from there on, its
            state stays, and a reversed group starts it at its own last step. Default: all T.
        backend: "auto" or the name of one; see :func:`fastlstm.explain`.

    Returns:
        y (T, B, G, P), hy (G, B, P) and cy (G, B, H).

    Raises:
        RuntimeError: a wrong number of dimensions or a wrong size, an empty sequence, a length
            outside 1..T, or tensors on different devices.
        ValueError: tensors of different dtypes, or a backend that is unknown or cannot run this.
    """
    weight_hh = tuple(weight_hh)
    weight_ch, weight_hr = tuple(weight_ch or ()), tuple(weight_hr or ())
    if torch.is_autocast_enabled(igates.device.type) and weight_hh:
        igates = igates.to(weight_hh[0].dtype)  # states and accumulation keep the weights' dtype
    G = len(weight_hh)
    reverse = [False] * G if reverse is None else [bool(flag) for flag in reverse]
    check_sequence(igates, weight_hh, hx, cx, weight_ch, weight_hr, reverse, lengths)

    T, B, G, four_h = igates.shape
    if hx is None:
        hx = igates.new_zeros(G, B, weight_hh[0].shape[1])
    if cx is None:
        cx = igates.new_zeros(G, B, four_h // 4)
    problem = Problem(
        device=igates.device.type,
        dtype=weight_hh[0].dtype,
        T=T,
        B=B,
        G=G,
        H=four_h // 4,
        peephole=bool(weight_ch),
        proj_size=weight_hr[0].shape[0] if weight_hr else 0,
        lengths=lengths is not None,
    )
    chosen = dispatch.select(problem, backend)
    if chosen is backends.reference:
        return backends.reference.lstm_sequence(
            igates, weight_hh, weight_ch, weight_hr, hx, cx, reverse, lengths
        )
    differentiable = (igates, hx, cx, *weight_hh, *weight_ch)
    train = torch.is_grad_enabled() and any(t.requires_grad for t in differentiable)
    y, hy, cy, _ = ops.lstm_sequence(
        igates, weight_hh, weight_ch, hx, cx, reverse, lengths, train, dispatch.name(chosen)
    )
    return y, hy, cy


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[LSTMWeights],
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
    """A stack of LSTM layers: what ``nn.LSTM`` computes, with peepholes where there are any.

    Args:
        input: (T, B, I), (B, T, I) if ``batch_first``, or a PackedSequence of either.
        hx: (h_0, c_0) of shapes (L * D, B, P) and (L * D, B, H), where D is 2 if bidirectional,
            else 1. Default (None): zeros.
        weights: L * D entries in the order of h_0: layer 0 forward, layer 0 reverse, layer 1 ...
        bidirectional: D = 2.
        batch_first: the layout of input and output; the states keep theirs.
        dropout: probability of zeroing an output of any layer but the last, when ``training``.
        lengths: (B,) integers in 1..T, in any order, on a padded input: the output is zero past
            them and the last state is the one at each row's end. Not with a PackedSequence.
        backend: "auto" or the name of one.

    Returns:
        output (T, B, D * P) in the layout of the input, and (h_n, c_n) shaped as hx.

    Raises:
        RuntimeError, ValueError: as ``nn.LSTM`` and :func:`lstm_sequence` do.
    """
    weights = tuple(weights)
    D = 2 if bidirectional else 1
    check_layers(input, hx, weights, D, batch_first, lengths)
    problem = layers_problem(input, weights, D, batch_first, lengths is not None)
    chosen = dispatch.select(problem, backend)
    if hx is None:
        like = weights[0].weight_hh
        hx = (
            like.new_zeros(len(weights), problem.B, like.shape[1]),
            like.new_zeros(len(weights), problem.B, problem.H),
        )
    dropout = dropout if training else 0.0
    if chosen is backends.torch:
        return backends.torch.lstm(input, hx, weights, D, batch_first, dropout, lengths)
    if isinstance(input, PackedSequence):
        padded, lengths = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))
        hx = _permute(hx, input.sorted_indices)
        y, state = _fused_layers(
            padded, hx, weights, D, False, dropout, lengths, dispatch.name(chosen)
        )
        data = pack_padded_sequence(y, lengths).data
        return input._replace(data=data), _permute(state, input.unsorted_indices)
    y, state = _fused_layers(
        input, hx, weights, D, batch_first, dropout, lengths, dispatch.name(chosen)
    )
    return (y.transpose(0, 1) if batch_first else y), state


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: LSTMWeights,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One step of one LSTM: what ``nn.LSTMCell`` computes, with peepholes if there are any.

    Args:
        input: (B, I).
        hx: (h, c), both (B, H). Default (None): zeros.
        weights: of the cell; no ``weight_hr``.
        backend: "auto" or the name of one.

    Returns:
        The next (h, c), both (B, H).

    Raises:
        RuntimeError, ValueError: as ``nn.LSTMCell`` and :func:`lstm_sequence` do.
    """
    check_cell(input, hx, weights)
    if hx is None:
        zeros = input.new_zeros(input.shape[0], weights.weight_hh.shape[1])
        hx = (zeros, zeros)
    if dispatch.select(cell_problem(input, weights), backend) is backends.torch:
        return backends.torch.lstm_cell(input, hx, weights)
    y, _, cy = lstm_sequence(
        F.linear(input, weights.weight_ih, weights.bias)[None, :, None],
        [weights.weight_hh],
        hx[0][None],
        hx[1][None],
        weight_ch=None if weights.weight_ch is None else [weights.weight_ch],
        backend=backend,
    )
    return y[0, :, 0], cy[0]


def layers_problem(
    input: Tensor | PackedSequence,
    weights: Sequence[LSTMWeights],
    D: int,
    batch_first: bool,
    has_lengths: bool,
) -> Problem:
    """What :func:`lstm` asks the backends about these arguments."""
    if isinstance(input, PackedSequence):
        T, B, has_lengths = input.batch_sizes.shape[0], int(input.batch_sizes[0]), True
    else:
        T, B = input.shape[:2] if not batch_first else (input.shape[1], input.shape[0])
    first = weights[0]
    return Problem(
        device=input.data.device.type,
        dtype=first.weight_hh.dtype,
        T=T,
        B=B,
        G=D,
        H=first.weight_hh.shape[0] // 4,
        peephole=first.weight_ch is not None,
        proj_size=0 if first.weight_hr is None else first.weight_hr.shape[0],
        lengths=has_lengths,
        whole_layers=True,
    )


def cell_problem(input: Tensor, weights: LSTMWeights) -> Problem:
    """What :func:`lstm_cell` asks the backends about these arguments."""
    return layers_problem(input[None], [weights], 1, False, False)


def _fused_layers(
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: tuple[LSTMWeights, ...],
    D: int,
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None,
    backend: str,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Layer by layer through the sequence op, a layer's directions as its groups; time first."""
    reverse = [False, True][:D]
    hy, cy = [], []
    for start in range(0, len(weights), D):
        layer = weights[start : start + D]
        if start and dropout:
            x = F.dropout(x, dropout)
        igates = _project(x, layer)
        if start == 0 and batch_first:
            igates = igates.transpose(0, 1)  # a view: the kernels take any stride
        y, h, c = lstm_sequence(
            igates,
            [entry.weight_hh for entry in layer],
            hx[0][start : start + D],
            hx[1][start : start + D],
            weight_ch=_all_or_none(entry.weight_ch for entry in layer),
            weight_hr=_all_or_none(entry.weight_hr for entry in layer),
            reverse=reverse,
            lengths=lengths,
            backend=backend,
        )
        x = y.flatten(2)
        hy.append(h)
        cy.append(c)
    return x, (torch.cat(hy), torch.cat(cy))


def _project(x: Tensor, layer: Sequence[LSTMWeights]) -> Tensor:
    """The igates (..., G, 4H) of a layer, all its directions by one GEMM."""
    weight_ih, bias = layer[0].weight_ih, layer[0].bias
    if len(layer) > 1:
        weight_ih = torch.cat([entry.weight_ih for entry in layer])
        biases = _all_or_none(entry.bias for entry in layer)
        bias = None if biases is None else torch.cat(biases)
    return F.linear(x, weight_ih, bias).unflatten(-1, (len(layer), -1))


def _all_or_none(tensors: Iterable[Tensor | None]) -> list[Tensor] | None:
    return [t for t in tensors if t is not None] or None


def _permute(states: tuple[Tensor, Tensor], order: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows of (h, c) in another order, as a PackedSequence sorts its batch."""
    if order is None:
        return states
    return states[0].index_select(1, order), states[1].index_select(1, order)
