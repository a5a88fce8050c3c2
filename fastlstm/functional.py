"""``lstm``, ``lstm_cell`` and ``lstm_sequence``: LSTMs as functions of tensors.

Each function checks its arguments, finds the :class:`fastlstm.tracing.Mode` of the call, selects a
backend, and passes objects of :mod:`fastlstm.call` to :mod:`fastlstm.op`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import backends
from fastlstm.autocast import cast_call, result_dtypes
from fastlstm.backends.cpu.prepacked import PrepackedWeights
from fastlstm.backends.select import select, why_not_stacked
from fastlstm.call import Call, GroupWeights, Layers, LSTMWeights, SequenceLayout, Wanted
from fastlstm.cell_checks import check_cell
from fastlstm.checks import check_call, check_layers
from fastlstm.layers import join_heads, make_cell, make_layers
from fastlstm.layout_checks import steps_between_checkpoints
from fastlstm.op.run import run, run_layers, run_stacked
from fastlstm.option_checks import check_cell_options, check_norms, check_options
from fastlstm.options import PLAIN, LSTMOptions
from fastlstm.problem import pose_problem
from fastlstm.tracing import Mode, autocast_dtype


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
    num_heads: int = 1,
    prepacked: Sequence[PrepackedWeights | None] | None = None,
    options: LSTMOptions = PLAIN,
    backend: str = "auto",
    packed: Sequence[PrepackedWeights | None] | None = None,
) -> tuple[Any, ...]:
    """Apply a stack of LSTM layers, as ``nn.LSTM`` does, with peepholes where there are any.

    Args:
        input: (T, B, I), (B, T, I) if ``batch_first``, or a PackedSequence of either.
        hx: (h_0, c_0) of shapes (L * D, B, P) and (L * D, B, H), where D is 2 if bidirectional,
            else 1; None for zeros.
        weights: L * D entries in the order of h_0: layer 0 forward, layer 0 reverse, layer 1 ...
        bidirectional: each layer reads the sequence in both directions: D = 2. Default: False.
        batch_first: input, reset and output, but not the states, are (B, T, ...). Default: False.
        dropout: probability of zeroing an output of any layer but the last, when ``training``.
            Default: 0.
        training: whether dropout is applied. Default: False.
        lengths: (B,) integers in 1..T, in any order, on a padded input: the number of steps of each
            row. The output is zero after them, and the last state is that of each row's last step.
            Not with a PackedSequence. Default: all T.
        reset: (T, B) booleans, (B, T) if ``batch_first``: true where a row begins a new sequence,
            as at the start of an episode. No state of any layer crosses from the step before, in
            either direction, and at the first step hx is dropped. Not with a PackedSequence.
            Default: none.
        return_all_cells: return the last layer's cell state of every step too. Default: False.
        return_sequence: return the output; if False, None is returned in its place. Default: True.
        checkpoint_every: the number of steps between the states that training keeps, as in
            :class:`fastlstm.LSTM`. Default: every step is kept.
        num_heads: n, the number of heads that share no h, as in :class:`fastlstm.LSTM`: each
            ``weight_hh`` is (4H, H / n). Not with ``weight_hr``. Default: 1.
        prepacked: a :class:`fastlstm.PrepackedWeights` for each layer, the cache of its prepacked
            weights; see :func:`fastlstm.lstm_sequence`. Default: none.
        options: a :class:`fastlstm.LSTMOptions`. Default: none is on.
        backend: "auto", or the name of one; see :func:`fastlstm.explain`. Default: "auto".
        packed: the name of ``prepacked`` in version 0.1.

    Returns:
        output (T, B, D * P) in the layout of the input, and (h_n, c_n) shaped as hx; with
        ``return_all_cells`` then cells (T, B, D * H) in the layout of the output.

    Raises:
        RuntimeError, TypeError, ValueError: as ``nn.LSTM`` and :func:`fastlstm.lstm_sequence` do.

    Example:
        >>> lstm = fastlstm.LSTM(3, 4, num_layers=2)
        >>> output, (h_n, c_n) = fastlstm.lstm(torch.randn(5, 2, 3), None, lstm.weights())
        >>> output.shape, h_n.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """
    weights = tuple(weights)
    every = 0 if checkpoint_every is None else steps_between_checkpoints(checkpoint_every)
    G = 2 if bidirectional else 1
    layout = SequenceLayout([False, True][:G], lengths, reset=reset)
    layout, autocast = check_layers(input, hx, weights, layout, batch_first, num_heads)
    data = input.data if isinstance(input, PackedSequence) else input
    layers = make_layers(input, hx, weights, layout, batch_first, autocast, num_heads)
    if dropout and training:
        layers = layers._replace(dropout=dropout)
    if prepacked is not None or packed is not None:
        layers = layers._replace(prepacked=prepacked or packed)
    if options is not PLAIN:
        check_options(options, dropout)
        check_norms(options, weights, num_heads)
        layers = layers._replace(options=options.in_mode(training), training=training)
    wanted = Wanted(False, return_sequence, return_all_cells, every)
    wanted, mode, problem = pose_problem(layers, wanted, "lstm")
    chosen = select(problem, backend, mode)
    may_stack = problem.L > 1 and mode in (Mode.AUTOGRAD, Mode.NONE)
    if may_stack and why_not_stacked(chosen, problem) is None:
        y, hy, cy, cells, _ = run_stacked(chosen, layers, wanted, mode)
    else:
        y, hy, cy, cells, _ = run_layers(chosen, layers, wanted, mode)
    if layers.autocast is not None:
        cx = None if hx is None else hx[1]
        is_packed, is_projected = problem.is_packed_sequence, problem.proj_size > 0
        dtype, c_dtype = result_dtypes(data, cx, layers.autocast, is_packed, is_projected)
        y, hy, cy = y.to(dtype) if return_sequence else y, hy.to(dtype), cy.to(c_dtype)
    if num_heads > 1:
        hy, cy = join_heads(hy, num_heads), join_heads(cy, num_heads)
    outputs: list[Any] = [y if return_sequence else None, *([cells] if return_all_cells else [])]
    if isinstance(input, PackedSequence):
        assert layout.batch_sizes is not None
        output = input._replace(batch_sizes=layout.batch_sizes)
        outputs = [s if s is None else output._replace(data=s) for s in outputs]
        if input.unsorted_indices is not None:
            hy, cy = (state.index_select(1, input.unsorted_indices) for state in (hy, cy))
    elif batch_first:
        outputs = [s if s is None else s.transpose(0, 1) for s in outputs]
    return outputs[0], (hy, cy), *outputs[1:]


def lstm_cell(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weights: LSTMWeights,
    *,
    options: LSTMOptions = PLAIN,
    training: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Apply one LSTM to one time step, as ``nn.LSTMCell`` does, with peepholes if there are any.

    Args:
        input: (B, I).
        hx: (h, c), both (B, H); None for zeros.
        weights: the parameters of the cell, without ``weight_hr``.
        options: a :class:`fastlstm.LSTMOptions` with zoneout and cell_clip only. Default: none is
            on.
        training: whether zoneout draws masks; else each state takes their expectation.
            Default: False.
        backend: "auto", or the name of one; see :func:`fastlstm.explain`. Default: "auto".

    Returns:
        The next (h, c), both (B, H).

    Raises:
        RuntimeError, ValueError: as ``nn.LSTMCell`` and :func:`fastlstm.lstm_sequence` do.

    Example:
        >>> cell = fastlstm.LSTMCell(3, 4)
        >>> h, c = fastlstm.lstm_cell(torch.randn(2, 3), None, cell.weights())
        >>> h.shape
        torch.Size([2, 4])
    """
    check_cell(input, hx, weights)
    layers = make_cell(input, hx, weights)
    if options is not PLAIN:
        check_cell_options(options)
        check_norms(options, [weights], 1)
        layers = layers._replace(options=options, training=training)
    wanted, mode, problem = pose_problem(layers, Wanted(), "cell")
    chosen = select(problem, backend, mode)
    if chosen is backends.torch:
        return backends.torch.lstm_cell(input, hx or (layers.hx, layers.cx), weights)
    x, h, c = layers.input[None], layers.hx[None], layers.cx[None]
    layers = layers._replace(input=x, hx=h, cx=c)
    if layers.autocast is None and autocast_dtype(input) is not None:
        with torch.autocast(input.device.type, enabled=False):
            y, _, cy, *_ = run_layers(chosen, layers, wanted, mode)
    else:
        y, _, cy, *_ = run_layers(chosen, layers, wanted, mode)
    return y[0], cy[0]


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
    return_sequence: bool = True,
    checkpoint_every: int | str | None = None,
    prepacked: PrepackedWeights | None = None,
    backend: str = "auto",
    packed: PrepackedWeights | None = None,
) -> tuple[Any, ...]:
    """Apply G LSTMs of one shape, the groups, side by side over a whole sequence.

    Sizes: T time steps, B rows of the batch, G groups, I input size, H hidden size, P the size of h
    (H, or the size of its projection), N the rows of a PackedSequence.

    Each group has its own weights and its own direction of time; groups may share their input. The
    two directions of a bidirectional layer are G = 2 with the second reversed: ``y.flatten(2)`` is
    then the output of ``nn.LSTM``, and hx has the layout of its h_0. Under ``torch.autocast``
    everything but float64 is cast to autocast's dtype; sums and the running cell state are then
    float32.

    Derivatives of any order, forward mode and ``torch.func`` work. The kernels compute first
    derivatives in reverse mode; the rest runs in plain torch, whichever backend is named.

    Args:
        input: with ``weight_ih``, x (T, B, I) that all groups share or (T, B, G, I). Without,
            igates (T, B, G, 4H): ``x W_ih^T + b_ih + b_hh``, gates in order i, f, g, o. Any stride
            in T, B and G, zero included: a transposed or expanded input is not copied.
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
        return_sequence: return y; if False, None is returned in its place. Default: True.
        checkpoint_every: k, the number of steps between the states that training keeps for the
            backward pass, which runs k steps again at a time; see :class:`fastlstm.LSTM`. y is kept
            too, unless ``return_sequence`` is False. Default: every step is kept.
        prepacked: a :class:`fastlstm.PrepackedWeights`, a cache of the weights in the layout of the
            cpu backend's kernels, so that not every call copies them into that layout. Only
            inference on the cpu backend uses it. Default: none.
        backend: "auto", or the name of one; see :func:`fastlstm.explain`. Default: "auto".
        packed: the name of ``prepacked`` in version 0.1.

    Returns:
        y (T, B, G, P), hy (G, B, P) and cy (G, B, H); with ``return_all_cells`` then cells
        (T, B, G, H), zero past a row's length as y is.

    Raises:
        TypeError: a wrong type of input, lengths, reset or ``checkpoint_every``.
        RuntimeError: a wrong number of dimensions or a wrong size, an empty sequence, a length
            outside 1..T, batch sizes that no PackedSequence has, or tensors on different devices.
        ValueError: tensors of different dtypes, arguments that exclude each other, a
            ``checkpoint_every`` below 1, or a backend that is unknown or cannot run this call.

    Example:
        >>> T, B, I, H = 5, 2, 3, 4
        >>> x, w_ih, w_hh = torch.randn(T, B, I), torch.randn(4 * H, I), torch.randn(4 * H, H)
        >>> y, hy, cy = fastlstm.lstm_sequence(x, [w_hh], weight_ih=[w_ih])
        >>> y.shape
        torch.Size([5, 2, 1, 4])
    """
    every = steps_between_checkpoints(checkpoint_every)
    parameters = (weight_ih, weight_hh, bias_ih, bias_hh, weight_ch, weight_hr)
    weights = GroupWeights(*[list(parameter or ()) for parameter in parameters])
    flags = [False] * len(weight_hh) if reverse is None else [bool(flag) for flag in reverse]
    layout = SequenceLayout(flags, lengths, batch_sizes, reset)
    autocast = autocast_dtype(input) if isinstance(input, Tensor) else None
    unchecked = Call(input, weights, hx, cx, layout)  # type: ignore[arg-type]
    call = check_call(unchecked, autocast=autocast is not None)
    if input.dtype is torch.float64:
        autocast = None
    layers = Layers(call.input, [weights], call.hx, call.cx, call.layout, autocast=autocast)
    wanted = Wanted(False, return_sequence, return_all_cells, every)
    wanted, mode, problem = pose_problem(layers, wanted, "sequence")
    chosen = select(problem, backend, mode)
    uncast = None
    if autocast is not None:
        uncast, call = call.weights, cast_call(call, autocast, mode)
    y, hy, cy, cells, _ = run(chosen, call, wanted, mode, prepacked or packed, uncast)
    outputs = (y if return_sequence else None, hy, cy)
    return (*outputs, cells) if return_all_cells else outputs
