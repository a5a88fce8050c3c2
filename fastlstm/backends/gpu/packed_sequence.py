"""PackedSequences for kernels that read padded batches: padded around a call, and packed again.

The indices are made on the device from the batch sizes; nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from fastlstm.call import Call

Function = Callable[..., tuple[Tensor, ...]]


class _Rows:
    """Where the N rows of a PackedSequence lie in a batch (T, B)."""

    def __init__(self, call: Call) -> None:
        batch_sizes, device = call.batch_sizes, call.input.device
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
        """(N, ...) to (T, B, ...), with some row's numbers past the length of another."""
        return rows.index_select(0, self.packed_row).unflatten(0, (self.T, self.B))

    def pack(self, batch: Tensor) -> Tensor:
        """(T, B, ...) to (N, ...)."""
        return batch.flatten(0, 1).index_select(0, self.padded_row)

    def padded(self, call: Call) -> Call:
        """The same call of a padded batch with lengths."""
        padded = self.pad(call.input)
        return call._replace(input=padded, lengths=self.lengths, batch_sizes=None)


def forward(function: Function) -> Function:
    """A backend's ``forward`` for any call, by way of its own for padded batches."""

    @wraps(function)
    def of_any_rows(*arguments: Any) -> tuple[Tensor, ...]:
        call, (train, return_all_cells) = Call._make(arguments[:-2]), arguments[-2:]
        if call.batch_sizes is None:
            return function(*arguments)
        rows = _Rows(call)
        y, hy, cy, cells, reserve = function(*rows.padded(call), train, return_all_cells)
        cells = rows.pack(cells) if return_all_cells else cells
        return rows.pack(y), hy, cy, cells, rows.pack(reserve) if train else reserve

    return of_any_rows


def backward(function: Function) -> Function:
    """A backend's ``backward`` for any call, by way of its own for padded batches."""

    @wraps(function)
    def of_any_rows(*arguments: Any) -> tuple[Tensor, ...]:
        *outputs, needs = arguments
        call = Call._make(outputs[6:])
        if call.batch_sizes is None:
            return function(*arguments)
        rows = _Rows(call)
        dy, dhy, dcy, dcells, y, reserve = outputs[:6]
        dy, dcells = (None if d is None else rows.pad(d) for d in (dy, dcells))
        # Past a row's length y is zero, and c what a kernel finds there that carries its first
        # state through: a reversed group's step before.
        y, reserve = rows.pad(y).masked_fill_(rows.past, 0.0), rows.pad(reserve)
        c = reserve[..., -y.shape[-1] :]
        c.copy_(torch.where(rows.past, call.cx.transpose(0, 1), c))
        sequences = (dy, dhy, dcy, dcells, y, reserve)
        dinput, *others = function(*sequences, *rows.padded(call), needs)
        return rows.pack(dinput) if needs[0] else dinput, *others

    return of_any_rows
