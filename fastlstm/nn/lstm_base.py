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

from fastlstm.backends.cpu.prepacked import PrepackedWeights
from fastlstm.backends.cpu.stored import RoundedWeights
from fastlstm.call import LSTMWeights
from fastlstm.checks import check_num_heads
from fastlstm.nn.scripting import TorchLSTM
from fastlstm.nn.stream import Stream
from fastlstm.tracing import requires_grad

if TYPE_CHECKING:
    from typing_extensions import Self

# Attributes of every module of ours, on top of those of torch's. __module__ makes torch.fx record
# the module as one call, as it does nn.LSTM. The tracers of torch.fx and of quantization look into
# every module whose __module__ is not under torch.nn, and cannot follow our code, which branches on
# shapes. The class keeps its own name, which pickle and documentation use.
BEYOND_TORCH = {"__module__": TorchLSTM.__module__, "peephole": False, "backend": "auto"}


def check_sizes(
    module: nn.RNNBase | nn.RNNCellBase, weights: LSTMWeights, suffix: str = ""
) -> None:
    """RuntimeError where a weight or a size of a module was changed and the other was not.

    ``weights`` are those of layer 0; the others are compared with them in every call.
    """
    if module.peephole and weights.weight_ch is None:
        raise TypeError(f"weight_ch{suffix}: expected a Tensor, got NoneType")
    H, P, n = module.hidden_size, getattr(module, "proj_size", 0), getattr(module, "num_heads", 1)
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


def options_repr(module: nn.Module, *names: str) -> str:
    """The options of these names that are on, and the backend, for ``extra_repr``."""
    values = [(name, getattr(module, name)) for name in names]
    one_head = ("num_heads", 1)
    on = "".join(f", {n}={value!r}" for n, value in values if value and (n, value) != one_head)
    return on + (f", backend={module.backend!r}" if module.backend != "auto" else "")


class LSTMBase(nn.RNNBase):
    """``nn.RNNBase`` with all that ``nn.LSTM`` adds to it, except forward.

    ``nn.LSTM`` itself is no base class of ours: torch.compile breaks the graph at each instance.
    """

    get_expected_cell_size = TorchLSTM.get_expected_cell_size
    check_forward_args = TorchLSTM.check_forward_args  # type: ignore[assignment]
    permute_hidden = TorchLSTM.permute_hidden  # type: ignore[assignment]

    num_heads: int = 1
    # The cache of freeze(); the name is that in pickles of version 0.1.
    _packed: list[PrepackedWeights] | RoundedWeights | None = None

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
        options = {"learn_initial_state": False, "checkpoint_every": None, "num_heads": 1}
        super().__setstate__(BEYOND_TORCH | options | state)

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
        if self.num_heads == 1:
            super().flatten_parameters()

    def _bound(self) -> float:
        """The largest weight that is drawn; ``hidden_size**-0.5`` differs in the last bit."""
        return 1.0 / math.sqrt(self.hidden_size)

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

    def freeze(self, dtype: str | None = None) -> Self:
        """Cache the weights in the CPU kernels' layout between calls in inference; return self.

        Without the cache every call packs the weights into that layout again, which costs time
        where T * B is between some 16 and 200. With it a call computes a checksum of the weights
        and packs them only if they have changed, so that results are always those of the current
        weights. The cache takes as much memory as the weights. Copies and pickles of the module
        are frozen too, with caches of their own. Other backends, calls that record gradients and
        compiled calls do not use it.

        With ``dtype`` every call that records no gradients, on any backend, computes with matrices
        that are rounded to that type; sums and biases are as without. On the CPU calls of up to 4
        rows then read the narrow weights, which bound the speed there: see docs/streaming.md. The
        cache takes 1.5 or 1.25 times the memory of the weights more. ``state_dict``, the parameters
        and training are as without.

        Args:
            dtype: "bfloat16", or "int8" with a scale for each row of each matrix. Relative error
                of 50 steps: 2e-3 and 5e-3. Default: None, the weights are not rounded.

        Raises:
            ValueError: another dtype.

        Example:
            >>> lstm = fastlstm.LSTM(8, 16).eval().freeze()
            >>> with torch.no_grad():
            ...     output, state = lstm(torch.randn(50, 2, 8))
            >>> output.shape
            torch.Size([50, 2, 16])
        """
        if dtype not in (None, "bfloat16", "int8"):
            raise ValueError(f"dtype: expected bfloat16, int8 or None, got {dtype!r}")
        if dtype is None:
            self._packed = [PrepackedWeights() for _ in range(self.num_layers)]
        else:
            self._packed = RoundedWeights(dtype)
        return self

    def unfreeze(self) -> Self:
        """Drop the cache of :meth:`freeze`; return self."""
        self._packed = None
        return self

    def stream(self, batch_size: int, dtype_of_weights: str = "float32") -> Stream:
        """Make an object that runs this LSTM step by step on the CPU and keeps its state.

        It is for inference on data that arrives over time, and packs a snapshot of the weights.
        Sizes, errors and an example are in :class:`fastlstm.Stream`.

        Args:
            batch_size: B, the number of rows.
            dtype_of_weights: "float32", "bfloat16" or "int8", the type in which the stream stores
                weights. Default: "float32".

        Example:
            >>> stream = fastlstm.LSTM(8, 16).stream(2, dtype_of_weights="int8")
            >>> stream.step(torch.randn(2, 8)).shape
            torch.Size([2, 16])
        """
        return Stream(self, batch_size, dtype_of_weights)
