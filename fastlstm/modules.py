"""``LSTM`` and ``LSTMCell``: ``torch.nn``'s, argument for argument, over the fused kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm.backends import cpu
from fastlstm.dispatch import get, select
from fastlstm.functional import cell_problem, layers_problem, lstm, lstm_cell, pack_weights
from fastlstm.types import LSTMWeights, Problem

_EXAMPLE_STEPS, _EXAMPLE_BATCH = 100, 32  # what explain() assumes without an input


def _check_backend(backend: str) -> str:
    if backend != "auto":
        get(backend)
    return backend


class LSTM(nn.RNNBase):
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
        backend: "auto" (the fastest that supports the problem) or the name of one; see
            :func:`fastlstm.explain`. Default: "auto".

    Raises:
        TypeError, ValueError: as ``nn.LSTM`` does; ValueError for an unknown backend.
    """

    weight_ih_l0: Tensor
    _frozen: tuple[list[LSTMWeights], list[Tensor | None]] | None = None

    def __init__(
        self, *args: Any, peephole: bool = False, backend: str = "auto", **kwargs: Any
    ) -> None:
        super().__init__("LSTM", *args, **kwargs)
        self.peephole = peephole
        self.backend = _check_backend(backend)
        if peephole:
            for suffix in self._suffixes():
                like = getattr(self, f"weight_hh_{suffix}")
                weight_ch = nn.Parameter(like.new_empty(3 * self.hidden_size))
                self.register_parameter(f"weight_ch_{suffix}", weight_ch)
                nn.init.uniform_(weight_ch, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def _suffixes(self) -> list[str]:
        directions = ["", "_reverse"] if self.bidirectional else [""]
        return [f"l{layer}{d}" for layer in range(self.num_layers) for d in directions]

    def weights(self) -> list[LSTMWeights]:
        """The parameters, one entry a layer and direction, in the order of h_0."""
        there = (True, True, self.bias, self.bias, self.peephole, self.proj_size > 0)
        kinds = tuple(zip(LSTMWeights._fields, there, strict=True))
        return [
            LSTMWeights._make(
                getattr(self, f"{name}_{suffix}") if has else None for name, has in kinds
            )
            for suffix in self._suffixes()
        ]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        return_all_cells: bool = False,
    ) -> tuple[Any, ...]:
        """As ``nn.LSTM``: (output, (h_n, c_n)).

        Args:
            input: (T, B, I), (B, T, I) if batch_first, (T, I) for a single sequence, or a
                PackedSequence.
            hx: (h_0, c_0), (L * D, B, P) and (L * D, B, H), without B for a single sequence.
                Default: zeros.
            lengths: (B,) integers in 1..T on a padded batch: another way than a PackedSequence to
                say where each row ends, in any order and without copies.
            reset: (T, B) booleans, (B, T) if batch_first, (T,) for a single sequence: true where
                a row begins anew, as an episode does. No state crosses from the step before, in
                either direction, and at the first step hx is dropped. Default: none.
            return_all_cells: return a third item, the cell state of the last layer at every step,
                (T, B, D * H) in the layout of the output. Default: False.

        Raises:
            RuntimeError, ValueError: as ``nn.LSTM`` does.
        """
        batched = True
        if not isinstance(input, PackedSequence):
            if input.dim() not in (2, 3):
                raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {input.dim()}D instead")
            batched = input.dim() == 3
            if hx is not None and any(state.dim() != input.dim() for state in hx):
                kind = "batched 3-D" if batched else "unbatched 2-D"
                raise RuntimeError(
                    f"For {kind} input, hx and cx should also be {input.dim()}-D but got "
                    f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
                )
            if not batched:
                if lengths is not None:
                    raise ValueError("lengths: expected None for unbatched 2-D input")
                input = input.unsqueeze(0 if self.batch_first else 1)
                reset = None if reset is None else reset.unsqueeze(0 if self.batch_first else 1)
                hx = None if hx is None else (hx[0].unsqueeze(1), hx[1].unsqueeze(1))
        weights, packed = self._weights_for(input, hx, lengths)
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
            packed=packed,
            backend=self.backend,
        )
        if not batched:
            output, *cells = (s.squeeze(0 if self.batch_first else 1) for s in (output, *cells))
            hy, cy = hy.squeeze(1), cy.squeeze(1)
        return output, (hy, cy), *cells

    def freeze(self) -> LSTM:
        """Keep a packed copy of the weights for inference on the CPU, and return self.

        Without it every call packs the weights anew, which is seen where T or T * B is small.
        With it, whatever is written to the parameters afterwards goes unseen by inference until
        the next ``freeze()`` or :meth:`unfreeze`: a write cannot be noticed reliably, which is
        why this is never done unasked. Loading a state_dict, and moving or casting the module,
        unfreeze it. Calls that need gradients read the parameters, and so do calls under autocast
        in another dtype than theirs. Copies, pickles and state_dicts of the module are not frozen.
        On other backends nothing changes.
        """
        D = 2 if self.bidirectional else 1
        weights = self.weights()
        with torch.no_grad():
            packed = [
                pack_weights([w.weight_ih for w in layer], [w.weight_hh for w in layer])
                for layer in (weights[start : start + D] for start in range(0, len(weights), D))
            ]
            kept = [
                LSTMWeights(
                    w.weight_ih.detach(),  # packed above: only their sizes are looked at
                    w.weight_hh.detach(),
                    *(None if tensor is None else tensor.clone() for tensor in w[2:]),
                )
                for w in weights
            ]
        self._frozen = kept, packed
        return self

    def unfreeze(self) -> LSTM:
        """Forget what :meth:`freeze` packed, and return self."""
        self._frozen = None
        return self

    def _weights_for(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None,
        lengths: Tensor | None,
    ) -> tuple[list[LSTMWeights], list[Tensor | None] | None]:
        """The frozen weights where the cpu backend infers in their dtype, else the parameters."""
        if self._frozen is None:
            return self.weights(), None
        data = input.data if isinstance(input, PackedSequence) else input
        if torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (data, *(hx or ()), *self.parameters())
        ):
            return self.weights(), None
        weights, _ = self._frozen
        D = 2 if self.bidirectional else 1
        problem = layers_problem(input, weights, D, self.batch_first, lengths is not None)
        if problem.dtype != weights[0].weight_hh.dtype or select(problem, self.backend) is not cpu:
            return self.weights(), None
        return self._frozen

    def _apply(self, fn: Any, recurse: bool = True) -> LSTM:
        self.unfreeze()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unfreeze()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_frozen": None}

    def problem(self, input: Tensor | PackedSequence | None = None) -> Problem:
        """What the backends are asked for this input, for :func:`fastlstm.explain`."""
        if input is None:
            input = self.weight_ih_l0.new_empty(_EXAMPLE_STEPS, _EXAMPLE_BATCH, self.input_size)
            if self.batch_first:
                input = input.transpose(0, 1)
        elif not isinstance(input, PackedSequence) and input.dim() == 2:
            input = input.unsqueeze(0 if self.batch_first else 1)
        D = 2 if self.bidirectional else 1
        return layers_problem(input, self.weights(), D, self.batch_first, False)

    def to_torch(self) -> nn.LSTM:
        """An ``nn.LSTM`` with copies of these parameters.

        Raises:
            ValueError: with peepholes, which ``nn.LSTM`` lacks.
        """
        if self.peephole:
            raise ValueError("peephole: expected False, nn.LSTM has no peepholes; got True")
        module = nn.LSTM(**_arguments(self))
        module.load_state_dict(self.state_dict())
        return module.train(self.training)

    @classmethod
    def from_torch(cls, module: nn.LSTM, backend: str = "auto") -> LSTM:
        """An LSTM with copies of the parameters of an ``nn.LSTM``."""
        ours = cls(**_arguments(module), backend=backend)
        ours.load_state_dict(module.state_dict())
        return ours.train(module.training)

    def extra_repr(self) -> str:
        """nn.LSTM's, with what differs from its defaults."""
        return super().extra_repr() + _extra_repr(self)


def _arguments(module: nn.RNNBase) -> dict[str, Any]:
    names = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    )
    weight = module.weight_ih_l0
    arguments = {name: getattr(module, name) for name in names}
    return arguments | {"device": weight.device, "dtype": weight.dtype}


def _extra_repr(module: LSTM | LSTMCell) -> str:
    peephole = ", peephole=True" if module.peephole else ""
    return peephole + (f", backend={module.backend!r}" if module.backend != "auto" else "")


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
        self.peephole = peephole
        self.backend = _check_backend(backend)
        if peephole:
            self.weight_ch = nn.Parameter(self.weight_hh.new_empty(3 * hidden_size))
            nn.init.uniform_(self.weight_ch, -(hidden_size**-0.5), hidden_size**-0.5)
        else:
            self.register_parameter("weight_ch", None)

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
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        for index, state in enumerate(() if hx is None else hx):
            if state.dim() not in (1, 2):
                raise ValueError(
                    f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead"
                )
            if state.dim() != input.dim():
                raise RuntimeError(
                    f"LSTMCell: Expected hx[{index}] to be {input.dim()}D, as the input is, "
                    f"got {state.dim()}D instead"
                )
        if input.dim() == 2:
            return lstm_cell(input, hx, self.weights(), backend=self.backend)
        hx = None if hx is None else (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        hy, cy = lstm_cell(input.unsqueeze(0), hx, self.weights(), backend=self.backend)
        return hy.squeeze(0), cy.squeeze(0)

    def problem(self, input: Tensor | None = None) -> Problem:
        """What the backends are asked for this input, for :func:`fastlstm.explain`."""
        if input is None:
            input = self.weight_ih.new_empty(_EXAMPLE_BATCH, self.input_size)
        return cell_problem(torch.atleast_2d(input), self.weights())

    def extra_repr(self) -> str:
        """nn.LSTMCell's, with what differs from its defaults."""
        return super().extra_repr() + _extra_repr(self)
