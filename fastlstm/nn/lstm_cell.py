"""``LSTMCell``: ``torch.nn``'s, argument for argument, over the fused kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.call import LSTMWeights, Problem
from fastlstm.functional import cell_problem, lstm_cell
from fastlstm.nn.checks import check_attributes, check_cell_input
from fastlstm.nn.lstm import EXAMPLE_BATCH, check_backend, options_repr
from fastlstm.nn.lstm_base import BEYOND_TORCH
from fastlstm.nn.scripting import scriptable


class LSTMCell(nn.RNNCellBase):
    """A drop-in for :class:`torch.nn.LSTMCell`, with optional peepholes.

    Args:
        input_size, hidden_size, bias, device, dtype: as in ``nn.LSTMCell``.
        peephole: add ``weight_ch`` (3H), gates in order i, f, o. Default: False.
        backend: "auto" or the name of one. Default: "auto".

    Raises:
        ValueError: unknown backend.
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

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of an ``nn.LSTMCell`` too."""
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
        """As ``nn.LSTMCell``: input (B, I) or (I), hx = (h, c) to the next (h, c).

        Raises:
            RuntimeError, ValueError: as ``nn.LSTMCell`` does.
        """
        check_cell_input(input, hx)
        weights = self.weights()
        check_attributes(self, weights)
        if input.dim() == 2:
            return lstm_cell(input, hx, weights, backend=self.backend)
        hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        hy, cy = lstm_cell(input.unsqueeze(0), hx, weights, backend=self.backend)
        return hy.squeeze(0), cy.squeeze(0)

    def problem(self, input: Tensor | None = None) -> Problem:
        """What the backends are asked for this input, for :func:`fastlstm.explain`."""
        if input is None:
            input = self.weight_ih.new_empty(EXAMPLE_BATCH, self.input_size)
        return cell_problem(torch.atleast_2d(input), None, self.weights())

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles instead: an nn.LSTMCell that shares these parameters."""
        names = ("input_size", "hidden_size", "bias")
        return scriptable(self, {name: getattr(self, name) for name in names})

    def extra_repr(self) -> str:
        """nn.LSTMCell's, with what differs from its defaults."""
        return super().extra_repr() + options_repr(self, "peephole")
