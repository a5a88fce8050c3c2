"""The question that is put to a backend before a call: whether, and how fast, it can run it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastlstm.call import Layers, Wanted
from fastlstm.options import OUTSIDE_OF_CELLS, PLAIN
from fastlstm.tracing import Mode, find_mode, is_vmapped, records_gradients


class Problem(NamedTuple):
    """All that a backend needs to know to say whether it can run a call.

    Attributes:
        device: the device of the tensors: "cpu", "cuda", ...
        dtype: the dtype that is computed in.
        T, B, G, H: time steps, batch, groups (directions times heads), hidden units of a group.
        I, L: input size (0: the input is igates) and layers.
        has_peepholes: there are peephole connections.
        proj_size: size of the projected hidden state, 0 for none.
        has_lengths: rows have lengths of their own.
        is_packed_sequence: input and output are the data of a PackedSequence.
        has_reset: a mask says where states start anew.
        return_all_cells: the cell state of every step is asked for.
        dropout: outputs between layers are dropped at random.
        checkpointed: a backward pass will have only the state before every k-th step.
        whole_layers: the input and all layers' weights are at hand, not only igates.
        transformed: the call is inside ``torch.func.vmap``, or in forward mode.
        requires_grad: gradients of the input, the states or the weights are recorded, whether the
            module is in training mode or not.
        number: the number of the tensors' GPU; None for the current one, and on other devices.
        num_heads: heads of each direction; each is a group.
        options: names of the options of :class:`fastlstm.LSTM` that are on, as "zoneout".
        cell_options: those of them that change what a cell computes, and not only its inputs.
    """

    device: str
    dtype: torch.dtype
    T: int
    B: int
    G: int
    H: int
    I: int = 0
    L: int = 1
    has_peepholes: bool = False
    proj_size: int = 0
    has_lengths: bool = False
    is_packed_sequence: bool = False
    has_reset: bool = False
    return_all_cells: bool = False
    dropout: bool = False
    checkpointed: bool = False
    whole_layers: bool = False
    transformed: bool = False
    requires_grad: bool = False
    number: int | None = None
    num_heads: int = 1
    options: tuple[str, ...] = ()
    cell_options: tuple[str, ...] = ()


def pose_problem(layers: Layers, wanted: Wanted, kind: str) -> tuple[Wanted, Mode, Problem]:
    """Find out what watches a call, and what is asked of the backends.

    Args:
        layers: the call; one layer for the sequence op, and no time dimension for a cell.
        wanted: what the call computes.
        kind: the function that was called, "lstm", "cell" or "sequence".

    Returns:
        ``wanted``, which now says whether gradients are recorded, the mode, and the problem.
    """
    input, weights, layout = layers.input, layers.weights[0], layers.layout
    tensors = [input, layers.hx, layers.cx]
    for of_layer in layers.weights:
        for parameter in of_layer:
            tensors += parameter
    for norm in layers.options.norms or ():
        tensors += norm
    mode = find_mode(tensors)
    train = mode is Mode.AUTOGRAD or (mode is not Mode.NONE and records_gradients(mode, tensors))
    if train:
        wanted = wanted._replace(train=True)
    # A trace may be trained later; but backends are asked about this call.
    requires_grad = train and torch.is_grad_enabled()
    options = () if layers.options is PLAIN else layers.options.names
    whole_layers, is_packed = kind != "sequence", layout.batch_sizes is not None
    T = 1 if kind == "cell" else input.shape[0]
    transformed = mode is Mode.FORWARD_AD or (mode is Mode.FUNCTORCH and is_vmapped())
    problem = Problem(
        device=input.device.type,
        dtype=layers.autocast or weights.weight_hh[0].dtype,
        T=T if layout.batch_sizes is None else layout.batch_sizes.shape[0],
        B=layers.cx.shape[-2],
        G=len(layout.reverse),
        H=layers.cx.shape[-1],
        I=weights.weight_ih[0].shape[1] if weights.weight_ih else 0,
        L=len(layers.weights),
        has_peepholes=len(weights.weight_ch) > 0,
        proj_size=weights.weight_hr[0].shape[0] if weights.weight_hr else 0,
        has_lengths=layout.lengths is not None or is_packed,
        is_packed_sequence=is_packed,
        has_reset=layout.reset is not None,
        return_all_cells=wanted.cells,
        dropout=layers.dropout > 0,
        checkpointed=wanted.checkpoint_every > 0 and (requires_grad or not whole_layers),
        whole_layers=whole_layers,
        transformed=transformed and whole_layers,
        requires_grad=requires_grad,
        number=input.device.index,
        num_heads=layers.num_heads,
        options=options,
        cell_options=options and tuple(name for name in options if name not in OUTSIDE_OF_CELLS),
    )
    return wanted, mode, problem
