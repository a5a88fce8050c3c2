"""Ways in and out: LSTMs swapped inside a model, weights in the layouts of other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastlstm.cell import LSTMCell
from fastlstm.modules import LSTM, check_backend
from fastlstm.patching import LSTM_CELL_TYPES, LSTM_TYPES

_OURS: dict[type[nn.Module], type[LSTM] | type[LSTMCell]] = dict((LSTM_TYPES, LSTM_CELL_TYPES))


@dataclass
class Replacement:
    """What :func:`replace` did.

    Attributes:
        swapped: names of the modules that are fastlstm's now, one for each place in the model.
        left: names of the LSTMs that are what they were, each with the reason.
    """

    swapped: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"swapped {len(self.swapped)}, left {len(self.left)}"]
        lines += [f"  {name}: swapped" for name in self.swapped]
        lines += [f"  {name}: left, {reason}" for name, reason in self.left.items()]
        if self.swapped:
            lines.append(
                "isinstance(m, nn.LSTM) is False for what was swapped: ask for fastlstm.LSTM_TYPES "
                "or fastlstm.LSTM_CELL_TYPES"
            )
        return "\n".join(lines)


def replace(model: nn.Module, backend: str = "auto") -> Replacement:
    """Make every ``nn.LSTM`` and ``nn.LSTMCell`` inside a model a fastlstm one, in place.

    The new modules have the very same Parameter objects, so optimisers go on with them, and the
    same names, hooks, buffers and mode. One that is reachable by several names stays one. They are
    no instances of torch's classes: code that asks ``isinstance(m, nn.LSTM)``, as many loops that
    initialise weights do, passes them by, unless it runs inside of :func:`fastlstm.patched`, or
    asks for ``fastlstm.LSTM_TYPES``.

    Args:
        model: contains LSTMs at any depth.
        backend: of the new modules. Default: "auto".

    Returns:
        The names of what was swapped, and of what was left with the reasons.

    Raises:
        TypeError: the model is no module.
        ValueError: the model is itself an ``nn.LSTM`` or ``nn.LSTMCell``, which cannot become
            another object in place; or an unknown backend.
    """
    check_backend(backend)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if type(model) in _OURS:
        raise ValueError(
            f"model: expected a module that contains LSTMs, got an nn.{type(model).__name__} "
            "itself; put it into another, as nn.ModuleList([model]), or copy an nn.LSTM by "
            "fastlstm.LSTM.from_torch"
        )
    report = Replacement()
    swapped: dict[nn.Module, nn.Module] = {}
    if reason := _reason_to_leave(model):
        report.left[""] = reason
    for path, parent in list(model.named_modules()):
        for name, child in parent._modules.items():
            place = f"{path}.{name}" if path else name
            if child is None:
                continue
            if reason := _reason_to_leave(child):
                report.left[place] = reason
            elif type(child) in _OURS:
                if child not in swapped:
                    swapped[child] = _adopt(child, backend)
                parent._modules[name] = swapped[child]
                report.swapped.append(place)
    return report


def _reason_to_leave(module: nn.Module) -> str | None:
    """Why this LSTM of torch's stays; None if it need not, or if it is none."""
    kind = type(module)
    if parametrize.is_parametrized(module) and isinstance(module, tuple(_OURS)):
        return "parametrized: swap first, then register the parametrizations"
    if isinstance(module, torch.jit.ScriptModule):
        scripted = getattr(module, "original_name", None) in ("LSTM", "LSTMCell")
        return "scripted: swap first, then script" if scripted else None
    if kind.__module__.startswith("torch.ao.nn.") and kind.__name__ in ("LSTM", "LSTMCell"):
        return "quantised"
    if kind not in _OURS:
        return f"a subclass, {kind.__qualname__}" if isinstance(module, tuple(_OURS)) else None
    if "forward" in vars(module):
        return "its forward was replaced"
    if module._compiled_call_impl is not None:
        return "compiled: swap first, then compile"
    return None


def _adopt(module: nn.Module, backend: str) -> nn.Module:
    """Ours in the place of torch's, with the same dicts, so that handles of hooks work."""
    kind = _OURS[type(module)]
    ours = kind.__new__(kind)
    ours.__setstate__(vars(module))
    vars(ours).update(vars(module), backend=backend)
    return ours


def from_kernels(
    kernel: Any, recurrent_kernel: Any, bias: Any = None, *, gate_order: str, suffix: str = "_l0"
) -> dict[str, Tensor]:
    """A layer of a library that multiplies from the left, as part of an LSTM's state_dict.

    Args:
        kernel: (I, 4H), a tensor or an array: the input's weights, transposed.
        recurrent_kernel: (H, 4H).
        bias: (4H). Default: none.
        gate_order: of the four blocks of H columns, a permutation of "ifgo", where g is the
            candidate: "ifgo" for Keras, which calls it c, and "igfo" for Haste.
        suffix: of the names, "_l0_reverse" or the like; "" for an LSTMCell.

    Returns:
        weight_ih (4H, I), weight_hh (4H, H) and, with a bias, bias_ih (4H) and bias_hh (4H), which
        is zero, as nn.LSTM has two; each name with the suffix.

    Raises:
        ValueError: gate_order is not a permutation of "ifgo".
        RuntimeError: sizes that do not belong together.
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
        state_dict: of an LSTM or LSTMCell, fastlstm's or torch's; of one layer and direction.
        gate_order, suffix: as in :func:`from_kernels`.

    Returns:
        kernel (I, 4H), recurrent_kernel (H, 4H), and bias (4H), the sum of both, or None.

    Raises:
        TypeError: the state_dict is none.
        ValueError: gate_order is not a permutation of "ifgo", or the layer has peepholes or a
            projection, for which there is no place.
        KeyError: there is no such layer.
    """
    _check_gate_order(gate_order)
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"state_dict: expected a mapping, got {type(state_dict).__name__}")
    for name in (f"weight_ch{suffix}", f"weight_hr{suffix}"):
        if name in state_dict:
            raise ValueError(f"state_dict: expected no {name}, which kernels have no place for")
    kernel = _reorder(state_dict[f"weight_ih{suffix}"].t(), "ifgo", gate_order)
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
