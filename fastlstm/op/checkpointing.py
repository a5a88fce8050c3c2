"""``checkpoint_every`` for backends whose own backward pass needs every step: k steps at a time.

Each segment is a call of its own, which starts from the state that the one before left, under
``torch.utils.checkpoint``: between the passes only these states are kept, and the backward pass
runs a segment once more before it differentiates it. The cpu backend does all that in its kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastlstm.call import Call

Run = Callable[[Call], tuple[Tensor, ...]]
"""(y, hy, cy, cells) of a call."""


def lstm_sequence(
    run: Run, call: Call, every: int, return_all_cells: bool, return_sequence: bool
) -> tuple[Tensor, ...]:
    """What ``run(call)`` returns, in segments of ``every`` steps.

    Groups of one direction go side by side. Of two directions each group goes alone, for they
    begin at different ends. y and cells that are not asked for are empty.
    """
    kept = (return_sequence, return_all_cells)
    if len(set(call.reverse)) == 1:
        return _in_segments(run, call, every, *kept)
    groups = [_in_segments(run, _only(call, g), every, *kept) for g in range(len(call.reverse))]
    y, hy, cy, cells = zip(*groups, strict=True)
    along = -2 if return_sequence else 0, 0, 0, -2 if return_all_cells else 0
    each = zip((y, hy, cy, cells), along, strict=True)
    return tuple(torch.cat(tensors, dim) for tensors, dim in each)


def _only(call: Call, group: int) -> Call:
    """The call of one group; a view of its input."""
    own = slice(group, group + 1)
    shared_dim = 2 if call.batch_sizes is not None else 3
    input = call.input if call.input.dim() == shared_dim else call.input[..., own, :]
    lists = [weights[own] for weights in call.groups]
    rest = (call.reverse[own], *call.course[1:])
    return Call._make((input, *lists, call.hx[own], call.cx[own], *rest))


def _in_segments(
    run: Run, call: Call, every: int, return_sequence: bool, return_all_cells: bool
) -> tuple[Tensor, ...]:
    packed = call.batch_sizes is not None
    T = call.batch_sizes.shape[0] if call.batch_sizes is not None else call.input.shape[0]
    reverse = call.reverse[0]
    y: list[Tensor] = []
    cells: list[Tensor] = []
    h, c = call.hx, call.cx
    for s in range(0, T, every):
        e = min(s + every, T)
        times = (T - e, T - s) if reverse else (s, e)
        segment = partial(_segment, run, call, T, *times)
        y_part, h_part, c_part, cells_part = checkpoint(
            segment, h, c, use_reentrant=False, preserve_rng_state=False
        )
        # Of packed rows those that end before the segment, or begin after it, are not in it.
        B = h_part.shape[1]
        h, c = (
            (torch.cat([part, state[:, B:]], 1) if packed else part)
            for part, state in ((h_part, h), (c_part, c))
        )
        y += [y_part] if return_sequence else []
        cells += [cells_part] if return_all_cells else []
    in_time = slice(None, None, -1) if reverse else slice(None)
    sequences = [torch.cat(all[in_time]) if all else h.new_empty(0) for all in (y, cells)]
    return sequences[0], h, c, sequences[1]


def _segment(run: Run, call: Call, T: int, begin: int, end: int, h: Tensor, c: Tensor) -> Any:
    """The steps from ``begin`` to ``end`` from a state (G, B, P) and (G, B, H)."""
    lengths, batch_sizes, reset = call.lengths, call.batch_sizes, call.reset
    if batch_sizes is not None:
        first = int(batch_sizes[:begin].sum())
        batch_sizes = batch_sizes[begin:end]
        B = int(batch_sizes[0])
        input = call.input[first : first + int(batch_sizes.sum())]
        return run(call._replace(input=input, hx=h[:, :B], cx=c[:, :B], batch_sizes=batch_sizes))
    if reset is not None:
        if call.reverse[0] and end < T:  # a border that the segment does not see
            closed = reset[end] if lengths is None else reset[end] & (end < lengths)
            h, c = (torch.where(closed[:, None], 0.0, state) for state in (h, c))
        reset = reset[begin:end]
    if lengths is not None:
        lengths = (lengths - begin).clamp(0, end - begin)
    input = call.input[begin:end]
    return run(call._replace(input=input, hx=h, cx=c, lengths=lengths, reset=reset))
