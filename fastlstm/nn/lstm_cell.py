"""``LSTMCell``: the module of ``torch.nn``, argument for argument, over the fused kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fastlstm._C import direct_cell
from fastlstm.backends.select import check_backend
from fastlstm.call import LSTMWeights, Wanted
from fastlstm.cell_checks import check_cell_input
from fastlstm.functional import lstm_cell
from fastlstm.layers import make_cell
from fastlstm.nn.direct import record
from fastlstm.nn.lstm_base import BEYOND_TORCH, EXAMPLE_BATCH, check_sizes, options_repr
from fastlstm.nn.options import WithOptions, check_forget_bias
from fastlstm.nn.scripting import scriptable
from fastlstm.options import PLAIN, LSTMOptions
from fastlstm.problem import Problem, pose_problem


class LSTMCell(WithOptions, nn.RNNCellBase):
    """Apply an LSTM to one time step, as :class:`torch.nn.LSTMCell`, over the fused kernels.

    Args:
        input_size, hidden_size, bias, device, dtype: as in ``nn.LSTMCell``.
        peephole: add the parameter ``weight_ch`` (3H), the peephole connections of
            :class:`fastlstm.LSTM`, in gate order i, f, o. Default: False.
        layer_norm, zoneout, forget_bias, cell_clip: as in :class:`fastlstm.LSTM`; the parameters of
            layer norms end without "_l0". Recurrent dropout is a product here: ``cell(x, (mask * h,
            c))`` with one mask for the sequence.
        backend: "auto", or the name of one; see :func:`fastlstm.explain`. Default: "auto".

    Raises:
        TypeError, ValueError: as :class:`fastlstm.LSTM` does for its options.
        ValueError: there is no backend of that name.

    Example:
        >>> cell = fastlstm.LSTMCell(10, 20, peephole=True)
        >>> h, c = cell(torch.randn(3, 10))
        >>> h, c = cell(torch.randn(3, 10), (h, c))
        >>> h.shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        layer_norm: bool = False,
        zoneout: tuple[float, float] = (0.0, 0.0),
        forget_bias: float | None = None,
        cell_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device=device, dtype=dtype)
        vars(self).update(BEYOND_TORCH)
        self.peephole = peephole
        self.backend = check_backend(backend)
        if peephole:
            self.weight_ch = nn.Parameter(self.weight_hh.new_empty(3 * hidden_size))
            bound = 1.0 / math.sqrt(hidden_size)  # as torch has it, to the last bit
            nn.init.uniform_(self.weight_ch, -bound, bound)
        else:
            self.register_parameter("weight_ch", None)
        self.cell_options = LSTMOptions(zoneout=zoneout, cell_clip=cell_clip)
        check_forget_bias(forget_bias, bias)
        self._forget_bias = forget_bias
        self._has_norms = layer_norm
        if layer_norm:
            self._add_norms("", self.weight_hh)
        self._reset_options()

    def reset_parameters(self) -> None:
        """Draw all weights again, as ``nn.LSTMCell`` does."""
        super().reset_parameters()
        self._reset_options()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state, which may be that of an ``nn.LSTMCell``."""
        super().__setstate__(BEYOND_TORCH | state)
        self._parameters.setdefault("weight_ch", None)

    def weights(self) -> LSTMWeights:
        """The parameters as the functional layer takes them."""
        return LSTMWeights(
            self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_ch
        )

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute the next (h, c) from input (B, I) or (I) and hx = (h, c), both (B, H) or (H).

        hx defaults to zeros.

        Raises:
            AttributeError, RuntimeError, TypeError, ValueError: as ``nn.LSTMCell`` does.
            ValueError: a backend that cannot run this call.
        """
        options = PLAIN
        if self.cell_options is not PLAIN or self._has_norms:
            options = self._active_options([""])
        is_usual = type(self).weights is LSTMCell.weights and options is PLAIN
        if is_usual and not is_compiling():
            outputs = direct_cell(self, record, input, hx)
            if outputs is not None:
                return outputs
        check_cell_input(input, hx)
        weights = self.weights()
        check_sizes(self, weights)
        if input.dim() == 2:
            return self._step(input, hx, weights, options)
        hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        hy, cy = self._step(input.unsqueeze(0), hx, weights, options)
        return hy.squeeze(0), cy.squeeze(0)

    def _step(self, input: Tensor, hx: Any, weights: LSTMWeights, options: LSTMOptions) -> Any:
        return lstm_cell(
            input, hx, weights, options=options, training=self.training, backend=self.backend
        )

    def problem(self, input: Tensor | None = None) -> Problem:
        """The question that a call with this input puts to the backends, for ``explain``."""
        if input is None:
            input = self.weight_ih.new_empty(EXAMPLE_BATCH, self.input_size)
        layers = make_cell(torch.atleast_2d(input), None, self.weights())
        layers = layers._replace(options=self._active_options([""]), training=self.training)
        return pose_problem(layers, Wanted(), "cell")[2]

    def __prepare_scriptable__(self) -> nn.Module:
        """The module that torch.jit.script compiles: an nn.LSTMCell with these parameters."""
        names = ("input_size", "hidden_size", "bias")
        return scriptable(self, {name: getattr(self, name) for name in names})

    def extra_repr(self) -> str:
        """The text of nn.LSTMCell, with the options that are on."""
        return super().extra_repr() + options_repr(self, "peephole")
