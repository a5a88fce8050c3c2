"""What passes between the layers of the library: weights, ways through time, and a problem."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
        whole_layers: the input and all layers' weights are at hand, not only projected igates.
        cell: a single call of LSTMCell, for which PyTorch has a function of its own.
        train: gradients of the input or the weights are recorded.
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
    whole_layers: bool = False
    cell: bool = False
    train: bool = False
