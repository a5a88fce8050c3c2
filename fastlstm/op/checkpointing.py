"""``checkpoint_every`` for backends whose backward pass needs every step: k steps at a time.

Each segment is a call of its own, which starts from the state that the segment before left, under
``torch.utils.checkpoint``: between the passes only these states are kept, and the backward pass
runs a segment again before it differentiates it. The cpu backend does all that in its kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastlstm.call import NOTHING, Call, Results, Wanted

Run = Callable[[Call], Results]


def run_segments(run: Run, call: Call, wanted: Wanted) -> Results:
    """Return what ``run(call)`` returns, in segments of ``wanted.checkpoint_every`` steps.

    If all groups have the same direction, a segment runs all of them. Otherwise each group runs by
    itself, because forward and reversed groups begin at different ends.
    """
    reverse = call.layout.reverse
    if len(set(reverse)) == 1:
        return _run_segments(run, call, wanted)
    groups = [_run_segments(run, _group(call, g), wanted) for g in range(len(reverse))]
    y, hy, cy, cells, _ = zip(*groups, strict=True)
    return Results(
        torch.cat(y, -2) if wanted.y else NOTHING,
        torch.cat(hy),
        torch.cat(cy),
        torch.cat(cells, -2) if wanted.cells else NOTHING,
    )


def _group(call: Call, group: int) -> Call:
    """The call of one group; its input is a view."""
    own = slice(group, group + 1)
    input = call.input if call.is_input_shared else call.input[..., own, :]
    layout = call.layout._replace(reverse=call.layout.reverse[own])
    options = call.options and call.options.of(own)
    return Call(input, call.weights.of(own), call.hx[own], call.cx[own], layout, options)


def _run_segments(run: Run, call: Call, wanted: Wanted) -> Results:
    is_packed, T = call.layout.batch_sizes is not None, call.T
    reverse = call.layout.reverse[0]
    y: list[Tensor] = []
    cells: list[Tensor] = []
    h, c = call.hx, call.cx
    for s in range(0, T, wanted.checkpoint_every):
        e = min(s + wanted.checkpoint_every, T)
        begin, end = (T - e, T - s) if reverse else (s, e)
        segment = partial(_run_segment, run, call, begin, end)
        y_part, h_part, c_part, cells_part = checkpoint(
            segment, h, c, use_reentrant=False, preserve_rng_state=False
        )
        # A segment of a PackedSequence contains only the rows that have steps in it.
        B = h_part.shape[1]
        h, c = (
            (torch.cat([part, state[:, B:]], 1) if is_packed else part)
            for part, state in ((h_part, h), (c_part, c))
        )
        y += [y_part] if wanted.y else []
        cells += [cells_part] if wanted.cells else []
    in_time = slice(None, None, -1) if reverse else slice(None)
    sequences = [torch.cat(parts[in_time]) if parts else NOTHING for parts in (y, cells)]
    return Results(sequences[0], h, c, sequences[1])


def _run_segment(
    run: Run, call: Call, begin: int, end: int, h: Tensor, c: Tensor
) -> tuple[Tensor, ...]:
    """The steps from ``begin`` to ``end`` from a state (G, B, P) and (G, B, H)."""
    reverse, lengths, batch_sizes, reset = call.layout
    options = call.options
    if batch_sizes is not None:
        first = int(batch_sizes[:begin].sum())
        batch_sizes = batch_sizes[begin:end]
        B = int(batch_sizes[0])
        rows = slice(first, first + int(batch_sizes.sum()))
        options = options and options.within(rows, B)
        layout = call.layout._replace(batch_sizes=batch_sizes)
        return run(Call(call.input[rows], call.weights, h[:, :B], c[:, :B], layout, options))[:4]
    if reset is not None:
        if reverse[0] and end < call.T:  # the mask of the step after the segment
            closed = reset[end] if lengths is None else reset[end] & (end < lengths)
            h, c = (torch.where(closed[:, None], 0.0, state) for state in (h, c))
        reset = reset[begin:end]
    if lengths is not None:
        lengths = (lengths - begin).clamp(0, end - begin)
    layout = call.layout._replace(lengths=lengths, reset=reset)
    options = options and options.within(slice(begin, end), h.shape[1])
    return run(Call(call.input[begin:end], call.weights, h, c, layout, options))[:4]
