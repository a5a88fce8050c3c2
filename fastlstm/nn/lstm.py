"""``LSTM``: the module of ``torch.nn``, argument for argument, over the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence

from fastlstm._C import direct_lstm
from fastlstm.backends.select import check_backend
from fastlstm.checks import check_input
from fastlstm.functional import lstm
from fastlstm.layout_checks import steps_between_checkpoints, tensor_of
from fastlstm.nn import layer_sizes
from fastlstm.nn.direct import normalize_for_call, record
from fastlstm.nn.layer_sizes import check_sized_layers, resize_layers, sizes_of_layers
from fastlstm.nn.lstm_base import BEYOND_TORCH, LSTMBase, options_repr
from fastlstm.nn.options import check_forget_bias
from fastlstm.options import PLAIN, LSTMOptions


class LSTM(LSTMBase):
    """Apply a multi-layer LSTM to a sequence, as :class:`torch.nn.LSTM`, over the fused kernels.

    Positional arguments, parameter names, shapes, initialisation (the same numbers from the same
    seed) and ``state_dict`` are those of ``nn.LSTM``. With ``peephole=True`` each layer and
    direction has one more parameter, ``weight_ch_l0`` (3H): peepholes, which are diagonal
    connections from the cell state to the gates i, f and o (Gers and Schmidhuber, 2000)::

        i_t = sigmoid(W_ii x_t + W_hi h_{t-1} + w_ci * c_{t-1} + b_i)
        f_t = sigmoid(W_if x_t + W_hf h_{t-1} + w_cf * c_{t-1} + b_f)
        g_t = tanh   (W_ig x_t + W_hg h_{t-1}                  + b_g)
        c_t = f_t * c_{t-1} + i_t * g_t
        o_t = sigmoid(W_io x_t + W_ho h_{t-1} + w_co * c_t     + b_o)
        h_t = o_t * tanh(c_t)

    With ``num_heads=n`` the units are n heads of H / n (Pöppel, Beck and Hochreiter, 2024,
    "FlashRNN: I/O-aware optimization of traditional RNNs on modern hardware"). The gates of a unit
    read the whole x, but only the h of its own head: each W_h. is block-diagonal, and
    ``weight_hh_l0`` (4H, H / n) has only the blocks, row by row::

        W_h. h_{t-1} = [W_h.^1 h_{t-1}^1, ..., W_h.^n h_{t-1}^n]    h^k: the h of head k

    docs/options.md has the equations and the costs of the options from ``layer_norm`` to
    ``cell_clip``. First gradients, ``torch.func.vmap`` and ``torch.func.grad`` run in the backend's
    kernels, second derivatives and forward mode in plain torch; see
    :func:`fastlstm.lstm_sequence`.

    Sizes: T time steps, a batch of B rows, I input_size, H hidden_size, L num_layers, D directions
    (2 if bidirectional, else 1), and P, the size of h: proj_size, or H without a projection.

    Args:
        input_size, num_layers, bias, batch_first: as in ``nn.LSTM``.
        hidden_size: H, as in ``nn.LSTM``, or a list with the size of each layer. h_n and c_n, and
            h_0 and c_0, are then tuples with a tensor (D, B, H) for each layer. Sizes that differ
            exclude proj_size, learn_initial_state and num_heads.
        dropout, bidirectional, proj_size, device, dtype: as in ``nn.LSTM``.
        peephole: add the peephole connections. Default: False.
        learn_initial_state: add the parameters ``h_0`` (L * D, P) and ``c_0`` (L * D, H), which are
            zero at first: the states from which every row starts when no hx is given.
            Default: False.
        layer_norm: normalise W_ih x, W_hh h and c in every step (Ba, Kiros and Hinton, 2016). Each
            layer and direction has four more parameters: the gains ``weight_ln_ih_l0`` (4H),
            ``weight_ln_hh_l0`` (4H) and ``weight_ln_c_l0`` (H), and ``bias_ln_c_l0`` (H). The
            biases of the first two norms are ``bias_ih_l0`` and ``bias_hh_l0``. Not with num_heads.
            Default: False.
        recurrent_dropout: p, in training the probability with which a unit of h is zero in W_hh h,
            by one mask for each sequence (Gal and Ghahramani, 2016). Default: 0.
        weight_dropout: p, in training the probability with which a number of W_hh is zero, by one
            mask for each call (DropConnect; Merity, Keskar and Socher, 2018). Default: 0.
        zoneout: (p_h, p_c), in training the probabilities with which a unit of h and of c keeps its
            value of the step before; in evaluation the shares that it keeps (Krueger et al., 2017).
            Default: (0, 0).
        variational_dropout: p, as dropout, but a unit is dropped in all steps of a sequence. Not
            with dropout. Default: 0.
        forget_bias: the value at which the bias of the forget gate starts. Default: None, it is
            drawn like the others.
        cell_clip: v, c is clipped to -v..v in every step, as TensorFlow's ``cell_clip`` does it.
            Default: None, no limit.
        checkpoint_every: k, to save memory in training: only the state before every k-th step is
            kept, 2H/k numbers a step and layer in the place of 5H. The backward pass runs k steps
            again at a time. A training step takes 1.1 to 1.3 times as long, and the gradients are
            the same; on the cpu backend bit for bit, except in float16. "auto" is 128. See also
            ``return_sequence`` of :meth:`forward`. Default: None, every step is kept.
        num_heads: n, the number of heads, a divisor of H. Not with proj_size. On a CPU heads save
            time from 16 units each on. Default: 1, all units are one head.
        backend: "auto", which is the fastest backend that can run the call, or the name of one; see
            :func:`fastlstm.explain`. Default: "auto".

    Raises:
        TypeError, ValueError: as ``nn.LSTM`` does.
        TypeError: ``checkpoint_every`` is neither None, an integer nor a string, or ``num_heads``
            no integer.
        ValueError: a probability outside 0..1, a cell_clip that is not above 0, a forget_bias with
            bias=False, or sizes that are not num_layers in number.
        ValueError: ``checkpoint_every`` is below 1 or another string than "auto", ``num_heads`` is
            no divisor of H, or not 1 beside proj_size, or there is no backend of that name.

    Example:
        >>> lstm = fastlstm.LSTM(10, 20, num_layers=2, peephole=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))
        >>> fastlstm.LSTM(10, 20, num_heads=4).weight_hh_l0.shape  # 4 heads of 5 units
        torch.Size([80, 5])
    """

    h_0: Tensor
    c_0: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
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
        num_heads: int = 1,
        layer_norm: bool = False,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: tuple[float, float] = (0.0, 0.0),
        variational_dropout: float = 0.0,
        forget_bias: float | None = None,
        cell_clip: float | None = None,
        backend: str = "auto",
    ) -> None:
        sizes = sizes_of_layers(hidden_size, num_layers)
        super().__init__(
            "LSTM",
            input_size,
            sizes[0] if isinstance(sizes, tuple) else sizes,
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
        dropouts = (recurrent_dropout, weight_dropout, zoneout, variational_dropout)
        self.cell_options = LSTMOptions(*dropouts, cell_clip)
        check_forget_bias(forget_bias, bias)
        self._forget_bias = forget_bias
        self._has_norms = layer_norm
        if isinstance(sizes, tuple):
            check_sized_layers(proj_size, learn_initial_state, num_heads)
            resize_layers(self, sizes)
        else:
            self._divide_into_heads(num_heads)
        if layer_norm and num_heads > 1:
            raise ValueError(f"layer_norm: expected False with num_heads={num_heads}; got True")
        for ending in self._endings():
            like = getattr(self, f"weight_hh{ending}")
            if peephole:
                weight_ch = nn.Parameter(like.new_empty(3 * like.shape[0] // 4))
                self.register_parameter(f"weight_ch{ending}", weight_ch)
                nn.init.uniform_(weight_ch, -(bound := self._bound(like)), bound)
            if layer_norm:
                self._add_norms(ending, like)
        if isinstance(sizes, tuple):
            self.reset_parameters()
        self._reset_options()
        if learn_initial_state:
            rows = len(self._suffixes())
            like, H = self.weight_hh_l0, self.weight_hh_l0.shape[0] // 4
            self.h_0 = nn.Parameter(like.new_zeros(rows, proj_size or H))
            self.c_0 = nn.Parameter(like.new_zeros(rows, H))

    def reset_parameters(self) -> None:
        """Draw all weights again, as ``nn.LSTM`` does; set learnt initial states to zero."""
        bound = self._bound(self.weight_hh_l0)
        for name, parameter in self.named_parameters():
            if name in ("h_0", "c_0"):
                nn.init.zeros_(parameter)
                continue
            if isinstance(self.hidden_size, tuple):
                bound = self._bound(getattr(self, f"weight_hh{name[name.rindex('_l') :]}"))
            nn.init.uniform_(parameter, -bound, bound)
        self._reset_options()

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
        """Apply the layers, as ``nn.LSTM`` does.

        Args:
            input: (T, B, I), (B, T, I) if batch_first, (T, I) for a single sequence, or a
                PackedSequence.
            hx: (h_0, c_0), of shapes (L * D, B, P) and (L * D, B, H), without B for a single
                sequence. Default: zeros, or the parameters of ``learn_initial_state``.
            lengths: (B,) integers in 1..T, in any order, the steps of each row of a padded
                batch; a tensor, list or array. The output is zero after them, and (h_n, c_n) is the
                state at each row's last step. Only with a padded batch. Default: all T.
            reset: (T, B) booleans, (B, T) if batch_first, (T,) for a single sequence; a tensor,
                list or array. True where a row begins a new sequence, as at the start of an
                episode: no state crosses from the step before, in either direction, and at the
                first step hx is dropped. Not with a PackedSequence. Default: none.
            return_all_cells: return a third item, the cell state of the last layer at every step,
                (T, B, D * H) in the layout of the output. Default: False.
            return_sequence: return the output; if False, None in its place, which saves its memory
                in inference and with ``checkpoint_every``. Default: True.

        Returns:
            output (T, B, D * P) in the layout of the input, and (h_n, c_n) with the shapes of hx;
            with ``return_all_cells`` then the cell states.

        Raises:
            AttributeError, IndexError, RuntimeError, TypeError, ValueError: as ``nn.LSTM`` and
                :func:`fastlstm.lstm_sequence` do.
        """
        is_usual = return_sequence and not return_all_cells and type(self).weights is LSTM.weights
        options = PLAIN
        if self.cell_options is not PLAIN or self._has_norms:
            options = self._active_options(self._endings()).in_mode(self.training)
            # What is computed between two layers is not direct.
            between = options.variational_dropout or options.norms is not None
            is_usual &= self.num_layers == 1 or not between
        if isinstance(self.hidden_size, tuple):
            return layer_sizes.forward(
                self,
                input,
                hx,
                lengths=lengths,
                reset=reset,
                return_all_cells=return_all_cells,
                return_sequence=return_sequence,
            )
        if is_usual and not is_compiling():
            some = None if options is PLAIN else options
            normalize = None if options.norms is None else partial(normalize_for_call, options)
            outputs = direct_lstm(self, record, input, hx, lengths, reset, some, normalize)
            if outputs is not None:
                return outputs
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
        weights, prepacked = self._weights_for(input, hx)
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
            num_heads=self.num_heads,
            prepacked=prepacked,
            options=options,
            backend=self.backend,
        )
        if not batched:
            time = 0 if self.batch_first else 1
            output, *cells = (s if s is None else s.squeeze(time) for s in (output, *cells))
            hy, cy = hy.squeeze(1), cy.squeeze(1)
        return output, (hy, cy), *cells

    def _initial_state(self, input: Tensor | PackedSequence) -> tuple[Tensor, Tensor]:
        """The parameters h_0 and c_0 for each row, as views."""
        if isinstance(input, PackedSequence):
            B = int(input.batch_sizes[0])
        else:
            B = input.shape[0 if self.batch_first else 1]
        return (
            self.h_0.unsqueeze(1).expand(-1, B, -1),
            self.c_0.unsqueeze(1).expand(-1, B, -1),
        )

    def extra_repr(self) -> str:
        """The text of nn.LSTM, with the options that are on."""
        beyond = ("peephole", "learn_initial_state", "checkpoint_every", "num_heads")
        return super().extra_repr() + options_repr(self, *beyond)
