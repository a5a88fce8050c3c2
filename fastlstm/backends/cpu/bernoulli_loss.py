"""The loss of Bernoulli read-outs on the CPU and its gradient, in one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm import _C

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_HAS_KERNELS = bool(_C.isas())


def can_run(logits: Tensor, targets: Tensor) -> bool:
    """Whether the kernel computes with these tensors, where no tracer or transform watches."""
    return (
        _HAS_KERNELS
        and logits.device.type == targets.device.type == "cpu"
        and logits.layout is targets.layout is torch.strided
        and not (logits.is_nested or targets.is_nested)
        and logits.dtype in _DTYPES
        and targets.dtype in _DTYPES
        and (logits.dtype is torch.float64) == (targets.dtype is torch.float64)
        and logits.shape == targets.shape
        and not (logits.is_neg() or targets.is_neg())
        # A lower address may be an offset in no memory at all: see pointers.materialized.
        and (min(logits.data_ptr(), targets.data_ptr()) > 2**40 or logits.numel() == 0)
    )


def run(
    logits: Tensor, targets: Tensor, scale: float, needs_gradient: bool, isa: str = "auto"
) -> tuple[float, bool, Tensor | None]:
    """Compute the loss of logits for which :func:`can_run` returns True.

    Args:
        logits: any size.
        targets: the same size.
        scale: a factor of the gradient.
        needs_gradient: whether the gradient is computed.
        isa: the instruction set.

    Returns:
        The sum of ``softplus(a) - t * a``, not scaled; whether all targets lie in [0, 1], which is
        also False if one is -0; and the scaled gradient of the logits, in their dtype.
    """
    logits, targets = logits.detach().contiguous(), targets.detach().contiguous()
    gradient = _C.pooled_empty(logits.shape, logits.dtype) if needs_gradient else None
    loss, targets_in_range = _C.bernoulli_loss(
        logits_dtype=_DTYPES[logits.dtype],
        targets_dtype=_DTYPES[targets.dtype],
        logits=logits.data_ptr(),
        targets=targets.data_ptr(),
        gradient=0 if gradient is None else gradient.data_ptr(),
        count=logits.numel(),
        scale=scale,
        num_threads=torch.get_num_threads(),
        isa=isa,
    )
    return loss, targets_in_range, gradient
