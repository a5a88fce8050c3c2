"""``segmented_loss``: exact gradients of a loss over a sequence that need not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

State = tuple[Tensor, Tensor]


def segmented_loss(
    lstm: nn.Module,
    x: Any,
    head: Callable[[Tensor, int], Tensor],
    *,
    segment: int = 1024,
    hx: State | None = None,
) -> tuple[Tensor, State]:
    """Sum a loss over the segments of a sequence, of which one at a time is in memory.

    ``loss.backward()`` goes back through the whole sequence: the gradients are those of the head
    on ``lstm(x)``, not those of truncated backpropagation. Between the passes only the states
    at the borders of the segments are kept. The backward pass reads each segment of x again, the
    last one first, and runs the LSTM and the head on it again, with the same state of the random
    number generators. Forward and backward together take about 1.3 times as long as with everything
    in memory. Sums over time are added in another order, so the last bits may differ.

    Args:
        lstm: a :class:`fastlstm.LSTM`, or a module that is called like one; not bidirectional,
            which would need the end of x at its start.
        x: (T, B, I), (B, T, I) if ``lstm.batch_first``, or (T, I): a tensor, or anything with a
            shape that gives arrays when sliced along time, such as a ``numpy.memmap``. Each segment
            is cast to the dtype of the weights. A tensor may require gradients.
        head: called with a segment's output, in the layout of the LSTM's, and the number of its
            first step; returns that segment's part of the loss, a tensor of one number. It is
            called twice for each segment, so it should depend on nothing that changes in between.
        segment: steps in a segment; the last one may be shorter. A segment takes as much memory as
            a training step on it; with ``checkpoint_every`` in the LSTM, less. Default: 1024.
        hx: (h_0, c_0), as the LSTM takes it. Default: zeros, or the LSTM's learnt initial state.

    Returns:
        The loss, and (h_n, c_n) at the end of x, as the LSTM returns it.

    Raises:
        RuntimeError: a part of the loss that is no tensor of one number, or an empty x.
        ValueError: a bidirectional LSTM, or a segment below 1.

    Example:
        >>> frames = torch.randn(101, 2, 3).numpy()  # or numpy.load("frames.npy", mmap_mode="r")
        >>> lstm = fastlstm.LSTM(3, 3)
        >>> def head(output, first):  # the output predicts the next frame
        ...     target = torch.tensor(frames[first + 1 : first + 1 + len(output)])
        ...     return torch.nn.functional.mse_loss(output, target, reduction="sum")
        >>> loss, _ = fastlstm.segmented_loss(lstm, frames[:-1], head, segment=20)
        >>> loss.backward()
    """
    if getattr(lstm, "bidirectional", False):
        raise ValueError("lstm: expected one direction, got a bidirectional LSTM")
    if segment < 1:
        raise ValueError(f"segment: expected at least 1, got {segment}")
    time = 1 if getattr(lstm, "batch_first", False) and len(x.shape) == 3 else 0
    T = x.shape[time]
    if T == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    # One view for each: a slice's gradient would be as long as x.
    views = x.split(segment, time) if isinstance(x, Tensor) else None
    weight = next(lstm.parameters())

    def run(first: int, *state: Tensor) -> tuple[Tensor, ...]:
        if views is not None:
            part = views[first // segment]
        else:
            steps = slice(first, first + segment)
            part = torch.from_numpy(np.array(x[:, steps] if time else x[steps]))
        output, last = lstm(part.to(weight.device, weight.dtype), state or None)
        loss = head(output, first)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise RuntimeError(f"head: expected a tensor of one number, got {got}")
        return loss.reshape(()), *last

    state = () if hx is None else tuple(hx)
    losses = []
    for first in range(0, T, segment):
        loss, *state = checkpoint(run, first, *state, use_reentrant=False)
        losses.append(loss)
    return torch.stack(losses).sum(), (state[0], state[1])
