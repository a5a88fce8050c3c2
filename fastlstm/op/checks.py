"""What the ops check whenever they run: anyone can call them, and kernels trust their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlstm.backends import select
from fastlstm.call import Call, problem_of
from fastlstm.checks import check_like, check_sequence
from fastlstm.layout_checks import check_size


def check_op(
    call: Call, return_all_cells: bool, checkpoint_every: int, return_sequence: bool, name: str
) -> None:
    """RuntimeError or ValueError for a call of either op that no kernel could run safely."""
    check_sequence(call.input, call.groups, call.hx, call.cx, call.course, length_values=False)
    backend = select.get(name)
    if not hasattr(backend, "forward"):
        raise ValueError(f"backend: expected one with kernels for the op, got {name!r}")
    if checkpoint_every < 0:
        raise ValueError(f"checkpoint_every: expected at least 0, got {checkpoint_every}")
    problem = problem_of(call, return_all_cells, checkpoint_every > 0)
    if reason := backend.supports(problem):
        raise ValueError(f"backend={name!r} cannot run this LSTM: {reason}")


def check_backward(
    grads: Sequence[Tensor | None],
    y: Tensor,
    reserve: Tensor,
    call: Call,
    needs: Sequence[bool],
    checkpoint_every: int,
) -> None:
    """RuntimeError or ValueError for what the backward op has beside the call: dy, dhy, dcy and
    dcells, what the forward op kept, and which gradients are asked for.
    """
    (G, B, P), H = call.hx.shape, call.cx.shape[2]
    rows = call.input.shape[: 1 if call.batch_sizes is not None else 2]
    sizes = {"dy": (*rows, G, P), "dhy": (G, B, P), "dcy": (G, B, H), "dcells": (*rows, G, H)}
    kept, dtype = (*rows, G, 5 * H), call.input.dtype
    if checkpoint_every:
        T = rows[0] if call.batch_sizes is None else call.batch_sizes.shape[0]
        kept = (-(-T // checkpoint_every), G, B, P + H)
        dtype = torch.promote_types(dtype, torch.float32)
    for name, tensor in zip(sizes, grads, strict=True):
        if tensor is not None:
            check_size(name, tensor, sizes[name])
            check_like(name, tensor, "input", call.input)
    if not (checkpoint_every and y.dim() == 1):  # else it was not kept, and is empty
        check_size("y", y, sizes["dy"])
    check_like("y", y, "input", call.input)
    check_size("reserve", reserve, kept)
    check_like("reserve", reserve, "input", call.input.new_empty(0, dtype=dtype))
    weight_ih, bias_ih, bias_hh, *others = call.groups
    there = (True, bool(weight_ih), bool(bias_ih or bias_hh), *map(bool, others))
    if len(needs) != len(there):
        raise ValueError(f"needs: expected {len(there)} flags, got {len(needs)}")
    names = ("input", "weight_ih", "bias", "weight_hh", "weight_ch", "weight_hr")
    for name, is_there, is_needed in zip(names, there, needs, strict=True):
        if is_needed and not is_there:
            raise ValueError(f"needs: expected False for {name}, which is not given; got True")
