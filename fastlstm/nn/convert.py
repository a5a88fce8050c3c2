"""Weights in the layouts of other libraries: Keras, Haste and those like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def from_kernels(
    kernel: Any, recurrent_kernel: Any, bias: Any = None, *, gate_order: str, suffix: str = "_l0"
) -> dict[str, Tensor]:
    """Convert one layer of a library that computes ``x @ kernel`` to entries of a state_dict.

    Args:
        kernel: (I, 4H), a tensor or an array: the input's weights, transposed.
        recurrent_kernel: (H, 4H).
        bias: (4H). Default: none.
        gate_order: the order of the four blocks of H columns, a permutation of "ifgo", where g is
            the candidate: "ifgo" for Keras, which calls it c, and "igfo" for Haste.
        suffix: the end of the names in the state_dict, such as "_l0_reverse"; "" for an LSTMCell.
            Default: "_l0".

    Returns:
        weight_ih (4H, I), weight_hh (4H, H) and, with a bias, bias_ih (4H) and bias_hh (4H), which
        is zero, as nn.LSTM has two; each name with the suffix.

    Raises:
        ValueError: gate_order is not a permutation of "ifgo".
        RuntimeError: sizes that do not belong together.

    Example:
        >>> kernel, recurrent_kernel = torch.randn(3, 16), torch.randn(4, 16)  # from Keras
        >>> state = from_kernels(kernel, recurrent_kernel, torch.zeros(16), gate_order="ifgo")
        >>> fastlstm.LSTM(3, 4).load_state_dict(state)
        <All keys matched successfully>
    """
    _check_gate_order(gate_order)
    kernel, recurrent_kernel = torch.as_tensor(kernel), torch.as_tensor(recurrent_kernel)
    H = recurrent_kernel.shape[0]
    blocks = {"kernel": (kernel, 2), "recurrent_kernel": (recurrent_kernel, 2)}
    if bias is not None:
        bias = torch.as_tensor(bias)
        blocks["bias"] = (bias, 1)
    for name, (tensor, dims) in blocks.items():
        if tensor.dim() != dims or tensor.shape[-1] != 4 * H:
            expected = f"{dims} dimensions, the last of 4H = {4 * H}"
            raise RuntimeError(f"{name}: expected {expected}, got {tuple(tensor.shape)}")
    state = {
        f"weight_ih{suffix}": _reorder(kernel, gate_order, "ifgo").t().contiguous(),
        f"weight_hh{suffix}": _reorder(recurrent_kernel, gate_order, "ifgo").t().contiguous(),
    }
    if bias is not None:
        state[f"bias_ih{suffix}"] = _reorder(bias, gate_order, "ifgo")
        state[f"bias_hh{suffix}"] = torch.zeros_like(bias)
    return state


def to_kernels(
    state_dict: Mapping[str, Tensor], *, gate_order: str, suffix: str = "_l0"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The inverse of :func:`from_kernels`.

    Args:
        state_dict: the state_dict of an LSTM or LSTMCell, fastlstm's or torch's.
        gate_order, suffix: as in :func:`from_kernels`.

    Returns:
        kernel (I, 4H), recurrent_kernel (H, 4H), and bias (4H), the sum of both, or None.

    Raises:
        TypeError: ``state_dict`` is no mapping.
        ValueError: gate_order is not a permutation of "ifgo", or the layer has peepholes, a
            projection or heads, which the kernels of other libraries do not have.
        KeyError: the state_dict has no layer with this suffix.

    Example:
        >>> state = fastlstm.LSTM(3, 4).state_dict()
        >>> kernel, recurrent_kernel, bias = to_kernels(state, gate_order="ifgo")
        >>> kernel.shape
        torch.Size([3, 16])
    """
    _check_gate_order(gate_order)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping, got {type(state_dict).__name__}")
    for name in (f"weight_ch{suffix}", f"weight_hr{suffix}"):
        if name in state_dict:
            raise ValueError(f"state_dict: expected no {name}, which kernels have no place for")
    kernel = _reorder(state_dict[f"weight_ih{suffix}"].t(), "ifgo", gate_order)
    four_h, H = state_dict[f"weight_hh{suffix}"].shape
    if four_h != 4 * H:
        expected = f"weight_hh{suffix} {(four_h, four_h // 4)}, without heads"
        raise ValueError(f"state_dict: expected {expected}, got {(four_h, H)}")
    recurrent_kernel = _reorder(state_dict[f"weight_hh{suffix}"].t(), "ifgo", gate_order)
    if f"bias_ih{suffix}" not in state_dict:
        return kernel, recurrent_kernel, None
    bias = state_dict[f"bias_ih{suffix}"] + state_dict[f"bias_hh{suffix}"]
    return kernel, recurrent_kernel, _reorder(bias, "ifgo", gate_order)


def _check_gate_order(gate_order: str) -> None:
    if sorted(gate_order) != sorted("ifgo"):
        raise ValueError(f"gate_order: expected a permutation of 'ifgo', got {gate_order!r}")


def _reorder(tensor: Tensor, order: str, wanted: str) -> Tensor:
    """A copy whose last dimension has its four blocks in another order."""
    blocks = dict(zip(order, tensor.chunk(4, dim=-1), strict=True))
    return torch.cat([blocks[gate] for gate in wanted], dim=-1)
