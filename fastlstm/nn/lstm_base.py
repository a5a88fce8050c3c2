"""What other code finds in an ``nn.LSTM`` besides its forward: methods, state, weights."""

from __future__ import annotations

import weakref
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from fastlstm.nn.scripting import TorchLSTM

# Of every module of ours, on top of what torch's has. The module's name makes torch.fx record a
# call of it, as of nn.LSTM: its tracers, and those of quantization, look into every module whose
# __module__ is not under torch.nn; what they find here branches on shapes, which they cannot
# follow. The class keeps its own name, which pickle and documentation go by.
BEYOND_TORCH = {"__module__": TorchLSTM.__module__, "peephole": False, "backend": "auto"}


class LSTMBase(nn.RNNBase):
    """``nn.RNNBase`` with what ``nn.LSTM`` adds to it, but for the forward.

    ``nn.LSTM`` itself is no base class of ours: torch.compile breaks the graph at each instance.
    """

    get_expected_cell_size = TorchLSTM.get_expected_cell_size
    check_forward_args = TorchLSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = TorchLSTM.permute_hidden  # type: ignore[assignment]

    def __setattr__(self, name: str, value: Any) -> None:
        """As ``nn.RNNBase``, which leaves ``_flat_weight_refs`` to the next forward."""
        super().__setattr__(name, value)
        if name in vars(self).get("_flat_weights_names", ()):
            self._keep_flat_weights(self._flat_weights)

    def _keep_flat_weights(self, weights: list[Any]) -> None:
        """As those of the parameters that are there now."""
        self._flat_weights = weights
        self._flat_weight_refs = [w if w is None else weakref.ref(w) for w in weights]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes the state of an ``nn.LSTM`` too, and of older versions."""
        options = {"learn_initial_state": False, "checkpoint_every": None}
        super().__setstate__(BEYOND_TORCH | options | state)

    def _current_weights(self) -> list[Tensor]:
        """What ``nn.LSTM`` computes with, in the order of ``_flat_weights``.

        That is the parameters by their names, or ``_flat_weights`` if somebody put other tensors
        there, and no parameter has been replaced since.
        """
        parameters: Any = self._parameters
        flat: list[Any] = self._flat_weights
        named = [  # two us less a call than by getattr alone
            parameters[name] if name in parameters else getattr(self, name)
            for name in self._flat_weights_names
        ]
        if len(flat) != len(named):
            raise RuntimeError(
                f"_flat_weights: expected {len(named)} tensors, one for each of "
                f"{', '.join(self._flat_weights_names)}, got {len(flat)}"
            )
        if all(map(is_, named, flat)):
            return named
        before = [ref and ref() for ref in self._flat_weight_refs]
        if len(before) == len(named) and all(map(is_, named, before)):
            return flat
        # Replaced in another way than by setattr. What functional_call and parametrize put there
        # is not kept: it lives no longer than the call, and keeps a module from being copied.
        if not torch.compiler.is_compiling() and {*map(type, named)} == {nn.Parameter}:
            self._keep_flat_weights(named)
        return named
