"""The objects that a call is made of, from the module down to the kernels.

A :class:`Call` is what the outputs are a function of, :class:`Wanted` which outputs are computed
and what is kept, :class:`Results` the outputs. The backward pass takes the call, what the forward
pass :class:`Saved` and the :class:`OutputGradients`, and returns :class:`Gradients`.

Sizes: T time steps, B rows of the batch, G groups (LSTMs of one shape side by side, 2 for a
bidirectional layer), I input size, H hidden size, and P the size of h: H, or the size of its
projection. N is the number of rows of a PackedSequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm.options import PLAIN, CellOptions, LSTMOptions


class LSTMWeights(NamedTuple):
    """The parameters of one layer in one direction, under the names of ``torch.nn.LSTM``.

    H is hidden_size, I the layer's input size, and P the size of its output: proj_size if there
    is a projection, else H. Rows are in gate order i, f, g, o.

    Attributes:
        weight_ih: (4H, I).
        weight_hh: (4H, P).
        bias_ih, bias_hh: (4H) each. Default: None, no bias.
        weight_ch: (3H), the peepholes of the gates i, f, o. Default: None, no peepholes.
        weight_hr: (P, H), the projection of the output. Default: None, no projection.

    Example:
        >>> weights = fastlstm.LSTMWeights(torch.randn(16, 3), torch.randn(16, 4))
        >>> y, (h, c) = fastlstm.lstm(torch.randn(5, 2, 3), None, [weights])
        >>> y.shape
        torch.Size([5, 2, 4])
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
        """The sum of both biases; the equations contain nothing else of them."""
        if self.bias_ih is None or self.bias_hh is None:
            return self.bias_hh if self.bias_ih is None else self.bias_ih
        return self.bias_ih + self.bias_hh


class GroupWeights(NamedTuple):
    """The parameters of G groups: each field a list with one tensor a group, or an empty list."""

    weight_ih: Sequence[Tensor]
    """(4H, I); empty if the input is igates"""
    weight_hh: Sequence[Tensor]
    """(4H, P)"""
    bias_ih: Sequence[Tensor] = ()
    """(4H)"""
    bias_hh: Sequence[Tensor] = ()
    """(4H)"""
    weight_ch: Sequence[Tensor] = ()
    """(3H)"""
    weight_hr: Sequence[Tensor] = ()
    """(P, H)"""

    def of(self, groups: slice) -> GroupWeights:
        """The parameters of some of the groups."""
        return GroupWeights(*[parameter[groups] for parameter in self])


class SequenceLayout(NamedTuple):
    """The order in which groups and rows read the time steps."""

    reverse: Sequence[bool]
    """(G) true for a group that reads from the last step to the first"""
    lengths: Tensor | None = None
    """(B) steps of each row; None: all T"""
    batch_sizes: Tensor | None = None
    """(T) rows of each step, never more than at the step before: the input is the data of a
    PackedSequence, and so is the output; None: every step has B rows"""
    reset: Tensor | None = None
    """(T, B) true where no state crosses from the step before, in either direction; None: none"""


def rows_of_packed(batch_sizes: Tensor, B: int) -> Tensor:
    """(N) the row of the batch of each row of packed data: a step has the first rows."""
    there = torch.arange(B, device="cpu") < batch_sizes.unsqueeze(1)
    return there.nonzero()[:, 1]


class Call(NamedTuple):
    """One call of the sequence op: all that its outputs are a function of."""

    input: Tensor
    """x (T, B, I), which all groups share, or (T, B, G, I); or, without weight_ih, igates
    (T, B, G, 4H) = x W_ih^T + b_ih + b_hh. Packed: (N, ...)"""
    weights: GroupWeights
    hx: Tensor
    """(G, B, P)"""
    cx: Tensor
    """(G, B, H)"""
    layout: SequenceLayout
    options: CellOptions | None = None
    """None: the plain equations"""

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors that have gradients: input, hx, cx, all weights and the options' gains."""
        gains = [] if self.options is None else self.options.gains
        return [self.input, self.hx, self.cx, *chain.from_iterable(self.weights), *gains]

    def with_tensors(self, tensors: Iterable[Any]) -> Call:
        """The same call with others in the place of :attr:`tensors`, or with their gradients."""
        input, hx, cx, *others = tensors
        options, counts = self.options, [len(parameter) for parameter in self.weights]
        groups = split(others, counts)
        if options is not None and options.norm_hh is not None:
            norm_hh, *rest = others[sum(counts) :]
            options = options._replace(norm_hh=norm_hh, norm_c=rest[0] if rest else None)
        return Call(input, GroupWeights(*groups), hx, cx, self.layout, options)

    @property
    def T(self) -> int:
        """The number of time steps."""
        batch_sizes = self.layout.batch_sizes
        return self.input.shape[0] if batch_sizes is None else batch_sizes.shape[0]

    @property
    def rows(self) -> tuple[int, ...]:
        """The leading sizes of input and output: (T, B), or (N,) of a PackedSequence."""
        return tuple(self.input.shape[: 2 if self.layout.batch_sizes is None else 1])

    @property
    def input_size(self) -> int:
        """I, or 0 if the input is igates."""
        return self.weights.weight_ih[0].shape[1] if self.weights.weight_ih else 0

    @property
    def is_input_shared(self) -> bool:
        """Whether all groups read the same x (T, B, I)."""
        return self.input.dim() == (3 if self.layout.batch_sizes is None else 2)


class Wanted(NamedTuple):
    """Which outputs a call computes, and what it keeps for a backward pass."""

    train: bool = False
    """a backward pass will follow"""
    y: bool = True
    """the output of every step"""
    cells: bool = False
    """the cell state of every step"""
    checkpoint_every: int = 0
    """k steps between the states that are kept for the backward pass; 0: every step is kept"""


NOTHING = torch.empty(0, device="cpu")
"""Stands for a tensor that was not computed."""


class Results(NamedTuple):
    """The outputs of a call. Those that were not wanted are empty, unless they come for free."""

    y: Tensor
    """(T, B, G, P)"""
    hy: Tensor
    """(G, B, P)"""
    cy: Tensor
    """(G, B, H)"""
    cells: Tensor = NOTHING
    """(T, B, G, H)"""
    reserve: Tensor = NOTHING
    """(T, B, G, 5H) the activated gates i, f, g, o and c of every step, with a layer norm then
    W_hh h' (4H); or, with checkpoints, (ceil(T / k), G, B, P + H), h and c before every k-th step,
    in float32 or wider"""


def reserve_width(call: Call) -> int:
    """Numbers that the reserve has for a step and row: 5H, and 4H more, W_hh h', with a norm."""
    has_norm = call.options is not None and call.options.norm_hh is not None
    return (9 if has_norm else 5) * int(call.cx.shape[2])


class Saved(NamedTuple):
    """The tensors that the forward pass hands to the backward pass, beside the call."""

    y: Tensor
    reserve: Tensor
    checkpoint_every: int = 0


class OutputGradients(NamedTuple):
    """The gradients that arrive at a call's outputs; None is zero."""

    dy: Tensor | None = None
    dhy: Tensor | None = None
    dcy: Tensor | None = None
    dcells: Tensor | None = None


class Needs(NamedTuple):
    """Which gradients are asked for; those of the first states are always computed."""

    input: bool
    weight_ih: bool
    bias: bool
    weight_hh: bool
    weight_ch: bool
    weight_hr: bool


class Gradients(NamedTuple):
    """The gradients of a call's inputs; those that are not asked for are empty."""

    input: Tensor
    """as the input"""
    weight_ih: Tensor
    """(G, 4H, I)"""
    bias: Tensor
    """(G, 4H), of either bias"""
    weight_hh: Tensor
    """(G, 4H, P)"""
    weight_ch: Tensor
    """(G, 3H)"""
    weight_hr: Tensor
    """(G, P, H)"""
    hx: Tensor
    """(G, B, P)"""
    cx: Tensor
    """(G, B, H)"""
    norm_hh: Tensor = NOTHING
    """(G, 4H), empty without that option"""
    norm_c: Tensor = NOTHING
    """(G, 2, H), empty without that option"""


class Layers(NamedTuple):
    """All layers of one LSTM, time first. The op runs one call for each of them."""

    input: Tensor
    """(T, B, I), or (N, I) of a PackedSequence"""
    weights: Sequence[GroupWeights]
    """one entry a layer, whose groups are the directions, and of each direction the heads"""
    hx: Tensor
    """(L * G, B, P)"""
    cx: Tensor
    """(L * G, B, H)"""
    layout: SequenceLayout
    dropout: float = 0.0
    """probability of zeroing an output of any layer but the last, in this call"""
    autocast: torch.dtype | None = None
    """the dtype to which ``torch.autocast`` casts; None: it is off"""
    prepacked: Sequence[Any] | None = None
    """a PrepackedWeights for each layer; None: weights are packed in every call"""
    num_heads: int = 1
    """heads of each direction; each is a group"""
    options: LSTMOptions = PLAIN
    """what the cells do beyond the plain equations"""
    training: bool = False
    """masks of the options are drawn; else their expectation is taken"""


def split(items: Iterable[Any], sizes: Sequence[int]) -> list[list[Any]]:
    """Lists of those sizes, in order."""
    items = iter(items)
    return [list(islice(items, size)) for size in sizes]
