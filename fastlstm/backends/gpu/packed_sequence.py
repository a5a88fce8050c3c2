"""PackedSequences for kernels that read padded batches: padded before a call, packed after it.

The indices are computed on the device from the batch sizes, without waiting for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from fastlstm.call import Call, Gradients, Needs, OutputGradients, Results, Saved, Wanted
from fastlstm.options import STEPWISE


class _Rows:
    """The places of the N rows of a PackedSequence in a batch (T, B)."""

    def __init__(self, call: Call) -> None:
        batch_sizes, device = call.layout.batch_sizes, call.input.device
        assert batch_sizes is not None
        N, (self.T, self.B) = call.input.shape[0], (batch_sizes.shape[0], call.hx.shape[1])
        if device.type == "cuda":  # from pageable memory a copy would wait
            batch_sizes = batch_sizes.pin_memory()
        sizes = batch_sizes.to(device, non_blocking=True)
        ends = sizes.cumsum(0)
        first = ends - sizes
        row = torch.arange(self.B, device=device)
        there = row < sizes[:, None]
        self.lengths = there.sum(0)
        self.past = ~there[:, :, None, None]
        self.packed_row = torch.where(there, first[:, None] + row, 0).flatten()
        packed = torch.arange(N, device=device)
        step = torch.searchsorted(ends, packed, right=True)
        self.padded_row = step * self.B + packed - first[step]

    def pad(self, rows: Tensor) -> Tensor:
        """Turn (N, ...) into (T, B, ...). Past a row's length are numbers of an arbitrary row."""
        return rows.index_select(0, self.packed_row).unflatten(0, (self.T, self.B))

    def pack(self, batch: Tensor) -> Tensor:
        """(T, B, ...) to (N, ...)."""
        return batch.flatten(0, 1).index_select(0, self.padded_row)

    def padded(self, call: Call) -> Call:
        """The same call of a padded batch with lengths."""
        layout, options = call.layout._replace(lengths=self.lengths, batch_sizes=None), call.options
        if options is not None:
            options = options.map(lambda name, t: self.pad(t) if name in STEPWISE else t)
        return call._replace(input=self.pad(call.input), layout=layout, options=options)


def forward(function: Callable[[Call, Wanted], Results]) -> Callable[[Call, Wanted], Results]:
    """A backend's ``forward`` for any call, made of one for padded batches."""

    @wraps(function)
    def of_any_rows(call: Call, wanted: Wanted) -> Results:
        if call.layout.batch_sizes is None:
            return function(call, wanted)
        rows = _Rows(call)
        y, hy, cy, cells, reserve = function(rows.padded(call), wanted)
        cells = rows.pack(cells) if wanted.cells else cells
        return Results(rows.pack(y), hy, cy, cells, rows.pack(reserve) if wanted.train else reserve)

    return of_any_rows


Backward = Callable[[Call, Saved, OutputGradients, Needs], Gradients]


def backward(function: Backward) -> Backward:
    """A backend's ``backward`` for any call, made of one for padded batches."""

    @wraps(function)
    def of_any_rows(call: Call, saved: Saved, grads: OutputGradients, needs: Needs) -> Gradients:
        if call.layout.batch_sizes is None:
            return function(call, saved, grads, needs)
        rows = _Rows(call)
        dy, dcells = (None if d is None else rows.pad(d) for d in (grads.dy, grads.dcells))
        # Past a row's length the kernels expect y = 0, and c = cx in the reserve: a reversed group
        # starts there, and reads that c as the one before its row's last step.
        y, reserve = rows.pad(saved.y).masked_fill_(rows.past, 0.0), rows.pad(saved.reserve)
        H = y.shape[-1]
        c = reserve[..., 4 * H : 5 * H]
        c.copy_(torch.where(rows.past, call.cx.transpose(0, 1), c))
        padded = function(
            rows.padded(call), Saved(y, reserve), grads._replace(dy=dy, dcells=dcells), needs
        )
        return padded._replace(input=rows.pack(padded.input)) if needs.input else padded

    return of_any_rows
