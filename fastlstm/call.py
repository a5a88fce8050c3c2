"""What passes between the layers of the library: weights, ways through time, calls, problems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor


class LSTMWeights(NamedTuple):
    """The parameters of one layer in one direction, under ``nn.LSTM``'s names.

    H is hidden_size, I the layer's input size and P the size of its output: proj_size if there
    is a projection, else H. Rows are in gate order i, f, g, o.
    """

    weight_ih: Tensor
    """(4H, I)"""
    weight_hh: Tensor
    """(4H, P)"""
    bias_ih: Tensor | None = None
    """(4H)"""
    bias_hh: Tensor | None = None
    """(4H)"""
    weight_ch: Tensor | None = None
    """(3H) peepholes in order i, f, o"""
    weight_hr: Tensor | None = None
    """(P, H) projection of the output"""

    @property
    def bias(self) -> Tensor | None:
        """The sum of both biases, which is all that the equations see."""
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_hh if self.bias_ih is None else self.bias_ih
        return self.bias_ih + self.bias_hh


class Course(NamedTuple):
    """How groups and rows go through time: the last arguments of every backend's functions."""

    reverse: Sequence[bool]
    """(G) true for a group that reads from the last step to the first"""
    lengths: Tensor | None = None
    """(B) steps of each row; None: all T"""
    batch_sizes: Tensor | None = None
    """(T) rows of each step, never more than of the step before: the input is a PackedSequence's
    data, and so is the output; None: every step has B rows"""
    reset: Tensor | None = None
    """(T, B) true where no state may cross from the step before, in either direction; None: no"""


class Call(NamedTuple):
    """What both ops have in common: all that the outputs are a function of."""

    input: Tensor
    weight_ih: list[Tensor]
    bias_ih: list[Tensor]
    bias_hh: list[Tensor]
    weight_hh: list[Tensor]
    weight_ch: list[Tensor]
    weight_hr: list[Tensor]
    hx: Tensor
    cx: Tensor
    reverse: Sequence[bool]
    lengths: Tensor | None
    batch_sizes: Tensor | None
    reset: Tensor | None

    @property
    def course(self) -> Course:
        """The way through time."""
        return Course(*self[-4:])

    @property
    def groups(self) -> tuple[list[Tensor], ...]:
        """The lists of weights, from weight_ih to weight_hr."""
        return self[1:7]

    @property
    def tensors(self) -> list[Tensor]:
        """Those that have gradients: input, hx, cx and all weights."""
        return [self.input, self.hx, self.cx, *chain.from_iterable(self.groups)]

    def replace_tensors(self, tensors: Iterable[Any]) -> Call:
        """The same call with others in the place of ``self.tensors``, or their gradients."""
        input, hx, cx, *weights = tensors
        groups = split(weights, [len(group) for group in self.groups])
        return Call._make((input, *groups, hx, cx, *self.course))


def split(items: Iterable[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Lists of those sizes, in order."""
    items = iter(items)
    return [list(islice(items, size)) for size in sizes]


class Problem(NamedTuple):
    """All that a backend may need to know to say yes or no.

    Attributes:
        device: where the tensors are, "cpu", "cuda", ...
        dtype: that is computed in.
        T, B, G, H: time steps, batch, groups (2 for a bidirectional layer), hidden units.
        I, L: input size (0: the input is igates) and layers.
        peephole: with peephole connections.
        proj_size: size of the projected hidden state, 0 for none.
        lengths: rows have lengths of their own.
        batch_sizes: they come as a PackedSequence's, and so do input and output.
        reset: a mask says where states start afresh.
        return_all_cells: the cell state of every step is asked for.
        dropout: outputs between layers are dropped at random.
        checkpoint_every: a backward pass will have only the state before every k-th step.
        whole_layers: the input and all layers' weights are at hand, not only projected igates.
        transformed: inside of ``torch.func.vmap``, or in forward mode.
        cell: a single call of LSTMCell, for which PyTorch has a function of its own.
        requires_grad: gradients of the input, the states or the weights are recorded, whatever the
            module's own mode, training or eval, is.
    """

    device: str
    dtype: torch.dtype
    T: int
    B: int
    G: int
    H: int
    I: int = 0
    L: int = 1
    peephole: bool = False
    proj_size: int = 0
    lengths: bool = False
    batch_sizes: bool = False
    reset: bool = False
    return_all_cells: bool = False
    dropout: bool = False
    checkpoint_every: bool = False
    whole_layers: bool = False
    transformed: bool = False
    cell: bool = False
    requires_grad: bool = False


def problem_of(call: Call, return_all_cells: bool, has_checkpoints: bool) -> Problem:
    """What a backend is asked about one call of the sequence op."""
    rows = call.input.shape[0] if call.batch_sizes is None else call.batch_sizes.shape[0]
    G, B, H = call.cx.shape
    return Problem(
        device=call.input.device.type,
        dtype=call.input.dtype,
        T=rows,
        B=B,
        G=G,
        H=H,
        I=call.weight_ih[0].shape[1] if call.weight_ih else 0,
        peephole=bool(call.weight_ch),
        proj_size=call.weight_hr[0].shape[0] if call.weight_hr else 0,
        lengths=call.lengths is not None or call.batch_sizes is not None,
        batch_sizes=call.batch_sizes is not None,
        reset=call.reset is not None,
        return_all_cells=return_all_cells,
        checkpoint_every=has_checkpoints,
    )
