"""Tensors as the compiled kernels take them: addresses and strides, and the memory they work in."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastlstm.call import Call

# A larger workspace is given back after the call. The system clears fresh memory page by page: of
# 36 MB that took 10 ms, as long as the rest of that call.
_KEPT_BYTES = 256 * 2**20


def plain(name: str, tensor: Tensor) -> Tensor:
    """The same numbers, in memory as they are: torch may keep a sign, or zeros, in a flag.

    Raises:
        RuntimeError: the memory was freed, as FSDP frees that of parameters. Its address is then 0,
            which kernels take for "not given".
    """
    if tensor.is_neg():
        return tensor.resolve_neg()
    if tensor.data_ptr() == 0 and tensor.numel() > 0:
        if tensor._is_zerotensor():
            return tensor.clone()
        raise RuntimeError(
            f"{name}: expected {tensor.numel()} numbers in memory, "
            f"got a storage of {tensor.untyped_storage().nbytes()} bytes: it was freed"
        )
    return tensor


def plain_call(call: Call) -> Call:
    """The call with every tensor made :func:`plain`; nearly always the same object."""
    tensors = call.tensors
    tensors += [tensor for tensor in call[-3:] if tensor is not None]
    if all(map(Tensor.data_ptr, tensors)) and not any(map(Tensor.is_neg, tensors)):
        return call
    changed: dict[str, Any] = {
        name: [plain(f"{name}[{g}]", weight) for g, weight in enumerate(group)]
        for name, group in zip(call._fields[1:7], call.groups, strict=True)
    }
    for name in ("input", "hx", "cx", "lengths", "batch_sizes", "reset"):
        tensor = getattr(call, name)
        changed[name] = None if tensor is None else plain(name, tensor)
    return call._replace(**changed)


def grid(weights: Sequence[Tensor]) -> tuple[tuple[int, int], Tensor | None]:
    """One parameter of all groups: ((group 0's address, elements to the next group's), owner).

    Two contiguous matrices nearly always lie on such a grid. Others are stacked, at the price of
    a copy: if they are strided, or their addresses unevenly spaced or no whole elements apart. The
    owner of the memory must outlive the kernel.
    """
    if not weights:
        return (0, 0), None
    first = weights[0]
    if len(weights) == 1 and first.is_contiguous():  # 5 us less in a call of 60
        return (first.data_ptr(), 0), first
    step = weights[1].data_ptr() - first.data_ptr() if len(weights) > 1 else 0
    size = first.element_size()
    even = all(b.data_ptr() - a.data_ptr() == step for a, b in pairwise(weights))
    if step % size or not even or not all(w.is_contiguous() for w in weights):
        first = torch.stack(tuple(weights))
        step = first.stride(0) * size
    return (first.data_ptr(), step // size), first


def address(tensor: Tensor | None) -> int:
    """Of the first element, or null. Who calls keeps the tensor alive."""
    return 0 if tensor is None else tensor.data_ptr()


def unit_stride(tensor: Tensor) -> Tensor:
    """With neighbours side by side in the last dimension; the others may have any stride."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def outer_strides(tensor: Tensor | None, is_packed: bool) -> tuple[int, int, int]:
    """Of T, B and G in a tensor (T, B, G, n), or (T, B, n) that all groups share.

    Packed rows are (N, G, n) or (N, n): the kernels know where each step begins.
    """
    if tensor is None:
        return 0, 0, 0
    strides = (0, *tensor.stride()) if is_packed else tensor.stride()
    return strides[0], strides[1], strides[2] if len(strides) == 4 else 0


def allocate(size: int) -> Tensor:
    """Memory of the CPU, whatever the user's default device is."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class _Scratch(threading.local):
    """The workspace that a thread keeps for its next call."""

    memory = allocate(0)


_scratch = _Scratch()


def workspace(size: int) -> Tensor:
    """At least ``size`` bytes, with anything in them."""
    if size > _KEPT_BYTES:
        return allocate(size)
    if _scratch.memory.numel() < size:
        _scratch.memory = allocate(size)
    return _scratch.memory


def about_rows(
    T: int, B: int, lengths: Tensor | None, batch_sizes: Tensor | None, reset: Tensor | None
) -> tuple[int, dict[str, Any], list[Tensor | None]]:
    """(T, the kernels' arguments about the rows, the owners of the memory).

    Lengths are clamped, whatever came: a kernel that trusts a wrong one writes past the end.
    """
    by_length = first_row = None
    if batch_sizes is not None:  # a PackedSequence's rows come longest first
        T, by_length = batch_sizes.shape[0], torch.arange(B, device="cpu")
        lengths = T - torch.searchsorted(batch_sizes.flip(0), by_length, right=True)
        first_row = batch_sizes.cumsum(0) - batch_sizes
    elif lengths is not None:
        lengths = lengths.to(torch.int64).clamp(0, T).contiguous()
        by_length = lengths.argsort(descending=True)
    reset = None if reset is None else reset.contiguous()
    owners = [lengths, by_length, first_row, reset]
    names = ("lengths", "by_length", "first_row", "reset")
    return T, dict(zip(names, map(address, owners), strict=True)), owners
