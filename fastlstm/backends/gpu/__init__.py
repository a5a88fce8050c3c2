"""What the backends for NVIDIA GPUs, ``cuda`` and ``triton``, have in common."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CAPABILITY = (8, 0)  # the oldest with bfloat16, asynchronous copies and 99 KiB a block


def capability() -> tuple[int, int]:
    """Of the current GPU."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return properties.major, properties.minor


def refusal(found: tuple[int, int]) -> str | None:
    """None, or why the kernels of neither backend run on a GPU of that compute capability."""
    if torch.version.hip is not None:
        return "was written for NVIDIA GPUs, not for ROCm"
    if found < CAPABILITY:
        return f"needs compute capability 8.0 or later, not {found[0]}.{found[1]}"
    return None


def precision() -> str:
    """Of float32 products in kernels: "tf32" where ``nn.LSTM`` may use it, else "tf32x3".

    That is cuDNN's setting, and TF32 unless told otherwise. "tf32x3" adds the products of what
    rounding to TF32 has left over, which is nearly float32.
    """
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    if rnn is not None:  # since torch 2.9; the older name raises where the two are mixed
        return "tf32" if rnn.fp32_precision == "tf32" else "tf32x3"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def sums(dtype: torch.dtype) -> torch.dtype:
    """What is summed up in, and what c is kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def stack(weights: Sequence[Tensor]) -> Tensor | None:
    """One parameter of all groups, contiguous, the group first; a copy if there are several."""
    if not weights:
        return None
    return torch.stack(tuple(weights)) if len(weights) > 1 else weights[0].contiguous()[None]


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The same numbers without gaps between them."""
    return None if tensor is None else tensor.contiguous()
