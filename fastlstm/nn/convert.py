"""Weights in the layouts of other libraries: Keras, Haste and those like them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class HasteNorms(NamedTuple):
    """The parameters of the layer norms of Haste's ``LayerNormLSTM``, under its names.

    Example:
        >>> norms = HasteNorms(torch.ones(2, 16), torch.ones(4), torch.zeros(4))
        >>> kernels = torch.randn(3, 16), torch.randn(4, 16), torch.zeros(16)
        >>> state = from_kernels(*kernels, gate_order="igfo", norms=norms)
        >>> fastlstm.LSTM(3, 4, layer_norm=True).load_state_dict(state)
        <All keys matched successfully>
    """

    gamma: Any
    """(2, 4H) the gains of the norms of W_ih x and W_hh h"""
    gamma_h: Any
    """(H) the gain of the norm of c"""
    beta_h: Any
    """(H) the bias of the norm of c"""


def from_kernels(
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    *,
    gate_order: str,
    suffix: str = "_l0",
    norms: HasteNorms | None = None,
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
        norms: the layer norms of Haste's ``LayerNormLSTM``. Default: none.

    Returns:
        weight_ih (4H, I), weight_hh (4H, H) and, with a bias, bias_ih (4H) and bias_hh (4H), which
        is zero, as nn.LSTM has two; with norms the parameters of ``layer_norm=True`` too. Each name
        has the suffix.

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
    if norms is not None:
        gamma, gamma_h, beta_h = map(torch.as_tensor, norms)
        sizes = {"gamma": (gamma, (2, 4 * H)), "gamma_h": (gamma_h, (H,)), "beta_h": (beta_h, (H,))}
        for name, (tensor, size) in sizes.items():
            if tensor.shape != size:
                raise RuntimeError(f"{name}: expected size {size}, got {tuple(tensor.shape)}")
        ih, hh = _reorder(gamma, gate_order, "ifgo")
        values = (ih, hh, gamma_h.clone(), beta_h.clone())
        names = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")
        state |= {f"{name}{suffix}": value for name, value in zip(names, values, strict=True)}
    return state


def keras_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``fastlstm.LSTM`` from ``get_config()`` of an LSTM layer of Keras.

    Args:
        config: the layer's configuration.

    Returns:
        hidden_size, bias, batch_first, recurrent_dropout and forget_bias; input_size is not in the
        configuration. ``dropout``, which Keras applies to the layer's input, is not among them.

    Raises:
        ValueError: an activation that no LSTM of ours has.

    Example:
        >>> config = {"units": 4, "use_bias": True, "recurrent_dropout": 0.2}
        >>> fastlstm.LSTM(3, **keras_arguments(config))
        LSTM(3, 4, batch_first=True, recurrent_dropout=0.2, forget_bias=1.0)
    """
    for name, ours in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        found = config.get(name, ours)
        if found != ours:
            raise ValueError(f"{name}: expected {ours!r}, got {found!r}")
    bias = bool(config.get("use_bias", True))
    return {
        "hidden_size": config["units"],
        "bias": bias,
        "batch_first": not config.get("time_major", False),
        "recurrent_dropout": config.get("recurrent_dropout", 0.0),
        "forget_bias": 1.0 if bias and config.get("unit_forget_bias", True) else None,
    }


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
            projection, layer norms or heads, which the kernels of other libraries do not have.
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
    for name in (f"weight_ch{suffix}", f"weight_hr{suffix}", f"weight_ln_hh{suffix}"):
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
