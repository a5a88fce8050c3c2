"""Tensors as the compiled kernels take them: addresses and strides, and the memory they work in."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastlstm.call import Call, GroupWeights, OutputGradients, Saved, SequenceLayout

# A lower address may be an offset in no memory at all. Offsets are less than a terabyte.
_LOW_ADDRESS = 2**40


def is_there(tensor: Tensor) -> bool:
    """Whether the tensor's memory is there for certain."""
    address = tensor.data_ptr()
    return address > _LOW_ADDRESS or address != tensor.storage_offset() * tensor.element_size()


def materialized(name: str, tensor: Tensor) -> Tensor:
    """The tensor, or a copy if torch represents its sign, or that it is zero, by a flag only.

    Raises:
        RuntimeError: the memory was freed, as FSDP frees that of parameters. The address is then
            the offset in that memory.
    """
    if tensor.is_neg():
        return tensor.resolve_neg()
    if is_there(tensor) or tensor.numel() == 0:
        return tensor
    if tensor._is_zerotensor():
        return tensor.clone()
    if tensor.untyped_storage().data_ptr() == 0:
        raise RuntimeError(
            f"{name}: expected {tensor.numel()} numbers in memory, "
            f"got a storage of {tensor.untyped_storage().nbytes()} bytes: it was freed"
        )
    return tensor


def materialized_call(call: Call) -> Call:
    """The call with every tensor :func:`materialized`; nearly always the same object."""
    input, weights, hx, cx, layout, options = call
    tensors = [input, hx, cx]
    for parameter in weights:
        tensors += parameter
    tensors += [tensor for tensor in layout[1:] if tensor is not None]
    tensors += [] if options is None else [t for t in options[:-1] if t is not None]
    are_there = min(map(Tensor.data_ptr, tensors)) > _LOW_ADDRESS or all(map(is_there, tensors))
    if are_there and not any(map(Tensor.is_neg, tensors)):
        return call
    groups = [
        [materialized(f"{name}[{g}]", weight) for g, weight in enumerate(parameter)]
        for name, parameter in zip(weights._fields, weights, strict=True)
    ]
    about_rows = [
        None if tensor is None else materialized(name, tensor)
        for name, tensor in zip(layout._fields[1:], layout[1:], strict=True)
    ]
    return Call(
        materialized("input", input),
        GroupWeights(*groups),
        materialized("hx", hx),
        materialized("cx", cx),
        SequenceLayout(layout.reverse, *about_rows),
        options and options.map(materialized),
    )


def materialized_backward(
    call: Call, saved: Saved, grads: OutputGradients
) -> tuple[Call, Saved, OutputGradients]:
    """The arguments of a backward pass with every tensor :func:`materialized`."""
    y, reserve, checkpoint_every = saved
    names = (*grads._fields, "y", "reserve")
    tensors = [
        tensor
        if tensor is None or (tensor.data_ptr() > _LOW_ADDRESS and not tensor.is_neg())
        else materialized(name, tensor)
        for name, tensor in zip(names, (*grads, y, reserve), strict=True)
    ]
    y, reserve = tensors[4:]  # type: ignore[assignment]
    saved = Saved(y, reserve, checkpoint_every)
    return materialized_call(call), saved, OutputGradients(*tensors[:4])


def grid(parameter: Sequence[Tensor]) -> tuple[tuple[int, int], Tensor | None]:
    """One parameter of all groups as (address of group 0, elements to the next group).

    Two contiguous matrices nearly always lie on such a grid. Others are stacked, at the price of
    a copy: if they are strided, or their addresses unevenly spaced or no whole elements apart.

    Returns:
        The address and stride, zero without a parameter, and the owner of the memory, which must
        outlive the kernel.
    """
    if not parameter:
        return (0, 0), None
    first = parameter[0]
    step = parameter[1].data_ptr() - first.data_ptr() if len(parameter) > 1 else 0
    stride, rest = divmod(step, first.element_size())
    even = all(b.data_ptr() - a.data_ptr() == step for a, b in pairwise(parameter))
    if rest or not even or not all(weight.is_contiguous() for weight in parameter):
        first = torch.stack(tuple(parameter))
        stride = first.stride(0)
    return (first.data_ptr(), stride), first


def group_pointers(
    weights: GroupWeights,
) -> tuple[dict[str, Any], list[Tensor | None]]:
    """The :func:`grid` of every parameter by its name, and the owners of the memory."""
    pointers: dict[str, Any] = {}
    owners: list[Tensor | None] = []
    for name, parameter in zip(GroupWeights._fields, weights, strict=True):
        if not parameter:
            pointers[name] = (0, 0)
        elif len(parameter) == 1 and parameter[0].is_contiguous():  # the usual case
            pointers[name] = (parameter[0].data_ptr(), 0)
        else:
            pointers[name], owner = grid(parameter)
            owners.append(owner)
    return pointers, owners


def address(tensor: Tensor | None) -> int:
    """The address of the first element, or 0. The caller keeps the tensor alive."""
    return 0 if tensor is None else tensor.data_ptr()


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor, or a copy, whose last dimension is contiguous; the others keep any stride."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def outer_strides(tensor: Tensor | None, is_packed: bool = False) -> tuple[int, int, int]:
    """The strides of T, B and G in a tensor (T, B, G, n), or (T, B, n) that all groups share.

    The data of a PackedSequence are (N, G, n) or (N, n): the kernels know where each step begins.
    """
    if tensor is None:
        return 0, 0, 0
    strides = (0, *tensor.stride()) if is_packed else tensor.stride()
    return strides[0], strides[1], strides[2] if len(strides) == 4 else 0


def row_arguments(call: Call) -> tuple[int, dict[str, Any], Sequence[Tensor | None]]:
    """(T, the kernels' arguments about the rows, the owners of the memory).

    Lengths are clamped, whatever came: a kernel that trusts a wrong one writes past the end.
    """
    reverse, lengths, batch_sizes, reset = call.layout
    T = call.input.shape[0]
    if lengths is None and batch_sizes is None and reset is None:
        none = {"reverse": reverse, "lengths": 0, "by_length": 0, "first_row": 0, "reset": 0}
        return T, none, ()
    by_length = first_row = None
    if batch_sizes is not None:  # a PackedSequence's rows come longest first
        T, by_length = batch_sizes.shape[0], torch.arange(call.cx.shape[1], device="cpu")
        lengths = T - torch.searchsorted(batch_sizes.flip(0), by_length, right=True)
        first_row = batch_sizes.cumsum(0) - batch_sizes
    elif lengths is not None:
        lengths = lengths.to(torch.int64).clamp(0, T).contiguous()
        by_length = lengths.argsort(descending=True, stable=True)
    reset = None if reset is None else reset.contiguous()
    owners = [lengths, by_length, first_row, reset]
    names = ("lengths", "by_length", "first_row", "reset")
    return T, {"reverse": reverse} | dict(zip(names, map(address, owners), strict=True)), owners
