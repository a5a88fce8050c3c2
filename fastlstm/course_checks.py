"""Checks of what says how rows go through time: lengths, packed sequences, resets.

Exception types are those of ``nn.LSTM``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm import transforms

CHECKPOINT_EVERY = 128
"""What ``checkpoint_every="auto"`` means."""


def check_size(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """RuntimeError unless ``tensor`` has exactly that size."""
    if tuple(tensor.shape) != tuple(expected):
        raise RuntimeError(f"{name}: expected size {tuple(expected)}, got {tuple(tensor.shape)}")


def check_tensor(name: str, value: object, error: type[Exception] = AttributeError) -> None:
    """AttributeError for anything but a tensor: what nn.LSTM's own ``.dim()`` of it raises."""
    if not isinstance(value, Tensor):
        raise error(f"{name}: expected a Tensor, got {type(value).__name__}")


def can_read_values(tensor: Tensor) -> bool:
    """Whether Python may look at a tensor's values: not while a compiler or tracer runs.

    Nor while a CUDA graph is captured: any read from a GPU waits for it, which would end that with
    an error. On "meta" there are none.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    captured = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
    return not (traced or captured or tensor.is_meta) and type(tensor) is Tensor


def check_lengths(lengths: Tensor, T: int, B: int) -> None:
    """RuntimeError unless ``lengths`` is (B,) integers in 1..T."""
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise RuntimeError(f"lengths: expected integers, got {lengths.dtype}")
    check_size("lengths", lengths, (B,))
    if B and can_read_values(lengths):  # kernels clamp them into 0..T
        values = transforms.unwrapped(lengths)
        low, high = int(values.min()), int(values.max())
        if low < 1 or high > T:
            raise RuntimeError(f"lengths: expected integers in 1..{T}, got {low}..{high}")


def check_batch_sizes(batch_sizes: Tensor, rows: int) -> None:
    """RuntimeError unless ``batch_sizes`` are those of a PackedSequence with so many rows."""
    if batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes: expected device cpu, got {batch_sizes.device}")
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise RuntimeError(
            "batch_sizes: expected one dimension of torch.int64, "
            f"got {batch_sizes.dim()} of {batch_sizes.dtype}"
        )
    if batch_sizes.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if not can_read_values(batch_sizes):
        return
    if batch_sizes[-1] < 1 or (batch_sizes.diff() > 0).any():
        raise RuntimeError("batch_sizes: expected positive numbers, none above the one before it")
    if (total := int(batch_sizes.sum())) != rows:
        raise RuntimeError(f"batch_sizes: expected a sum of {rows}, the rows of data, got {total}")


def check_packed(input: PackedSequence) -> None:
    """A PackedSequence made or changed by hand: nn.LSTM reads past its data, or leaves some out.

    Raises:
        TypeError: batch_sizes that are no tensor.
        RuntimeError: anything else.
    """
    data, batch_sizes, *orders = input
    check_tensor("batch_sizes", batch_sizes, TypeError)
    check_batch_sizes(batch_sizes, data.shape[0])
    for name, order in zip(("sorted_indices", "unsorted_indices"), orders, strict=True):
        if order is not None:
            check_size(name, order, (int(batch_sizes[0]),))
            if order.dtype not in (torch.int64, torch.int32) or order.device != data.device:
                raise RuntimeError(
                    f"{name}: expected integers on {data.device}, "
                    f"got {order.dtype} on {order.device}"
                )


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


def check_reset(reset: Tensor, T: int, B: int) -> None:
    """RuntimeError unless ``reset`` is (T, B) booleans."""
    if reset.dtype != torch.bool:
        raise RuntimeError(f"reset: expected torch.bool, got {reset.dtype}")
    check_size("reset", reset, (T, B))
