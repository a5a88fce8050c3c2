"""Functions that the backends for NVIDIA GPUs, ``cuda`` and ``triton``, share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlstm.backends import pointers
from fastlstm.call import Call, Gradients, Needs
from fastlstm.options import STEPWISE
from fastlstm.problem import Problem

CAPABILITY = (8, 0)  # the oldest with bfloat16, asynchronous copies and 99 KiB a block


def number(problem: Problem) -> int:
    """The number of the GPU that a problem is about; 0 on other devices."""
    if problem.device != "cuda":
        return 0
    return torch.cuda.current_device() if problem.number is None else problem.number


def is_capturing(device: torch.device) -> bool:
    """Whether what is launched now becomes part of a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def capability(number: int) -> tuple[int, int]:
    """The compute capability of the GPU of that number."""
    properties = torch.cuda.get_device_properties(number)
    return properties.major, properties.minor


def kind(number: int) -> tuple[str, int]:
    """The name of the GPU of that number, and its multiprocessors: the key of measurements.

    A MIG slice has fewer multiprocessors than its whole GPU, and GPUs of one compute capability,
    such as H100 and H200, differ in memory.
    """
    properties = torch.cuda.get_device_properties(number)
    return properties.name, properties.multi_processor_count


def why_not(found: tuple[int, int]) -> str | None:
    """Why no kernels here run on a GPU of that compute capability; None if they do."""
    if torch.version.hip is not None:
        return "was written for NVIDIA GPUs, not for ROCm"
    if found < CAPABILITY:
        return f"needs compute capability 8.0 or later, not {found[0]}.{found[1]}"
    return None


def precision() -> str:
    """The precision of float32 products in kernels: "tf32" where ``nn.LSTM`` uses it, or "tf32x3".

    ``nn.LSTM`` follows cuDNN's setting, whose default is TF32. "tf32x3" adds the products of the
    remainders that rounding to TF32 leaves, and is nearly as exact as float32.
    """
    rnn = getattr(torch.backends.cudnn, "rnn", None)
    if rnn is not None:  # since torch 2.9; the older name raises where the two are mixed
        return "tf32" if rnn.fp32_precision == "tf32" else "tf32x3"
    return "tf32" if torch.backends.cudnn.allow_tf32 else "tf32x3"


def sums(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which kernels add up, and keep c."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def stack(weights: Sequence[Tensor]) -> Tensor | None:
    """One parameter of all groups, contiguous, the group first; a copy if there are several."""
    if not weights:
        return None
    return torch.stack(tuple(weights)) if len(weights) > 1 else weights[0].contiguous()[None]


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The same numbers without gaps between them."""
    return None if tensor is None else tensor.contiguous()


def has_norm(call: Call) -> bool:
    """Whether the cells of a call have layer norms."""
    return call.options is not None and call.options.norm_hh is not None


def total(summands: Tensor | None, like: Tensor) -> Tensor:
    """The gradient that those of the tiles add up to; empty if there are none."""
    return like.new_empty(0) if summands is None else summands.sum(0).to(like.dtype)


def with_cast_options(call: Call) -> Call:
    """The call with its options in its dtype, and as kernels read them.

    Masks are drawn before autocast casts a call. The mask of h is contiguous, and so is the last
    dimension of the shares of zoneout.
    """
    if call.options is None:
        return call

    def change(name: str, tensor: Tensor) -> Tensor:
        tensor = tensor.to(call.cx.dtype)
        return pointers.unit_stride(tensor) if name in STEPWISE else tensor.contiguous()

    return call._replace(options=call.options.map(change))


def zero_gradients(call: Call, needs: Needs) -> Gradients:
    """The gradients of a call of no rows or no time steps."""
    G, H = len(call.weights.weight_hh), call.cx.shape[2]
    weights = (G, 4 * H, call.input_size), (G, 4 * H), (G, 4 * H, H), (G, 3 * H), (0,)
    sizes = (tuple(call.input.shape), *weights)
    zeros = [
        call.input.new_zeros(size if need else 0) for size, need in zip(sizes, needs, strict=True)
    ]
    gains = [] if call.options is None else [torch.zeros_like(g) for g in call.options.gains]
    return Gradients(*[*zeros, torch.empty_like(call.hx), torch.empty_like(call.cx), *gains])
