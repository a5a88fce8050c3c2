"""Options of modules that ``torch.nn`` does not have: attributes, parameters and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.option_checks import check_options
from fastlstm.options import PLAIN, LayerNorm, LSTMOptions

NORMS = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")


class WithOptions(nn.Module):
    """A module whose cells have options.

    Its attributes have few names, and no method has a public one: subclasses of ``nn.LSTM`` that
    regularise themselves have attributes such as ``layer_norm`` and ``weight_dropout``, which must
    stay theirs when :func:`fastlstm.patched` changes their base class.

    Attributes:
        cell_options: those that are fields of :class:`fastlstm.LSTMOptions`, without the layer
            norms. It may be set; the value is checked.
    """

    cell_options: LSTMOptions = PLAIN
    _has_norms: bool = False
    _forget_bias: float | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and check ``cell_options``.

        Plain options are that very object, by which a call knows them.
        """
        if name == "cell_options":
            if isinstance(value, LSTMOptions) and isinstance(value.zoneout, list):
                value = value._replace(zoneout=tuple(value.zoneout))
            check_options(value, vars(self).get("dropout", 0.0))
            value = PLAIN if value == PLAIN else value
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state, in which plain options may be another object."""
        super().__setstate__(state)
        if self.cell_options == PLAIN:
            vars(self)["cell_options"] = PLAIN

    def _active_options(self, endings: Sequence[str]) -> LSTMOptions:
        """The options of a call, with the layer norms of the parameters with these endings."""
        if not self._has_norms:
            return self.cell_options
        return self.cell_options._replace(norms=[self._layer_norm(ending) for ending in endings])

    def _layer_norm(self, ending: str) -> LayerNorm:
        ih, hh, c, c_bias = (getattr(self, name + ending) for name in NORMS)
        return LayerNorm(ih, hh, torch.stack([c, c_bias]))

    def _add_norms(self, ending: str, weight_hh: Tensor) -> None:
        """Register the layer norms of one layer and direction."""
        four_h = weight_hh.shape[0]
        for name, size in zip(NORMS, (four_h, four_h, four_h // 4, four_h // 4), strict=True):
            self.register_parameter(name + ending, nn.Parameter(weight_hh.new_empty(size)))

    def _reset_options(self) -> None:
        """Set gains to 1, biases of norms to 0, and the forget gate's bias to ``forget_bias``."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith(NORMS):
                nn.init.constant_(parameter, float(name.startswith("weight")))
            elif self._forget_bias is not None and name.startswith(("bias_ih", "bias_hh")):
                forget = parameter.detach().chunk(4)[1]
                forget.fill_(self._forget_bias if name.startswith("bias_ih") else 0.0)


def check_forget_bias(forget_bias: Any, has_bias: bool) -> None:
    """TypeError or ValueError unless the forget gate's bias is None or a number, and is there."""
    if forget_bias is None:
        return
    if isinstance(forget_bias, bool) or not isinstance(forget_bias, (int, float)):
        kind = type(forget_bias).__name__
        raise TypeError(f"forget_bias: expected a number or None, got {kind}")
    if not has_bias:
        raise ValueError(
            f"forget_bias: expected None with bias=False, which has none; got {forget_bias}"
        )


def option_arguments(module: WithOptions) -> dict[str, Any]:
    """The options that are on, as arguments of the constructor."""
    options = module.cell_options
    arguments: dict[str, Any] = {"layer_norm": True} if module._has_norms else {}
    arguments |= {name: getattr(options, name) for name in options.names}
    if module._forget_bias is not None:
        arguments["forget_bias"] = module._forget_bias
    return arguments


def refuse_options(module: nn.Module, what: str, in_evaluation: bool = False) -> None:
    """ValueError if a module has options that ``what`` lacks.

    Args:
        module: an LSTM or LSTMCell.
        what: the subject of the message.
        in_evaluation: options that do nothing in evaluation may be on.
    """
    sizes = getattr(module, "hidden_size", 0)
    if isinstance(sizes, tuple):
        raise ValueError(f"hidden_size: expected one size for all layers, {what}; got {sizes}")
    if not isinstance(module, WithOptions):
        return
    if module._has_norms:
        raise ValueError(f"layer_norm: expected False, {what}; got True")
    options = module.cell_options.in_mode(not in_evaluation)
    for name in options.names:
        raise ValueError(f"{name}: expected it to be off, {what}; got {getattr(options, name)}")
