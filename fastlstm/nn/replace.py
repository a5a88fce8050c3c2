"""``replace``: every ``nn.LSTM`` inside a model becomes a fastlstm one."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastlstm.backends.select import check_backend
from fastlstm.nn.lstm import LSTM
from fastlstm.nn.lstm_cell import LSTMCell
from fastlstm.nn.patching import LSTM_CELL_TYPES, LSTM_TYPES

_OURS: dict[type[nn.Module], type[LSTM] | type[LSTMCell]] = dict((LSTM_TYPES, LSTM_CELL_TYPES))


@dataclass
class Replacement:
    """The report of :func:`fastlstm.replace`; ``str`` makes a text of it.

    Attributes:
        swapped: the names of the modules that were replaced, one for each place in the model.
        left: the names of the LSTMs that were not replaced, each with the reason.

    Example:
        >>> report = fastlstm.replace(torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 4)}))
        >>> report.swapped, report.left
        (['lstm'], {})
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
    """Replace every ``nn.LSTM`` and ``nn.LSTMCell`` inside a model by a fastlstm one, in place.

    The new modules have the same Parameter objects as the old ones, so that optimisers keep
    working, and the same names, hooks, buffers and mode. A module that has several names in the
    model stays one module. The new modules are no instances of torch's classes: code that asks
    ``isinstance(m, nn.LSTM)``, as many loops that initialise weights do, does not find them, unless
    it runs inside :func:`fastlstm.patched` or asks for ``fastlstm.LSTM_TYPES``.

    Args:
        model: a module with LSTMs at any depth.
        backend: the backend of the new modules. Default: "auto".

    Returns:
        The names of the modules that were replaced, and of those that were not, with the reasons.

    Raises:
        TypeError: the model is no module.
        ValueError: the model is itself an ``nn.LSTM`` or ``nn.LSTMCell``, which cannot become
            another object in place; or there is no backend of that name.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LSTM(4, 5))
        >>> fastlstm.replace(model)
        Replacement(swapped=['1'], left={})
        >>> isinstance(model[1], fastlstm.LSTM)
        True
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
    """Why this LSTM of torch's is not replaced; None if it is, or if the module is none."""
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
    """Make a module of ours with the same dicts, so that handles of hooks keep working."""
    kind = _OURS[type(module)]
    ours = kind.__new__(kind)
    ours.__setstate__(vars(module))
    vars(ours).update(vars(module), backend=backend)
    return ours
