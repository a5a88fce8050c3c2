"""What ``torch.func.vmap`` makes of the sequence op: still one call of a kernel, nearly always.

N calls become one whose batch is N times as large. Where each of the N has weights of its own, or
is to have gradients of the weights of its own, one with N times as many groups; weights that are
the same for all are not copied, if there is one group. Rows of N groups share their lengths and
resets, so where the N have their own in that case too, they run one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fastlstm.call import Call

_FIELDS = len(Call._fields)

Op = Callable[..., tuple[Tensor, ...]]
Outputs = tuple[tuple[Tensor, ...], tuple[int | None, ...]]


def forward(op: Op, info: Any, in_dims: Sequence[Any], *args: Any) -> Outputs:
    """The rule of ``lstm_sequence``: outputs and where they have the vmapped dimension."""
    N, call = info.batch_size, Call._make(args[:_FIELDS])
    dims: Any = Call._make(in_dims[:_FIELDS])
    to_groups = _any_weight(dims) or call.batch_sizes is not None
    if to_groups and _rows_differ(dims):
        return _one_by_one(op, N, in_dims, args)
    outputs = op(*_fold_call(call, dims, N, to_groups, False), *args[_FIELDS:])
    sequence, state = _axes(call, to_groups)
    kept = _kept_axis(call, to_groups, checkpoint_every=args[_FIELDS + 2])
    return _unfold_all(outputs, (sequence, state, state, sequence, kept), N)


def backward(op: Op, info: Any, in_dims: Sequence[Any], *args: Any) -> Outputs:
    """The rule of ``lstm_sequence_backward``."""
    N, (*inputs, needs, checkpoint_every, backend) = info.batch_size, args
    call = Call._make(inputs[6:])
    dims: Any = Call._make(in_dims[6:-3])
    to_groups = any(needs[1:]) or _any_weight(dims) or call.batch_sizes is not None
    if to_groups and _rows_differ(dims):
        return _one_by_one(op, N, in_dims, args)
    sequence, state = _axes(call, to_groups)
    axes = (sequence, state, state, sequence)
    *grads, y, reserve = inputs[:6]
    *grad_dims, y_dim, reserve_dim = in_dims[:6]
    grads = [
        None if grad is None else _fold(grad, dim, N, axis)
        for grad, dim, axis in zip(grads, grad_dims, axes, strict=True)
    ]
    if y.dim() - (y_dim is not None) > 1:  # else it is empty: it was not kept
        y = _fold(y, y_dim, N, sequence)
    reserve = _fold(reserve, reserve_dim, N, _kept_axis(call, to_groups, checkpoint_every))
    folded = _fold_call(call, dims, N, to_groups, needs[0])
    outputs, out_dims = _unfold_all(
        op(*grads, y, reserve, *folded, needs, checkpoint_every, backend),
        (sequence, 0, 0, 0, 0, 0, state, state),
        N,
    )
    if to_groups and needs[0] and _is_shared(call, dims):
        outputs = (outputs[0].sum(sequence + 1), *outputs[1:])
    return outputs, out_dims


def _any_weight(dims: Any) -> bool:
    return any(dim is not None for group in dims.groups for dim in group)


def _rows_differ(dims: Any) -> bool:
    return dims.lengths is not None or dims.reset is not None


def _is_shared(call: Call, dims: Any) -> bool:
    """Whether all groups of each call read the same x: (T, B, I) or (rows, I)."""
    dim = call.input.dim() - (dims.input is not None)
    return bool(call.weight_ih) and dim == (2 if call.batch_sizes is not None else 3)


def _axes(call: Call, to_groups: bool) -> tuple[int, int]:
    """What the vmapped dimension is folded into, of sequences (T, B, G, n) and states (G, B, n)."""
    if not to_groups:
        return 1, 1
    return (1 if call.batch_sizes is not None else 2), 0


def _kept_axis(call: Call, to_groups: bool, checkpoint_every: int) -> int:
    """The same of the reserve, which is a sequence, or of checkpointed states (n, G, B, P + H)."""
    sequence, state = _axes(call, to_groups)
    return state + 1 if checkpoint_every else sequence


def _fold_call(call: Call, dims: Any, N: int, to_groups: bool, needs_dinput: bool) -> Call:
    """N calls as one; with ``needs_dinput`` none reads the same memory of an input as another."""
    sequence, state = _axes(call, to_groups)
    input, input_dim = call.input, dims.input
    hx, cx = _fold(call.hx, dims.hx, N, state), _fold(call.cx, dims.cx, N, state)
    if not to_groups:
        lengths = None if call.lengths is None else _fold(call.lengths, dims.lengths, N, 0)
        reset = None if call.reset is None else _fold(call.reset, dims.reset, N, 1)
        input = _fold(input, input_dim, N, 1)
        return call._replace(input=input, hx=hx, cx=cx, lengths=lengths, reset=reset)
    if not _is_shared(call, dims):
        input = _fold(input, input_dim, N, sequence)
    elif needs_dinput or input_dim is not None:
        x = _front(input, input_dim, N).unsqueeze(-2)
        x = x.expand(*x.shape[:-2], len(call.weight_hh), x.shape[-1])
        input = _fold(x, 0, N, sequence)
    groups = []
    for group, where in zip(call.groups, dims.groups, strict=True):
        each = [
            [weight] * N if dim is None else weight.unbind(dim)
            for weight, dim in zip(group, where, strict=True)
        ]
        groups.append([weights[n] for n in range(N) for weights in each])
    return Call._make((input, *groups, hx, cx, list(call.reverse) * N, *call.course[1:]))


def _front(tensor: Tensor, dim: int | None, N: int) -> Tensor:
    """With the vmapped dimension first."""
    return tensor.expand(N, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _fold(tensor: Tensor, dim: int | None, N: int, axis: int) -> Tensor:
    """With the vmapped dimension as the slower part of ``axis``; a view where strides allow."""
    return _front(tensor, dim, N).movedim(0, axis).flatten(axis, axis + 1)


def _unfold_all(tensors: Sequence[Tensor], axes: Sequence[int], N: int) -> Outputs:
    """Each with the vmapped dimension again; what was not asked for is empty and has none."""
    there = [tensor.dim() > 1 for tensor in tensors]
    unfolded = (
        tensor.unflatten(axis, (N, tensor.shape[axis] // N)) if has else tensor
        for tensor, axis, has in zip(tensors, axes, there, strict=True)
    )
    dims = (axis if has else None for axis, has in zip(axes, there, strict=True))
    return tuple(unfolded), tuple(dims)


def _one_by_one(op: Op, N: int, in_dims: Sequence[Any], args: Sequence[Any]) -> Outputs:
    """N calls."""
    leaves, spec = pytree.tree_flatten(tuple(args))
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
