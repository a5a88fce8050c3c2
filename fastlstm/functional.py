"""The LSTM as functions: every argument is checked here, once, and nowhere below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import backends, dispatch, ops, transforms
from fastlstm.checks import check_cell, check_layers, check_sequence
from fastlstm.types import Course, LSTMWeights, Problem


def lstm_sequence(
    input: Tensor,
    weight_hh: Sequence[Tensor],
    hx: Tensor | None = None,
    cx: Tensor | None = None,
    *,
    weight_ih: Sequence[Tensor] | None = None,
    bias_ih: Sequence[Tensor] | None = None,
    bias_hh: Sequence[Tensor] | None = None,
    weight_ch: Sequence[Tensor] | None = None,
    weight_hr: Sequence[Tensor] | None = None,
    reverse: Sequence[bool] | None = None,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    return_all_cells: bool = False,
    packed: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, ...]:
    """G LSTMs of one shape, side by side, over a whole sequence.

    The groups share nothing but their sizes, and maybe their input: each has its own weights and
    its own direction of time. The two directions of a bidirectional layer are G = 2 with the
    second reversed. ``y.flatten(2)`` is then ``nn.LSTM``'s output, and hx has the layout of its
    h_0. Under ``torch.autocast`` everything is cast to its dtype; sums and the running cell state
    are float32 then.

    It can be differentiated in any way and to any order, and transformed by ``torch.func``. The
    kernels have first derivatives in reverse mode; whatever else is asked of them is computed by
    the reference in plain torch: second derivatives, and all that is called while forward mode is
    on (``torch.func.jvp``, ``torch.autograd.forward_ad.dual_level``), whichever backend is named.

    Args:
        input: with ``weight_ih``, x (T, B, I) that all groups share or (T, B, G, I). Without,
            igates (T, B, G, 4H): ``x W_ih^T + b_ih + b_hh``, gates in order i, f, g, o. Any stride
            in T, B and G, zero included: a transposed or expanded input costs no memory.
        weight_hh: G tensors (4H, P), where P = H unless ``weight_hr`` is given.
        hx: (G, B, P) first hidden state. Default: zeros.
        cx: (G, B, H) first cell state. Default: zeros.
        weight_ih: G tensors (4H, I). Default: none, the input is igates.
        bias_ih, bias_hh: G tensors (4H) each, with ``weight_ih`` only. Default: none.
        weight_ch: G tensors (3H), the diagonal peepholes i, f, o. Default: none.
        weight_hr: G tensors (P, H), output projections. Default: none.
        reverse: G flags, true for a group that reads from the last step to the first. Default:
            all false.
        lengths: (B,) integers in 1..T. A row ends after its length: y is zero from there on, its
            state stays, and a reversed group starts it at its own last step. Default: all T.
        batch_sizes: (T,) integers on the CPU, of a PackedSequence whose data (N, I), (N, G, I) or
            (N, G, 4H) the input is: step t has the first ``batch_sizes[t]`` rows of the batch. y
            and cells are then (N, G, P) and (N, G, H). Not with lengths or reset. Default: none.
        reset: (T, B) booleans, true where a new sequence begins: no state crosses from step t - 1
            to t, nor from t to t - 1 in a reversed group. At t = 0 it drops hx and cx of a group
            that reads forward. Default: none.
        return_all_cells: return the cell state of every step too. Default: False.
        packed: weight_ih and weight_hh as :func:`pack_weights` returned them, which saves packing
            them in every call. Only inference on the cpu backend reads it.
        backend: "auto" or the name of one; see :func:`fastlstm.explain`.

    Returns:
        y (T, B, G, P), hy (G, B, P) and cy (G, B, H); with ``return_all_cells`` then cells
        (T, B, G, H), zero past a row's length as y is.

    Raises:
        RuntimeError: a wrong number of dimensions or a wrong size, an empty sequence, a length
            outside 1..T, batch sizes that no PackedSequence has, or tensors on different devices.
        ValueError: tensors of different dtypes, arguments that exclude each other, or a backend
            that is unknown or cannot run this.
    """
    groups = [list(w or ()) for w in (weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr)]
    G = len(weight_hh)
    if torch.is_autocast_enabled(input.device.type):
        dtype = compute_dtype(input)
        input = input.to(dtype)
        hx, cx = (None if state is None else state.to(dtype) for state in (hx, cx))
        groups = [[weight.to(dtype) for weight in group] for group in groups]
    flags = [False] * G if reverse is None else [bool(flag) for flag in reverse]
    course = Course(flags, lengths, batch_sizes, reset)
    T, B = check_sequence(input, groups, hx, cx, course)

    w_ih, _, _, w_hh, w_ch, w_hr = groups
    H = w_hh[0].shape[0] // 4
    if hx is None:
        hx = input.new_zeros(G, B, w_hh[0].shape[1])
    if cx is None:
        cx = input.new_zeros(G, B, H)
    problem = Problem(
        device=input.device.type,
        dtype=input.dtype,
        T=T,
        B=B,
        G=G,
        H=H,
        I=w_ih[0].shape[1] if w_ih else 0,
        peephole=bool(w_ch),
        proj_size=w_hr[0].shape[0] if w_hr else 0,
        lengths=lengths is not None or batch_sizes is not None,
        reset=reset is not None,
        return_all_cells=return_all_cells,
    )
    chosen = dispatch.select(problem, backend)
    outputs = _run(
        chosen, ops.Call._make((input, *groups, hx, cx, *course)), packed, return_all_cells
    )
    return outputs if return_all_cells else outputs[:3]


def _run(
    chosen: ModuleType, call: ops.Call, packed: Tensor | None, return_all_cells: bool
) -> tuple[Tensor, ...]:
    """What :func:`lstm_sequence` does once all is checked: (y, hy, cy, cells).

    Where nothing wants to see the op, no compiler, tracer or mode, its kernels are called without
    it: that saves a quarter of the time of a short call (15 of 60 us), and in training more.
    """
    if chosen is backends.reference or transforms.is_forward_mode():
        return backends.reference.lstm_sequence(*call)
    name = dispatch.name(chosen)
    if transforms.is_active():
        return ops.transformed_lstm_sequence(call, return_all_cells, name)
    tensors = call.tensors
    # A trace keeps the flag, and may train whatever the mode was in which it was recorded.
    records = torch.is_grad_enabled() or torch.jit.is_tracing()
    train = records and any(t.requires_grad for t in tensors)
    if train or chosen is not backends.cpu:
        packed = None
    if ops.is_watched(tensors):
        return ops.lstm_sequence(*call, packed, train, return_all_cells, name)[:4]
    if train:
        return ops.differentiable_lstm_sequence(call, return_all_cells, name)
    return chosen.forward(*call, packed, train, return_all_cells)[:4]


def pack_weights(weight_ih: Sequence[Tensor], weight_hh: Sequence[Tensor]) -> Tensor | None:
    """The weights of a layer as the cpu backend reads them, for ``packed`` in later calls.

    Args:
        weight_ih: G tensors (4H, I).
        weight_hh: G tensors (4H, H).

    Returns:
        Bytes, a copy: it does not follow what is written to the weights afterwards. None where
        the cpu backend cannot run such weights.
    """
    like = weight_hh[0]
    four_h, P = like.shape
    proj_size = P if four_h != 4 * P else 0
    problem = Problem(
        like.device.type, like.dtype, 1, 1, len(weight_hh), four_h // 4, proj_size=proj_size
    )
    if backends.cpu.supports(problem) is not None:
        return None
    return backends.cpu.pack(weight_ih, weight_hh)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that is computed in: the tensor's own, or autocast's where it is on."""
    device = tensor.device.type
    if torch.is_autocast_enabled(device) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return tensor.dtype


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
    reset: Tensor | None = None,
    return_all_cells: bool = False,
    packed: Sequence[Tensor | None] | None = None,
    backend: str = "auto",
) -> tuple[Any, ...]:
    """A stack of LSTM layers: what ``nn.LSTM`` computes, with peepholes where there are any.

    Args:
        input: (T, B, I), (B, T, I) if ``batch_first``, or a PackedSequence of either.
        hx: (h_0, c_0) of shapes (L * D, B, P) and (L * D, B, H), where D is 2 if bidirectional,
            else 1. Default (None): zeros.
        weights: L * D entries in the order of h_0: layer 0 forward, layer 0 reverse, layer 1 ...
        bidirectional: D = 2.
        batch_first: the layout of input, reset and output; the states keep theirs.
        dropout: probability of zeroing an output of any layer but the last, when ``training``.
        lengths: (B,) integers in 1..T, in any order, on a padded input: the output is zero past
            them and the last state is the one at each row's end. Not with a PackedSequence.
        reset: (T, B) booleans, (B, T) if ``batch_first``: true where a row begins anew, as an
            episode does. No state of any layer crosses from the step before, in either direction,
            and at the first step hx is dropped. Not with a PackedSequence.
        return_all_cells: return the last layer's cell state of every step too. Default: False.
        packed: the weights of each layer from :func:`pack_weights`, or None. Default: none.
        backend: "auto" or the name of one.

    Returns:
        output (T, B, D * P) in the layout of the input, and (h_n, c_n) shaped as hx; with
        ``return_all_cells`` then cells (T, B, D * H) in the layout of the output.

    Raises:
        RuntimeError, ValueError: as ``nn.LSTM`` and :func:`lstm_sequence` do.
    """
    weights = tuple(weights)
    D = 2 if bidirectional else 1
    check_layers(input, hx, weights, D, batch_first, lengths, reset)
    problem = layers_problem(input, weights, D, batch_first, lengths is not None)
    if reset is not None or return_all_cells:
        problem = problem._replace(reset=reset is not None, return_all_cells=return_all_cells)
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
    if packed is None or problem.dtype != weights[0].weight_hh.dtype:
        packed = [None] * (len(weights) // D)
    course = Course([False, True][:D], lengths, None, reset)
    options = (dropout, packed, return_all_cells)
    if isinstance(input, PackedSequence):
        course = course._replace(batch_sizes=input.batch_sizes)
        hx = _permute(hx, input.sorted_indices)
        y, state, *cells = _fused_layers(chosen, input.data, hx, weights, course, *options)
        output, *cells = (input._replace(data=data) for data in (y, *cells))
        return output, _permute(state, input.unsorted_indices), *cells
    if batch_first:  # views: the kernels take any stride
        course = course._replace(reset=None if reset is None else reset.t())
        y, state, *cells = _fused_layers(
            chosen, input.transpose(0, 1), hx, weights, course, *options
        )
        output, *cells = (s.transpose(0, 1) for s in (y, *cells))
        return output, state, *cells
    return _fused_layers(chosen, input, hx, weights, course, *options)


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
    chosen = dispatch.select(cell_problem(input, weights), backend)
    if chosen is backends.torch:
        return backends.torch.lstm_cell(input, hx, weights)
    states = (hx[0][None], hx[1][None])
    y, (_, cy) = _fused_layers(
        chosen, input[None], states, (weights,), Course([False]), 0.0, (None,), False
    )
    return y[0], cy[0]


def layers_problem(
    input: Tensor | PackedSequence,
    weights: Sequence[LSTMWeights],
    D: int,
    batch_first: bool,
    has_lengths: bool,
) -> Problem:
    """What :func:`lstm` asks the backends about these arguments."""
    if isinstance(input, PackedSequence):
        data = input.data
        T, B, has_lengths = input.batch_sizes.shape[0], int(input.batch_sizes[0]), True
    else:
        data = input
        T, B = input.shape[:2] if not batch_first else (input.shape[1], input.shape[0])
    first = weights[0]
    differentiable = data.requires_grad or first.weight_hh.requires_grad
    return Problem(
        device=data.device.type,
        dtype=compute_dtype(first.weight_hh),
        T=T,
        B=B,
        G=D,
        H=first.weight_hh.shape[0] // 4,
        I=first.weight_ih.shape[1],
        L=len(weights) // D,
        peephole=first.weight_ch is not None,
        proj_size=0 if first.weight_hr is None else first.weight_hr.shape[0],
        lengths=has_lengths,
        whole_layers=True,
        transformed=transforms.is_forward_mode() or transforms.is_vmapped(),
        train=differentiable and torch.is_grad_enabled(),
    )


def cell_problem(input: Tensor, weights: LSTMWeights) -> Problem:
    """What :func:`lstm_cell` asks the backends about these arguments."""
    return layers_problem(input[None], [weights], 1, False, False)._replace(cell=True)


def _fused_layers(
    chosen: ModuleType,
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: tuple[LSTMWeights, ...],
    course: Course,
    dropout: float,
    packed: Sequence[Tensor | None],
    return_all_cells: bool,
) -> tuple[Any, ...]:
    """Layer by layer through the sequence op, a layer's directions as its groups; time first."""
    D = len(course.reverse)
    autocast = torch.is_autocast_enabled(x.device.type)
    hy, cy = [], []
    for start in range(0, len(weights), D):
        if start and dropout:
            x = F.dropout(x, dropout)
        groups: list[list[Tensor]] = [
            [weight for weight in parameter if weight is not None]
            for parameter in _by_kind(weights[start : start + D])
        ]
        h0, c0 = hx if len(weights) == D else (state[start : start + D] for state in hx)
        if autocast:
            dtype = compute_dtype(x)
            x, h0, c0 = x.to(dtype), h0.to(dtype), c0.to(dtype)
            groups = [[weight.to(dtype) for weight in group] for group in groups]
        call = ops.Call._make((x, *groups, h0, c0, *course))
        is_last = start + D == len(weights)
        y, h, c, cells = _run(chosen, call, packed[start // D], return_all_cells and is_last)
        x = y.flatten(-2)
        hy.append(h)
        cy.append(c)
    state = (hy[0], cy[0]) if len(hy) == 1 else (torch.cat(hy), torch.cat(cy))
    return (x, state, cells.flatten(-2)) if return_all_cells else (x, state)


def _by_kind(layer: Sequence[LSTMWeights]) -> Iterable[tuple[Tensor | None, ...]]:
    """One tuple over the directions for each parameter, in the order of ``lstm_sequence``."""
    w_ih, w_hh, b_ih, b_hh, w_ch, w_hr = zip(*layer, strict=True)
    return w_ih, b_ih, b_hh, w_hh, w_ch, w_hr


def _permute(states: tuple[Tensor, Tensor], order: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows of (h, c) in another order, as a PackedSequence sorts its batch."""
    if order is None:
        return states
    return states[0].index_select(1, order), states[1].index_select(1, order)
