"""``LSTM``: ``torch.nn``'s, argument for argument, over the fused kernels."""

from __future__ import annotations

import math
from itertools import islice
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm.backends.cpu.prepacked import PackedWeights
from fastlstm.backends.select import get
from fastlstm.call import LSTMWeights, Problem
from fastlstm.functional import layers_problem, lstm
from fastlstm.layout_checks import steps_between_checkpoints, tensor_of
from fastlstm.nn.checks import check_attributes, check_input, check_layout
from fastlstm.nn.lstm_base import BEYOND_TORCH, LSTMBase
from fastlstm.nn.scripting import TorchLSTM, arguments_of, scriptable

EXAMPLE_STEPS, EXAMPLE_BATCH = 100, 32  # what explain() assumes without an input


def check_backend(backend: str) -> str:
    """The name as it came; ValueError if no backend has it."""
    if backend != "auto":
        get(backend)
    return backend


def options_repr(module: nn.Module, *names: str) -> str:
    """What ``nn.LSTM``'s repr lacks: the options of these names that are on, and the backend."""
    on = "".join(f", {name}={value!r}" for name in names if (value := getattr(module, name)))
    return on + (f", backend={module.backend!r}" if module.backend != "auto" else "")


class LSTM(LSTMBase):
    """A drop-in for :class:`torch.nn.LSTM`, with optional peepholes and a choice of backend.

    Positional arguments, parameter names, shapes, initialisation (the same draws from the same
    seed) and ``state_dict`` are those of ``nn.LSTM``. With ``peephole=True`` each layer and
    direction has one more parameter, ``weight_ch_l0`` (3H), the diagonal connections from the
    cell state to the gates i, f and o::

        i_t = sigmoid(W_ii x_t + W_hi h_{t-1} + w_ci * c_{t-1} + b_i)
        f_t = sigmoid(W_if x_t + W_hf h_{t-1} + w_cf * c_{t-1} + b_f)
        g_t = tanh   (W_ig x_t + W_hg h_{t-1}                  + b_g)
        c_t = f_t * c_{t-1} + i_t * g_t
        o_t = sigmoid(W_io x_t + W_ho h_{t-1} + w_co * c_t     + b_o)
        h_t = o_t * tanh(c_t)

    Second derivatives and forward mode run in plain torch, ``torch.func.vmap`` and ``grad`` in the
    backend's kernels; see :func:`fastlstm.lstm_sequence`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size,
            device, dtype: as in ``nn.LSTM``.
        peephole: add the peephole connections. Default: False.
        learn_initial_state: add the parameters ``h_0`` (L * D, P) and ``c_0`` (L * D, H), zero at
            first: the states from which every row starts when no hx is given. Default: False.
        checkpoint_every: in training keep the state before every k-th step only, and not what the
            backward pass needs of each step: 2H/k numbers a step and layer in the place of 5H. The
            backward pass then runs k steps once more at a time: gradients are the same, on the cpu
            backend to the bit but in float16, and a training step takes 1.1 to 1.3 times as long.
            "auto" is 128: the states are then below a 60th of the output, and the k steps stay in
            cache. See also ``return_sequence`` of :meth:`forward`. Default: None, keep all.
        backend: "auto" (the fastest that supports the problem) or the name of one; see
            :func:`fastlstm.explain`. Default: "auto".

    Raises:
        TypeError, ValueError: as ``nn.LSTM`` does; for a checkpoint_every that is neither None,
            "auto" nor an integer above 0; ValueError for an unknown backend.
    """

    weight_ih_l0: Tensor
    weight_hh_l0: Tensor
    h_0: Tensor
    c_0: Tensor
    _packed: list[PackedWeights] | None = None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        peephole: bool = False,
        learn_initial_state: bool = False,
        checkpoint_every: int | str | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            device=device,
            dtype=dtype,
        )
        vars(self).update(BEYOND_TORCH)
        self.peephole = peephole
        self.learn_initial_state = learn_initial_state
        steps_between_checkpoints(checkpoint_every)
        self.checkpoint_every = checkpoint_every
        self.backend = check_backend(backend)
        if peephole:
            bound = self._bound()
            for suffix in self._suffixes():
                like = getattr(self, f"weight_hh_{suffix}")
                weight_ch = nn.Parameter(like.new_empty(3 * hidden_size))
                self.register_parameter(f"weight_ch_{suffix}", weight_ch)
                nn.init.uniform_(weight_ch, -bound, bound)
        if learn_initial_state:
            rows = len(self._suffixes())
            self.h_0 = nn.Parameter(self.weight_hh_l0.new_zeros(rows, proj_size or hidden_size))
            self.c_0 = nn.Parameter(self.weight_hh_l0.new_zeros(rows, hidden_size))

    def _bound(self) -> float:
        """Of the draws; ``hidden_size**-0.5`` differs from torch's own formula in the last bit."""
        return 1.0 / math.sqrt(self.hidden_size)

    def reset_parameters(self) -> None:
        """New draws as ``nn.LSTM`` makes them, peepholes too; learnt initial states become zero."""
        bound = self._bound()
        for name, parameter in self.named_parameters():
            if name in ("h_0", "c_0"):
                nn.init.zeros_(parameter)
            else:
                nn.init.uniform_(parameter, -bound, bound)

    def _suffixes(self) -> list[str]:
        directions = ["", "_reverse"] if self.bidirectional else [""]
        return [f"l{layer}{d}" for layer in range(self.num_layers) for d in directions]

    def weights(self) -> list[LSTMWeights]:
        """The parameters, one entry a layer and direction, in the order of h_0."""
        check_layout(self)
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
        return weights

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_all_cells: bool = False,
        return_sequence: bool = True,
    ) -> tuple[Any, ...]:
        """As ``nn.LSTM``: (output, (h_n, c_n)).

        Args:
            input: (T, B, I), (B, T, I) if batch_first, (T, I) for a single sequence, or a
                PackedSequence.
            hx: (h_0, c_0), (L * D, B, P) and (L * D, B, H), without B for a single sequence.
                Default: zeros, or what was learnt with ``learn_initial_state``.
            lengths: (B,) integers in 1..T on a padded batch, a tensor, list or array: another way
                than a PackedSequence to say where each row ends, in any order and without copies.
            reset: (T, B) booleans, (B, T) if batch_first, (T,) for a single sequence, a tensor,
                list or array: true where a row begins anew, as an episode does. No state crosses
                from the step before, in either direction, and at the first step hx is dropped.
                Default: none.
            return_all_cells: return a third item, the cell state of the last layer at every step,
                (T, B, D * H) in the layout of the output. Default: False.
            return_sequence: return the output. If only (h_n, c_n) matters, False returns None in
                its place; in inference, and with ``checkpoint_every``, the last layer's is then
                never in memory. Default: True.

        Raises:
            RuntimeError, ValueError: as ``nn.LSTM`` does.
        """
        batched = True
        if not isinstance(input, PackedSequence):
            check_input(input, hx)
            batched = input.dim() == 3
            if not batched:
                if lengths is not None:
                    raise ValueError("lengths: expected None for unbatched 2-D input")
                input = input.unsqueeze(0 if self.batch_first else 1)
                if reset is not None:
                    reset = tensor_of("reset", reset).unsqueeze(0 if self.batch_first else 1)
                hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        if hx is None and self.learn_initial_state:
            hx = self._initial_state(input)
        weights = self.weights()
        check_attributes(self, weights[0], "_l0")
        output, (hy, cy), *cells = lstm(
            input,
            hx,
            weights,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            dropout=self.dropout,
            training=self.training,
            lengths=lengths,
            reset=reset,
            return_all_cells=return_all_cells,
            return_sequence=return_sequence,
            checkpoint_every=self.checkpoint_every,
            packed=self._packed,
            backend=self.backend,
        )
        if not batched:
            time = 0 if self.batch_first else 1
            output, *cells = (s if s is None else s.squeeze(time) for s in (output, *cells))
            hy, cy = hy.squeeze(1), cy.squeeze(1)
        return output, (hy, cy), *cells

    def _initial_state(self, input: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
        """h_0 and c_0 for each row, as views."""
        if isinstance(input, PackedSequence):
            B = int(input.batch_sizes[0])
        else:
            B = input.shape[0 if self.batch_first else 1]
        return (
            self.h_0.unsqueeze(1).expand(-1, B, -1),
            self.c_0.unsqueeze(1).expand(-1, B, -1),
        )

    def freeze(self) -> LSTM:
        """Keep packed weights from call to call in inference on the CPU, and return self.

        Without it every call of more than some 16 rows of T * B packs the weights anew, which is
        seen where T * B is below 200 or so. With it, the call only sums the weights up, and packs
        them anew where that shows that something was written to them: results are never those of
        old weights, whoever wrote and how. The packed weights take as much memory as the weights
        do. Copies and pickles of the module are frozen too, and pack for themselves. On other
        backends, in calls that need gradients and in compiled ones nothing changes.
        """
        self._packed = [PackedWeights() for _ in range(self.num_layers)]
        return self

    def unfreeze(self) -> LSTM:
        """Keep no packed weights, and return self."""
        self._packed = None
        return self

    def problem(self, input: Tensor | PackedSequence | None = None) -> Problem:
        """What the backends are asked for this input, for :func:`fastlstm.explain`."""
        if input is None:
            input = self.weight_ih_l0.new_empty(EXAMPLE_STEPS, EXAMPLE_BATCH, self.input_size)
            if self.batch_first:
                input = input.transpose(0, 1)
        elif not isinstance(input, PackedSequence) and input.dim() == 2:
            input = input.unsqueeze(0 if self.batch_first else 1)
        D = 2 if self.bidirectional else 1
        problem = layers_problem(input, None, self.weights(), D, self.batch_first, False)
        return problem._replace(
            checkpoint_every=bool(self.checkpoint_every) and problem.requires_grad,
            dropout=self.training and self.dropout > 0,
        )

    def to_torch(self) -> nn.LSTM:
        """An ``nn.LSTM`` with copies of these parameters, which keeps every step in training.

        Raises:
            ValueError: with peepholes or learnt initial states, which ``nn.LSTM`` lacks.
        """
        for name in ("peephole", "learn_initial_state"):
            if getattr(self, name):
                raise ValueError(f"{name}: expected False, nn.LSTM has no such option; got True")
        module = TorchLSTM(**arguments_of(self))
        module.load_state_dict(self.state_dict())
        return module.train(self.training)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles instead: an nn.LSTM that shares these parameters."""
        return scriptable(self, arguments_of(self))

    @classmethod
    def from_torch(
        cls, module: nn.LSTM, backend: str = "auto", checkpoint_every: int | str | None = None
    ) -> LSTM:
        """An LSTM with copies of the parameters of an ``nn.LSTM``.

        Raises:
            TypeError: the module is no LSTM.
            ValueError: an unknown backend.
        """
        if not isinstance(module, (TorchLSTM, LSTM)):
            raise TypeError(f"module: expected an nn.LSTM, got {type(module).__name__}")
        options: dict[str, Any] = {"backend": backend, "checkpoint_every": checkpoint_every}
        ours = cls(**arguments_of(module), **options)
        ours.load_state_dict(module.state_dict())
        return ours.train(module.training)

    def extra_repr(self) -> str:
        """nn.LSTM's, with what differs from its defaults."""
        return super().extra_repr() + options_repr(
            self, "peephole", "learn_initial_state", "checkpoint_every"
        )
