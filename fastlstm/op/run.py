"""``lstm_sequence``: the op of all LSTMs here as a function, with its arguments checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fastlstm import backends, tracing
from fastlstm.autocast import cast_weights, compute_dtype, is_autocast
from fastlstm.backends import pointers, select
from fastlstm.backends.cpu.prepacked import PackedWeights
from fastlstm.call import Call, Course, problem_of
from fastlstm.checks import check_sequence
from fastlstm.layout_checks import steps_between_checkpoints
from fastlstm.op import checkpointing, schema


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
    packed: PackedWeights | None = None,
    backend: str = "auto",
) -> tuple[Any, ...]:
    """G LSTMs of one shape, side by side, over a whole sequence.

    The groups share nothing but their sizes, and maybe their input: each has its own weights and
    its own direction of time. The two directions of a bidirectional layer are G = 2 with the
    second reversed. ``y.flatten(2)`` is then ``nn.LSTM``'s output, and hx has the layout of its
    h_0. Under ``torch.autocast`` everything is cast to its dtype, but for float64, which meets only
    float64; sums and the running cell state are float32 then.

    It can be differentiated in any way and to any order, and transformed by ``torch.func``. The
    kernels have first derivatives in reverse mode; whatever else is asked of them is computed by
    the reference in plain torch: second derivatives, and all that is called while forward mode is
    on (``torch.func.jvp``, ``torch.autograd.forward_ad.dual_level``), whichever backend is named.

    Args:
        input: with ``weight_ih``, x (T, B, I) that all groups share or (T, B, G, I). Without,
            igates (T, B, G, 4H): ``x W_ih^T + b_ih + b_hh``, gates in order i, f, g, o. Any stride
            in T, B and G, zero included: a transposed or expanded input costs no pointers.
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
        return_sequence: return y; if not, None stands in its place. Default: True.
        checkpoint_every: what training keeps for the backward pass: the state before every k-th
            step, from which that pass runs k steps once more; see :class:`fastlstm.LSTM`. y is
            kept too, unless ``return_sequence`` is false. Default: every step.
        packed: what keeps the packed weights for the next call, which saves packing them in every
            call. Only inference on the cpu backend uses it. Default: nothing is kept.
        backend: "auto" or the name of one; see :func:`fastlstm.explain`.

    Returns:
        y (T, B, G, P), hy (G, B, P) and cy (G, B, H); with ``return_all_cells`` then cells
        (T, B, G, H), zero past a row's length as y is.

    Raises:
        TypeError: a ``checkpoint_every`` that is neither None, an integer nor a word.
        RuntimeError: a wrong number of dimensions or a wrong size, an empty sequence, a length
            outside 1..T, batch sizes that no PackedSequence has, or tensors on different devices.
        ValueError: tensors of different dtypes, arguments that exclude each other, a
            ``checkpoint_every`` below 1, or a backend that is unknown or cannot run this.
    """
    groups = [list(w or ()) for w in (weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr)]
    G = len(weight_hh)
    every = steps_between_checkpoints(checkpoint_every)
    flags = [False] * G if reverse is None else [bool(flag) for flag in reverse]
    course = Course(flags, lengths, batch_sizes, reset)
    autocast = is_autocast(input)
    B, course = check_sequence(input, groups, hx, cx, course, autocast=autocast)
    if autocast:
        dtype = compute_dtype(input)
        input = input.to(dtype)
        hx, cx = (None if state is None else state.to(dtype) for state in (hx, cx))
        groups = cast_weights(groups, dtype)

    four_h, P = weight_hh[0].shape
    if hx is None:
        hx = input.new_zeros(G, B, P)
    if cx is None:
        cx = input.new_zeros(G, B, four_h // 4)
    call = Call._make((input, *groups, hx, cx, *course))
    chosen = select.select(problem_of(call, return_all_cells, every > 0), backend)
    y, hy, cy, *cells = run(chosen, call, packed, return_all_cells, every, return_sequence)
    outputs = (y if return_sequence else None, hy, cy)
    return (*outputs, *cells) if return_all_cells else outputs


def run(
    chosen: ModuleType,
    call: Call,
    packed: PackedWeights | None,
    return_all_cells: bool,
    checkpoint_every: int = 0,
    return_sequence: bool = True,
) -> tuple[Tensor, ...]:
    """What :func:`lstm_sequence` does once all is checked: (y, hy, cy, cells).

    What is not asked for is empty, or there nevertheless where it had to be computed.

    Where nothing wants to see the op, no compiler, tracer or mode, its kernels are called without
    it: that saves a quarter of the time of a short call (15 of 60 us), and in training more.
    """
    if chosen is backends.onnx:
        return backends.onnx.lstm_sequence(*call)
    tensors = call.tensors
    # A trace keeps the flag, and may train whatever the mode was in which it was recorded.
    records = torch.is_grad_enabled() or torch.jit.is_tracing()
    train = records and any(t.requires_grad for t in tensors)
    transformed = tracing.is_forward_mode() or tracing.is_active()
    has_checkpoints = select.has_checkpoints(chosen)
    if checkpoint_every and not has_checkpoints:
        if train and not transformed and not torch.jit.is_tracing():
            one = partial(run, chosen, packed=None, return_all_cells=return_all_cells)
            kept = (return_all_cells, return_sequence)
            return checkpointing.lstm_sequence(one, call, checkpoint_every, *kept)
        checkpoint_every = 0  # nothing is kept, or torch.func has no saved tensors to bring back
    if chosen is backends.reference or tracing.is_forward_mode():
        return backends.reference.lstm_sequence(*call)
    needs_y = train or transformed
    keeps_y = return_sequence or not has_checkpoints or (needs_y and not checkpoint_every)
    options = (return_all_cells, checkpoint_every, keeps_y, select.name(chosen))
    if tracing.is_active():
        return schema.transformed_lstm_sequence(call, *options)
    if tracing.is_watched(tensors):
        return schema.lstm_sequence(*call, train, *options)[:4]
    call = pointers.plain_call(call)
    if train:
        return schema.differentiable_lstm_sequence(call, *options)
    if chosen is backends.cpu:
        return chosen.forward(*call, False, return_all_cells, 0, keeps_y, packed)[:4]
    return chosen.forward(*call, False, return_all_cells)[:4]
