"""The base class of ``LSTM``: methods, state and weights that other code finds in ``nn.LSTM``."""

from __future__ import annotations

import math
import weakref
from itertools import islice
from operator import attrgetter, is_
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm.backends.cpu.stored import RoundedWeights
from fastlstm.call import LSTMWeights, SequenceLayout, Wanted
from fastlstm.checks import check_input, check_num_heads
from fastlstm.layers import make_layers
from fastlstm.layout_checks import steps_between_checkpoints
from fastlstm.nn.frozen import Freezable
from fastlstm.nn.options import WithOptions, option_arguments
from fastlstm.nn.scripting import TorchLSTM
from fastlstm.nn.torch_forms import TorchForms
from fastlstm.options import PLAIN
from fastlstm.problem import Problem, pose_problem
from fastlstm.tracing import autocast_dtype, requires_grad

if TYPE_CHECKING:
    pass

EXAMPLE_STEPS, EXAMPLE_BATCH = 100, 32  # what explain() assumes without an input

# Attributes of every module of ours, on top of those of torch's. __module__ makes torch.fx record
# the module as one call, as it does nn.LSTM. The tracers of torch.fx and of quantization look into
# every module whose __module__ is not under torch.nn, and cannot follow our code, which branches on
# shapes. The class keeps its own name, which pickle and documentation use.
BEYOND_TORCH = {
    "__module__": TorchLSTM.__module__,
    "peephole": False,
    "cell_options": PLAIN,
    "_has_norms": False,
    "_forget_bias": None,
    "backend": "auto",
}


def check_sizes(
    module: nn.RNNBase | nn.RNNCellBase, weights: LSTMWeights, suffix: str = ""
) -> None:
    """RuntimeError where a weight or a size of a module was changed and the other was not.

    ``weights`` are those of layer 0; the others are compared with them in every call.
    """
    if module.peephole and weights.weight_ch is None:
        raise TypeError(f"weight_ch{suffix}: expected a Tensor, got NoneType")
    H, P, n = module.hidden_size, getattr(module, "proj_size", 0), getattr(module, "num_heads", 1)
    if isinstance(H, tuple):  # the size of each layer
        H = H[0]
    if n != 1:
        check_num_heads(n, H, P > 0)
    sizes = ((4 * H, module.input_size), (4 * H, P or H // n))
    for name, weight, size in zip(weights._fields, weights, sizes, strict=False):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name}{suffix}: expected a Tensor, got {type(weight).__name__}")
        if weight.shape != size:
            raise RuntimeError(
                f"{name}{suffix}: expected size {size} for input_size={module.input_size} and "
                f"hidden_size={H}, got {tuple(weight.shape)}"
            )


def options_repr(module: WithOptions, *names: str) -> str:
    """The arguments of these names and the options that are on, for ``extra_repr``."""
    values = [(name, getattr(module, name)) for name in names]
    one_head = ("num_heads", 1)
    on = [(name, value) for name, value in values if value and (name, value) != one_head]
    on += option_arguments(module).items()
    on += [("backend", module.backend)] if module.backend != "auto" else []
    return "".join(f", {name}={value!r}" for name, value in on)


class LSTMBase(Freezable, TorchForms):
    """``nn.RNNBase`` with all that ``nn.LSTM`` adds to it, except forward.

    ``nn.LSTM`` itself is no base class of ours: torch.compile breaks the graph at each instance.
    """

    get_expected_cell_size = TorchLSTM.get_expected_cell_size
    check_forward_args = TorchLSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = TorchLSTM.permute_hidden  # type: ignore[assignment]

    num_heads: int = 1
    backend: str
    checkpoint_every: int | str | None
    weight_ih_l0: Tensor
    weight_hh_l0: Tensor

    if TYPE_CHECKING:

        @overload
        def __call__(
            self,
            input: Tensor,
            hx: tuple[Tensor, Tensor] | None = None,
            *,
            lengths: Any = None,
            reset: Any = None,
            return_all_cells: Literal[False] = False,
            return_sequence: Literal[True] = True,
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
        @overload
        def __call__(
            self,
            input: PackedSequence,
            hx: tuple[Tensor, Tensor] | None = None,
            *,
            return_all_cells: Literal[False] = False,
            return_sequence: Literal[True] = True,
        ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
        @overload
        def __call__(
            self, input: Tensor | PackedSequence, *arguments: Any, **keywords: Any
        ) -> tuple[Any, ...]: ...
        def __call__(self, *arguments: Any, **keywords: Any) -> Any: ...

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute as ``nn.RNNBase`` does, and keep ``_flat_weight_refs`` up to date."""
        super().__setattr__(name, value)
        if name in vars(self).get("_flat_weights_names", ()):
            self._keep_flat_weights(self._flat_weights)

    def _keep_flat_weights(self, weights: list[Any]) -> None:
        """Note that these are the weights of the parameters that are there now."""
        self._flat_weights = weights
        self._flat_weight_refs = [w if w is None else weakref.ref(w) for w in weights]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state, which may be that of an ``nn.LSTM`` or of an older version."""
        beyond = {"learn_initial_state": False, "checkpoint_every": None, "num_heads": 1}
        super().__setstate__(BEYOND_TORCH | beyond | state)

    def _endings(self) -> list[str]:
        """The ends of the parameters' names: "_l0", "_l0_reverse", "_l1" ..."""
        return [f"_{suffix}" for suffix in self._suffixes()]

    def _divide_into_heads(self, num_heads: int) -> None:
        """Check the number of heads, and keep the columns of weight_hh that a head needs."""
        check_num_heads(num_heads, self.hidden_size, self.proj_size > 0)
        self.num_heads = num_heads
        if num_heads > 1:
            for name in [f"weight_hh_{suffix}" for suffix in self._suffixes()]:
                columns = getattr(self, name).detach()[:, : self.hidden_size // num_heads]
                setattr(self, name, nn.Parameter(columns.clone()))

    def flatten_parameters(self) -> None:
        """Lay the weights out for cuDNN as ``nn.LSTM`` does, but not with heads: it has none."""
        if self.num_heads == 1 and isinstance(self.hidden_size, int):
            super().flatten_parameters()

    def _bound(self, weight_hh: Tensor) -> float:
        """The largest weight that is drawn; ``H**-0.5`` differs in the last bit."""
        return 1.0 / math.sqrt(weight_hh.shape[0] // 4)

    def _suffixes(self) -> list[str]:
        directions = ["", "_reverse"] if self.bidirectional else [""]
        return [f"l{layer}{d}" for layer in range(self.num_layers) for d in directions]

    def _current_weights(self) -> list[Tensor]:
        """The weights that ``nn.LSTM`` would use, in the order of ``_flat_weights``.

        These are the parameters, or the tensors in ``_flat_weights`` if other code put some there
        and no parameter has been replaced since.
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
        # A parameter was replaced, but not by setattr. Tensors that functional_call and parametrize
        # put there are not kept: they live no longer than the call, and cannot be copied.
        if not torch.compiler.is_compiling() and {*map(type, named)} == {nn.Parameter}:
            self._keep_flat_weights(named)
        return named

    def weights(self) -> list[LSTMWeights]:
        """The parameters, one entry a layer and direction, in the order of h_0.

        Raises:
            TypeError: a parameter was replaced by None.
            RuntimeError: a size or an option of the module was changed and its parameters were not,
                or the reverse; ``nn.LSTM`` computes with whatever it finds in memory then.
        """
        kinds = len(self._all_weights[0])
        asked = 2 + 2 * self.bias + (self.proj_size > 0)
        if len(self._all_weights) != self.num_layers * (1 + self.bidirectional) or kinds != asked:
            raise RuntimeError(
                "num_layers, bidirectional, bias, proj_size: expected what the module was made "
                f"with, {len(self._all_weights)} layers and directions of {kinds} weights each, "
                f"got {self.num_layers}, {self.bidirectional}, {self.bias}, {self.proj_size}"
            )
        current, weights = iter(self._current_weights()), []
        for names in self._all_weights:  # with biases if there are any, and weight_hr if there is
            w_ih, w_hh, *rest = own = tuple(islice(current, len(names)))
            b_ih, b_hh = rest[:2] if self.bias else (None, None)
            w_hr = rest[-1] if self.proj_size else None
            w_ch = getattr(self, names[0].replace("ih", "ch")) if self.peephole else None
            if NoneType in map(type, own) or (w_ch is None and self.peephole):
                pairs = zip((*names, names[0].replace("ih", "ch")), (*own, w_ch), strict=True)
                missing = next(name for name, weight in pairs if weight is None)
                raise TypeError(f"{missing}: expected a Tensor, got NoneType")
            weights.append(LSTMWeights(w_ih, w_hh, b_ih, b_hh, w_ch, w_hr))
        check_sizes(self, weights[0], "_l0")
        return weights

    def problem(self, input: Tensor | PackedSequence | None = None) -> Problem:
        """The question that a call with this input puts to the backends, for ``explain``."""
        if input is None:
            input = self.weight_ih_l0.new_empty(EXAMPLE_STEPS, EXAMPLE_BATCH, self.input_size)
            if self.batch_first:
                input = input.transpose(0, 1)
        batch_sizes = input.batch_sizes if isinstance(input, PackedSequence) else None
        if not isinstance(input, PackedSequence):
            check_input(input, None)
            input = input if input.dim() == 3 else input.unsqueeze(0 if self.batch_first else 1)
        layout = SequenceLayout([False, True][: 1 + self.bidirectional], None, batch_sizes)
        data, weights = input.data if isinstance(input, PackedSequence) else input, self.weights()
        autocast, n = autocast_dtype(data), self.num_heads
        layers = make_layers(input, None, weights, layout, self.batch_first, autocast, n)
        layers = layers._replace(dropout=self.dropout if self.training else 0.0)
        options = self._active_options(self._endings()).in_mode(self.training)
        layers = layers._replace(options=options, training=self.training)
        every = steps_between_checkpoints(self.checkpoint_every)
        return pose_problem(layers, Wanted(checkpoint_every=every), "lstm")[2]

    def _weights_for(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None
    ) -> tuple[list[LSTMWeights], Any]:
        """The weights that a call computes with, and the cache of each layer."""
        weights = self.weights()
        if not isinstance(self._packed, RoundedWeights):
            return weights, self._packed
        data = input.data if isinstance(input, PackedSequence) else input
        tensors = (data, *(hx or ()), *(w for own in weights for w in own if w is not None))
        # A compiler cannot follow requires_grad(), which looks into transforms.
        asks = attrgetter("requires_grad") if torch.compiler.is_compiling() else requires_grad
        if torch.is_grad_enabled() and any(map(asks, tensors)):
            return weights, None
        return self._packed.of(weights, 1 + self.bidirectional)
