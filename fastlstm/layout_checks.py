"""Checks of how rows go through time: lengths, packed sequences, resets.

Exception types are those of ``nn.LSTM``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import tracing
from fastlstm.call import SequenceLayout
from fastlstm.tracing import is_recorded

CHECKPOINT_EVERY = 128
"""The number of steps that ``checkpoint_every="auto"`` stands for."""


def check_size(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """RuntimeError unless ``tensor`` has exactly that size."""
    if tuple(tensor.shape) != tuple(expected):
        raise RuntimeError(f"{name}: expected size {tuple(expected)}, got {tuple(tensor.shape)}")


def check_tensor(name: str, value: object, error: type[Exception] = AttributeError) -> None:
    """AttributeError for anything but a tensor: what nn.LSTM's own ``.dim()`` of it raises."""
    if not isinstance(value, Tensor):
        raise error(f"{name}: expected a Tensor, got {type(value).__name__}")


def check_dense(name: str, value: Tensor) -> None:
    """RuntimeError for a nested or sparse tensor."""
    if value.is_nested or value.layout is not torch.strided:
        kind = "a nested tensor" if value.is_nested else f"a tensor in layout {value.layout}"
        raise RuntimeError(
            f"{name}: expected a dense tensor, got {kind}; rows of several lengths are a "
            "PackedSequence, or a padded batch with lengths"
        )


def can_read_values(tensor: Tensor) -> bool:
    """Whether Python may look at a tensor's values: not while a compiler or tracer runs.

    Nor while a CUDA graph is captured: any read from a GPU waits for it, which would end that with
    an error. On "meta" there are none.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    captured = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (traced or captured or tensor.is_meta) and type(tensor) is Tensor


def tensor_of(name: str, value: Any) -> Tensor:
    """A tensor of a list, tuple or array, or the tensor itself; TypeError for anything else."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise TypeError(
            f"{name}: expected a Tensor, a list or an array, got {type(value).__name__}"
        )
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers that fit into a tensor, got: {error}") from None


def check_layout(
    layout: SequenceLayout, input: Tensor, length_values: bool = True
) -> tuple[int, SequenceLayout]:
    """Check how the rows of ``input``, time first, go through time.

    Returns:
        B, and the layout whose tensors are on the input's device and, where a program is recorded,
        are checked again when the program runs.
    """
    _, lengths, batch_sizes, reset = layout
    if batch_sizes is not None:
        if lengths is not None or reset is not None:
            raise ValueError("lengths, reset: expected None beside batch_sizes")
        check_tensor("batch_sizes", batch_sizes, TypeError)
        checked = check_batch_sizes(batch_sizes, input.shape[0])
        return int(batch_sizes[0]), layout._replace(batch_sizes=checked)
    T, B = input.shape[:2]
    if lengths is not None:
        lengths = check_lengths(tensor_of("lengths", lengths), T, B, values=length_values)
        lengths = lengths.to(input.device, torch.int64)
    if reset is not None:
        reset = check_reset(tensor_of("reset", reset), T, B).to(input.device)
    return B, layout._replace(lengths=lengths, reset=reset)


def check_lengths(lengths: Tensor, T: int, B: int, *, values: bool = True) -> Tensor:
    """RuntimeError unless ``lengths`` are (B,) integers in 1..T, or any without ``values``.

    Returns:
        The lengths. Where a program is recorded it is their copy, which the program makes, after a
        check of the values, whenever it runs.
    """
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise RuntimeError(f"lengths: expected integers, got {lengths.dtype}")
    check_size("lengths", lengths, (B,))
    if not values:
        return lengths
    if is_recorded() and not lengths.is_meta:
        return torch.ops.fastlstm.checked_lengths(lengths, _recorded_size(T))
    if B and can_read_values(lengths):  # while a CUDA graph is captured kernels clamp them only
        _check_length_values(tracing.unwrapped(lengths), T)
    return lengths


def _check_length_values(lengths: Tensor, T: int) -> None:
    low, high = (int(bound) for bound in lengths.to(torch.int64).aminmax())  # uint16 has no min
    if low < 1 or high > T:
        raise RuntimeError(f"lengths: expected integers in 1..{T}, got {low}..{high}")


def check_batch_sizes(batch_sizes: Tensor, rows: int) -> Tensor:
    """RuntimeError unless ``batch_sizes`` are those of a PackedSequence with so many rows.

    Returns:
        The batch sizes, or a copy, as :func:`check_lengths` does.
    """
    if batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes: expected device cpu, got {batch_sizes.device}")
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise RuntimeError(
            "batch_sizes: expected one dimension of torch.int64, "
            f"got {batch_sizes.dim()} of {batch_sizes.dtype}"
        )
    if batch_sizes.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if is_recorded() and not batch_sizes.is_meta:
        return torch.ops.fastlstm.checked_batch_sizes(batch_sizes, _recorded_size(rows))
    if can_read_values(batch_sizes):
        _check_batch_size_values(batch_sizes, rows)
    return batch_sizes


def _check_batch_size_values(batch_sizes: Tensor, rows: int) -> None:
    if batch_sizes[-1] < 1 or (batch_sizes.diff() > 0).any():
        raise RuntimeError("batch_sizes: expected positive numbers, none above the one before it")
    if (total := int(batch_sizes.sum())) != rows:
        raise RuntimeError(f"batch_sizes: expected a sum of {rows}, the rows of data, got {total}")


def _recorded_size(size: int | Tensor) -> Tensor:
    """A size as a tensor: torch.jit.trace would make a constant of a number given to an op."""
    if isinstance(size, Tensor):  # as it is while torch.jit.trace runs
        return size
    return torch.full((), size, dtype=torch.int64, device="cpu")


torch.library.define("fastlstm::checked_lengths", "(Tensor lengths, Tensor T) -> Tensor")
torch.library.define("fastlstm::checked_batch_sizes", "(Tensor batch_sizes, Tensor rows) -> Tensor")


@torch.library.impl("fastlstm::checked_lengths", "default")
def _checked_lengths(lengths: Tensor, T: Tensor) -> Tensor:
    if lengths.numel():
        _check_length_values(lengths, int(T))
    return lengths.clone()


@torch.library.impl("fastlstm::checked_batch_sizes", "default")
def _checked_batch_sizes(batch_sizes: Tensor, rows: Tensor) -> Tensor:
    _check_batch_size_values(batch_sizes, int(rows))
    return batch_sizes.clone()


for _name in ("fastlstm::checked_lengths", "fastlstm::checked_batch_sizes"):
    torch.library.register_fake(_name, lambda tensor, limit: torch.empty_like(tensor))


@partial(torch.library.register_vmap, "fastlstm::checked_lengths")
def _vmap_checked_lengths(
    info: Any, in_dims: Any, lengths: Tensor, T: Tensor
) -> tuple[Tensor, Any]:
    return torch.ops.fastlstm.checked_lengths(lengths, T), in_dims[0]


def check_packed_sequence(input: PackedSequence) -> Tensor:
    """Check a PackedSequence, whose fields may be wrong if it was made or changed by hand.

    Returns:
        Its batch sizes, as :func:`check_batch_sizes` does.

    Raises:
        TypeError: batch_sizes that are no tensor.
        RuntimeError: anything else.
    """
    data, batch_sizes, *orders = input
    check_tensor("batch_sizes", batch_sizes, TypeError)
    checked = check_batch_sizes(batch_sizes, data.shape[0])
    for name, order in zip(("sorted_indices", "unsorted_indices"), orders, strict=True):
        if order is not None:
            check_size(name, order, (int(batch_sizes[0]),))
            if order.dtype not in (torch.int64, torch.int32) or order.device != data.device:
                raise RuntimeError(
                    f"{name}: expected integers on {data.device}, "
                    f"got {order.dtype} on {order.device}"
                )
    return checked


def steps_between_checkpoints(checkpoint_every: int | str | None) -> int:
    """The argument as the op takes it: k, or 0 for None, which keeps every step.

    Raises:
        TypeError: not None, an integer or a word.
        ValueError: below 1, or a word other than "auto".
    """
    if checkpoint_every is None:
        return 0
    if checkpoint_every == "auto":
        return CHECKPOINT_EVERY
    expected = 'checkpoint_every: expected None, "auto" or an integer of at least 1'
    if not isinstance(checkpoint_every, (int, str)) or isinstance(checkpoint_every, bool):
        raise TypeError(f"{expected}, got {type(checkpoint_every).__name__}")
    if isinstance(checkpoint_every, str) or checkpoint_every < 1:
        raise ValueError(f"{expected}, got {checkpoint_every!r}")
    return checkpoint_every


def check_reset(reset: Tensor, T: int, B: int) -> Tensor:
    """``reset``; RuntimeError unless it is (T, B) booleans."""
    if reset.dtype != torch.bool:
        raise RuntimeError(f"reset: expected torch.bool, got {reset.dtype}")
    check_size("reset", reset, (T, B))
    return reset
