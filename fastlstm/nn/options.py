"""Options of modules that ``torch.nn`` does not have: attributes, parameters and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.option_checks import check_options
from fastlstm.options import PLAIN, LayerNorm, LSTMOptions

MODULE_OPTIONS = (
    "layer_norm",
    "recurrent_dropout",
    "weight_dropout",
    "zoneout",
    "variational_dropout",
    "forget_bias",
    "cell_clip",
)
"""The arguments of ``LSTM`` that this file is about."""
NORMS = ("weight_ln_ih", "weight_ln_hh", "weight_ln_c", "bias_ln_c")


def _option(name: str) -> Any:
    """A property that is a field of ``options``."""

    def get(self: WithOptions) -> Any:
        return getattr(self.options, name)

    def set(self: WithOptions, value: Any) -> None:
        self.set_options(self.options._replace(**{name: value}))

    return property(get, set, doc=f"``{name}`` of the constructor.")


class WithOptions(nn.Module):
    """A module whose cells have options.

    Attributes:
        options: those that are fields of :class:`fastlstm.LSTMOptions`, without the layer norms.
        layer_norm: the module has the parameters of layer norms.
        forget_bias: what ``reset_parameters`` sets the bias of the forget gate to; None: it is
            drawn like the others.
    """

    options: LSTMOptions = PLAIN
    layer_norm: bool = False
    forget_bias: float | None = None
    recurrent_dropout = _option("recurrent_dropout")
    weight_dropout = _option("weight_dropout")
    zoneout = _option("zoneout")
    variational_dropout = _option("variational_dropout")
    cell_clip = _option("cell_clip")

    def set_options(self, options: LSTMOptions) -> None:
        """Check the options and keep them."""
        if isinstance(options.zoneout, list):
            options = options._replace(zoneout=tuple(options.zoneout))
        check_options(options, vars(self).get("dropout", 0.0))
        self.options = PLAIN if options == PLAIN else options

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state; plain options are that very object, by which a call knows them."""
        super().__setstate__(state)
        if self.options == PLAIN:
            self.options = PLAIN

    def active_options(self, endings: Sequence[str]) -> LSTMOptions:
        """The options of a call, with the layer norms of the parameters with these endings."""
        if not self.layer_norm:
            return self.options
        return self.options._replace(norms=[self._layer_norm(ending) for ending in endings])

    def _layer_norm(self, ending: str) -> LayerNorm:
        ih, hh, c, c_bias = (getattr(self, name + ending) for name in NORMS)
        return LayerNorm(ih, hh, torch.stack([c, c_bias]))

    def add_layer_norm(self, ending: str, weight_hh: Tensor) -> None:
        """Register the layer norms of one layer and direction."""
        four_h = weight_hh.shape[0]
        for name, size in zip(NORMS, (four_h, four_h, four_h // 4, four_h // 4), strict=True):
            self.register_parameter(name + ending, nn.Parameter(weight_hh.new_empty(size)))

    def reset_options(self) -> None:
        """Set gains to 1, biases of norms to 0, and the forget gate's bias to ``forget_bias``."""
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith(NORMS):
                nn.init.constant_(parameter, float(name.startswith("weight")))
            elif self.forget_bias is not None and name.startswith(("bias_ih", "bias_hh")):
                forget = parameter.detach().chunk(4)[1]
                forget.fill_(self.forget_bias if name.startswith("bias_ih") else 0.0)

    def check_forget_bias(self, forget_bias: float | None, has_bias: bool) -> None:
        """Keep the forget gate's bias; TypeError or ValueError for what is none."""
        if forget_bias is not None:
            if isinstance(forget_bias, bool) or not isinstance(forget_bias, (int, float)):
                kind = type(forget_bias).__name__
                raise TypeError(f"forget_bias: expected a number or None, got {kind}")
            if not has_bias:
                raise ValueError(
                    f"forget_bias: expected None with bias=False, which has none; got {forget_bias}"
                )
        self.forget_bias = forget_bias


def refuse_options(module: nn.Module, what: str, in_evaluation: bool = False) -> None:
    """ValueError if a module has options that ``what`` lacks.

    Args:
        module: an LSTM or LSTMCell.
        what: the subject of the message.
        in_evaluation: options that do nothing in evaluation may be on.
    """
    options: LSTMOptions = getattr(module, "options", PLAIN)
    on = [*options.in_mode(not in_evaluation).names]
    on += ["layer_norm"] * bool(getattr(module, "layer_norm", False))
    sizes = getattr(module, "hidden_size", 0)
    if isinstance(sizes, tuple):
        raise ValueError(f"hidden_size: expected one size for all layers, {what}; got {sizes}")
    if on:
        raise ValueError(f"{on[0]}: expected it to be off, {what}; got {getattr(module, on[0])!r}")
