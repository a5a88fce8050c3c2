"""What ``torch.autocast`` asks for."""

from __future__ import annotations

import torch
from torch import Tensor


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is on for the tensor's device; torch refuses to be asked about "meta"."""
    device = tensor.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that is computed in: the tensor's own, or autocast's where it is on."""
    if is_autocast(tensor) and tensor.dtype != torch.float64:
        return torch.get_autocast_dtype(tensor.device.type)
    return tensor.dtype
