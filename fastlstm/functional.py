"""Layers and cells as functions: every argument is checked here, once, and nowhere below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import backends, tracing
from fastlstm.autocast import cast_weights, compute_dtype, is_autocast, result_dtypes
from fastlstm.backends import select
from fastlstm.backends.cpu.prepacked import PackedWeights
from fastlstm.call import Call, Course, LSTMWeights, Problem
from fastlstm.checks import check_cell, check_layers
from fastlstm.layout_checks import steps_between_checkpoints
from fastlstm.op import wavefront
from fastlstm.op.run import run


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
    return_sequence: bool = True,
    checkpoint_every: int | str | None = None,
    packed: Sequence[PackedWeights | None] | None = None,
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
        return_sequence: return the output; if not, None stands in its place. Default: True.
        checkpoint_every: what training keeps, as in :class:`fastlstm.LSTM`. Default: every step.
        packed: what keeps each layer's packed weights for the next call; see
            :func:`fastlstm.lstm_sequence`. Default: nothing is kept.
        backend: "auto" or the name of one.

    Returns:
        output (T, B, D * P) in the layout of the input, and (h_n, c_n) shaped as hx; with
        ``return_all_cells`` then cells (T, B, D * H) in the layout of the output.

    Raises:
        RuntimeError, TypeError, ValueError: as ``nn.LSTM`` and :func:`fastlstm.lstm_sequence` do.
    """
    weights = tuple(weights)
    every = steps_between_checkpoints(checkpoint_every)
    D = 2 if bidirectional else 1
    course = check_layers(input, hx, weights, D, batch_first, lengths, reset)
    if isinstance(input, PackedSequence) and course.batch_sizes is not None:
        input = input._replace(batch_sizes=course.batch_sizes)
    problem = layers_problem(input, hx, weights, D, batch_first, lengths is not None)
    if reset is not None or return_all_cells:
        problem = problem._replace(reset=reset is not None, return_all_cells=return_all_cells)
    if every:
        problem = problem._replace(checkpoint_every=problem.requires_grad)
    dropout = dropout if training else 0.0
    if dropout:
        problem = problem._replace(dropout=True)
    chosen = select.select(problem, backend)
    data = input.data if isinstance(input, PackedSequence) else input
    like, cx = weights[0].weight_hh, None if hx is None else hx[1]
    if hx is None:
        rows = (len(weights), problem.B)
        zeros = like.new_zeros(*rows, problem.H)
        hx = (zeros if not problem.proj_size else like.new_zeros(*rows, problem.proj_size), zeros)
    if chosen is backends.torch:
        y, state = backends.torch.lstm(input, hx, weights, D, batch_first, dropout, course.lengths)
        outputs: list[Any] = [y if return_sequence else None]
    else:
        if packed is None:
            packed = [None] * (len(weights) // D)
        x = data
        if isinstance(input, PackedSequence):
            hx = _permute(hx, input.sorted_indices)
        elif batch_first:  # views: the kernels take any stride
            x = data.transpose(0, 1)
        at_once = wavefront.refusal(chosen, problem, like) is None
        options = (dropout, packed, return_all_cells, every, return_sequence, at_once)
        y, state, *cells = _fused_layers(chosen, x, hx, weights, course, *options)
        outputs = [y, *cells]
        if isinstance(input, PackedSequence):
            outputs = [d if d is None else input._replace(data=d) for d in outputs]
            state = _permute(state, input.unsorted_indices)
        elif batch_first:
            outputs = [s if s is None else s.transpose(0, 1) for s in outputs]
    output, *cells = outputs
    if is_autocast(data) and problem.dtype != torch.float64:
        is_projected = problem.proj_size > 0
        dtype, c_dtype = result_dtypes(data, cx, problem.dtype, problem.batch_sizes, is_projected)
        output = None if output is None else output.to(dtype)
        state = state[0].to(dtype), state[1].to(c_dtype)
    return output, state, *cells


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
        RuntimeError, ValueError: as ``nn.LSTMCell`` and :func:`fastlstm.lstm_sequence` do.
    """
    check_cell(input, hx, weights)
    problem = cell_problem(input, hx, weights)
    if hx is None:
        zeros = input.new_zeros(input.shape[0], weights.weight_hh.shape[1])
        hx = (zeros, zeros)
    chosen = select.select(problem, backend)
    if chosen is backends.torch:
        return backends.torch.lstm_cell(input, hx, weights)
    h, c, x = hx[0][None], hx[1][None], input[None]
    course, options = Course([False]), (0.0, (None,), False)
    if is_autocast(input) and problem.dtype not in (torch.float64, compute_dtype(input)):
        # The state stays in float32 from step to step, as in nn.LSTMCell, and so does all else.
        h, c, x = (tensor.to(problem.dtype) for tensor in (h, c, x))
        weights = LSTMWeights._make(w if w is None else w.to(problem.dtype) for w in weights)
        with torch.autocast(input.device.type, enabled=False):
            y, (_, cy) = _fused_layers(chosen, x, (h, c), (weights,), course, *options)
    else:
        y, (_, cy) = _fused_layers(chosen, x, (h, c), (weights,), course, *options)
    return y[0], cy[0]


def layers_problem(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
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
    records = torch.is_grad_enabled()
    if records:
        tensors = chain((data,), hx or (), *weights)
        records = any(tensor is not None and tensor.requires_grad for tensor in tensors)
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
        batch_sizes=isinstance(input, PackedSequence),
        whole_layers=True,
        transformed=tracing.is_forward_mode() or tracing.is_vmapped(),
        requires_grad=records,
    )


def cell_problem(input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: LSTMWeights) -> Problem:
    """What :func:`lstm_cell` asks the backends about these arguments.

    Under autocast ``nn.LSTMCell`` carries its state on a CPU in float32, if it came so; what is
    rounded in every step would lose the small changes of many.
    """
    problem = layers_problem(input[None], hx, [weights], 1, False, False)._replace(cell=True)
    if input.device.type == "cpu" and is_autocast(input) and problem.dtype != torch.float64:
        carried = input.dtype if hx is None else hx[1].dtype
        problem = problem._replace(dtype=torch.promote_types(carried, problem.dtype))
    return problem


def _fused_layers(
    chosen: ModuleType,
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: tuple[LSTMWeights, ...],
    course: Course,
    dropout: float,
    packed: Sequence[PackedWeights | None],
    return_all_cells: bool,
    checkpoint_every: int = 0,
    return_sequence: bool = True,
    at_once: bool = False,
) -> tuple[Any, ...]:
    """Layer by layer through the sequence op, a layer's directions as its groups; time first.

    Or all layers ``at_once``, where nothing but autograd watches.
    """
    D = len(course.reverse)
    autocast = is_autocast(x)
    if at_once:
        call = _call_of_layers(x, hx, weights, course, autocast)
        if wavefront.is_hidden(call):
            y, h, c = wavefront.run(chosen, call)
            return y if return_sequence else None, (h, c)
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
            groups = cast_weights(groups, dtype)
        call = Call._make((x, *groups, h0, c0, *course))
        is_last = start + D == len(weights)
        outputs = (return_all_cells and is_last, checkpoint_every, return_sequence or not is_last)
        y, h, c, *cells = run(chosen, call, packed[start // D], *outputs)
        if not is_last or return_sequence:
            x = y.flatten(-2)
        hy.append(h)
        cy.append(c)
    state = (hy[0], cy[0]) if len(hy) == 1 else (torch.cat(hy), torch.cat(cy))
    output = x if return_sequence else None
    return (output, state, cells[0].flatten(-2)) if return_all_cells else (output, state)


def _call_of_layers(
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    weights: tuple[LSTMWeights, ...],
    course: Course,
    autocast: bool,
) -> Call:
    """A call whose groups are layers of one direction."""
    groups = [[w for w in parameter if w is not None] for parameter in _by_kind(weights)]
    course = course._replace(reverse=[False] * len(weights))
    call = Call._make((x, *groups, *hx, *course))
    if not autocast:
        return call
    dtype = compute_dtype(x)
    x, h0, c0 = (tensor.to(dtype) for tensor in (x, *hx))
    return Call._make((x, *cast_weights(groups, dtype), h0, c0, *course))


def _by_kind(layer: Sequence[LSTMWeights]) -> Iterable[tuple[Tensor | None, ...]]:
    """One tuple over the directions for each parameter, in the order of ``lstm_sequence``."""
    w_ih, w_hh, b_ih, b_hh, w_ch, w_hr = zip(*layer, strict=True)
    return w_ih, b_ih, b_hh, w_hh, w_ch, w_hr


def _permute(states: tuple[Tensor, Tensor], order: Tensor | None) -> tuple[Tensor, Tensor]:
    """The rows of (h, c) in another order, as a PackedSequence sorts its batch."""
    if order is None:
        return states
    return states[0].index_select(1, order), states[1].index_select(1, order)
