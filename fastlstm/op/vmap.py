"""The rules by which ``torch.func.vmap`` runs the sequence op: nearly always one kernel call.

N calls become one call with a batch N times as large. If each of them has its own weights, or needs
its own gradients of the weights, they become one call with N times as many groups instead. (With
one group, weights that all calls share are not copied.) All groups of a call share lengths and
resets. So if each of the N calls has its own weights and its own lengths or resets, they run one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastlstm.call import Call, GroupWeights, OutputGradients, Saved
from fastlstm.op import schema

Op = Callable[..., tuple[Tensor, ...]]
Outputs = tuple[tuple[Tensor, ...], tuple[int | None, ...]]


def forward(op: Op, info: Any, in_dims: Sequence[Any], *row: Any) -> Outputs:
    """The rule of ``lstm_sequence``: its outputs, and where they have the vmapped dimension."""
    N = info.batch_size
    call, wanted, backend = schema.unflatten_forward(row)
    dims: Any = schema.unflatten_forward(in_dims)[0]
    to_groups = _any_weight(dims) or call.layout.batch_sizes is not None
    if to_groups and _rows_differ(dims):
        return one_by_one(op, info, in_dims, *row)
    folded = _fold_call(call, dims, N, to_groups, False)
    outputs = op(*schema.flatten_forward(folded, wanted, backend))
    sequence, state = _axes(call, to_groups)
    kept = _kept_axis(call, to_groups, wanted.checkpoint_every)
    return _unfold_all(outputs, (sequence, state, state, sequence, kept), N)


def backward(op: Op, info: Any, in_dims: Sequence[Any], *row: Any) -> Outputs:
    """The rule of ``lstm_sequence_backward``."""
    N = info.batch_size
    call, saved, grads, needs, backend = schema.unflatten_backward(row)
    of_row: Any = schema.unflatten_backward(in_dims)
    dims, saved_dims, grad_dims, *_ = of_row
    to_groups = any(needs[1:]) or _any_weight(dims) or call.layout.batch_sizes is not None
    if to_groups and _rows_differ(dims):
        return one_by_one(op, info, in_dims, *row)
    sequence, state = _axes(call, to_groups)
    axes = (sequence, state, state, sequence)
    folded_grads = OutputGradients(
        *[
            None if grad is None else _fold(grad, dim, N, axis)
            for grad, dim, axis in zip(grads, grad_dims, axes, strict=True)
        ]
    )
    y, reserve, checkpoint_every = saved
    if y.dim() - (saved_dims.y is not None) > 1:  # else it is empty: it was not kept
        y = _fold(y, saved_dims.y, N, sequence)
    kept = _kept_axis(call, to_groups, checkpoint_every)
    reserve = _fold(reserve, saved_dims.reserve, N, kept)
    folded = _fold_call(call, dims, N, to_groups, needs[0])
    folded_saved = Saved(y, reserve, checkpoint_every)
    outputs, out_dims = _unfold_all(
        op(*schema.flatten_backward(folded, folded_saved, folded_grads, needs, backend)),
        (sequence, 0, 0, 0, 0, 0, state, state),
        N,
    )
    if to_groups and needs[0] and _is_shared(call, dims):
        outputs = (outputs[0].sum(sequence + 1), *outputs[1:])
    return outputs, out_dims


def _any_weight(dims: Any) -> bool:
    return any(dim is not None for parameter in dims.weights for dim in parameter)


def _rows_differ(dims: Any) -> bool:
    return dims.layout.lengths is not None or dims.layout.reset is not None


def _is_shared(call: Call, dims: Any) -> bool:
    """Whether all groups of each call read the same x: (T, B, I) or (rows, I)."""
    dim = call.input.dim() - (dims.input is not None)
    is_packed = call.layout.batch_sizes is not None
    return bool(call.weights.weight_ih) and dim == (2 if is_packed else 3)


def _axes(call: Call, to_groups: bool) -> tuple[int, int]:
    """The dimensions of sequences (T, B, G, n) and states (G, B, n) that grow N times as large."""
    if not to_groups:
        return 1, 1
    return (1 if call.layout.batch_sizes is not None else 2), 0


def _kept_axis(call: Call, to_groups: bool, checkpoint_every: int) -> int:
    """The dimension of the reserve, a sequence, or of checkpoints (n, G, B, P + H), that grows."""
    sequence, state = _axes(call, to_groups)
    return state + 1 if checkpoint_every else sequence


def _fold_call(call: Call, dims: Any, N: int, to_groups: bool, needs_dinput: bool) -> Call:
    """N calls as one; with ``needs_dinput`` none reads the same memory of an input as another."""
    sequence, state = _axes(call, to_groups)
    input, weights, hx, cx, layout, _ = call
    hx, cx = _fold(hx, dims.hx, N, state), _fold(cx, dims.cx, N, state)
    if not to_groups:
        lengths, reset = layout.lengths, layout.reset
        layout = layout._replace(
            lengths=None if lengths is None else _fold(lengths, dims.layout.lengths, N, 0),
            reset=None if reset is None else _fold(reset, dims.layout.reset, N, 1),
        )
        return Call(_fold(input, dims.input, N, 1), weights, hx, cx, layout)
    if not _is_shared(call, dims):
        input = _fold(input, dims.input, N, sequence)
    elif needs_dinput or dims.input is not None:
        x = _front(input, dims.input, N).unsqueeze(-2)
        x = x.expand(*x.shape[:-2], len(weights.weight_hh), x.shape[-1])
        input = _fold(x, 0, N, sequence)
    groups = []
    for parameter, where in zip(weights, dims.weights, strict=True):
        each = [
            [weight] * N if dim is None else weight.unbind(dim)
            for weight, dim in zip(parameter, where, strict=True)
        ]
        groups.append([of_calls[n] for n in range(N) for of_calls in each])
    layout = layout._replace(reverse=list(layout.reverse) * N)
    return Call(input, GroupWeights(*groups), hx, cx, layout)


def _front(tensor: Tensor, dim: int | None, N: int) -> Tensor:
    """The tensor with the vmapped dimension first."""
    return tensor.expand(N, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold(tensor: Tensor, dim: int | None, N: int, axis: int) -> Tensor:
    """The tensor with the vmapped dimension as the slower part of ``axis``; a view if possible."""
    return _front(tensor, dim, N).movedim(0, axis).flatten(axis, axis + 1)


def _unfold_all(tensors: Sequence[Tensor], axes: Sequence[int], N: int) -> Outputs:
    """Each tensor with the vmapped dimension again, but empty ones, which were not asked for."""
    there = [tensor.dim() > 1 for tensor in tensors]
    unfolded = (
        tensor.unflatten(axis, (N, tensor.shape[axis] // N)) if has else tensor
        for tensor, axis, has in zip(tensors, axes, there, strict=True)
    )
    dims = (axis if has else None for axis, has in zip(axes, there, strict=True))
    return tuple(unfolded), tuple(dims)


def one_by_one(op: Op, info: Any, in_dims: Sequence[Any], *args: Any) -> Outputs:
    """The results of N calls, stacked."""
    N = info.batch_size
    leaves, spec = pytree.tree_flatten(args)
    dims = pytree.tree_leaves(tuple(in_dims))
    results = []
    for n in range(N):
        own = [
            leaf if dim is None else leaf.select(dim, n)
            for leaf, dim in zip(leaves, dims, strict=True)
        ]
        results.append(op(*pytree.tree_unflatten(own, spec)))
    outputs = tuple(torch.stack(tensors) for tensors in zip(*results, strict=True))
    return outputs, (0,) * len(outputs)
