"""LSTMs whose layers have different sizes: one call of the functional LSTM for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastlstm.checks import check_input
from fastlstm.functional import lstm
from fastlstm.masks import drop_between_layers
from fastlstm.nn.lstm_base import LSTMBase

States = tuple[Sequence[Tensor], Sequence[Tensor]]


def sizes_of_layers(hidden_size: Any, num_layers: int) -> tuple[int, ...] | int:
    """``hidden_size`` as a size for each layer, or as the one size of all of them.

    Raises:
        TypeError: a size is no integer.
        ValueError: the number of sizes is not ``num_layers``, or a size is below 1.
    """
    if isinstance(hidden_size, (int, str)) or not isinstance(hidden_size, Sequence):
        return hidden_size  # type: ignore[return-value]  # nn.RNNBase raises for what is no integer
    sizes = tuple(hidden_size)
    if len(sizes) != num_layers:
        raise ValueError(
            f"hidden_size: expected {num_layers} sizes, one for each of num_layers={num_layers}, "
            f"got {len(sizes)}"
        )
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"hidden_size: expected integers, got {type(size).__name__}")
        if size < 1:
            raise ValueError(f"hidden_size: expected sizes of at least 1, got {size}")
    return sizes if len(set(sizes)) > 1 else sizes[0]


def check_sized_layers(proj_size: int, learn_initial_state: bool, num_heads: int) -> None:
    """ValueError for options that layers of different sizes do not have."""
    options = {"proj_size": proj_size, "learn_initial_state": learn_initial_state}
    for name, value in (options | {"num_heads": num_heads - 1}).items():
        if value:
            raise ValueError(f"{name}: expected it to be off with a hidden_size for each layer")


def resize_layers(module: nn.RNNBase, sizes: tuple[int, ...]) -> None:
    """Give each layer of a module that has one size for all a size of its own."""
    D = 2 if module.bidirectional else 1
    for layer, H in enumerate(sizes):
        I = D * sizes[layer - 1] if layer else module.input_size
        for direction in ["", "_reverse"][:D]:
            for name, size in (("weight_ih", (4 * H, I)), ("weight_hh", (4 * H, H))):
                _resize(module, f"{name}_l{layer}{direction}", size)
            for name in ("bias_ih", "bias_hh") if module.bias else ():
                _resize(module, f"{name}_l{layer}{direction}", (4 * H,))
    module.hidden_size = sizes  # type: ignore[assignment]


def _resize(module: nn.Module, name: str, size: tuple[int, ...]) -> None:
    setattr(module, name, nn.Parameter(getattr(module, name).new_empty(size)))


def check_states(module: LSTMBase, hx: Any, batched: bool) -> None:
    """TypeError or RuntimeError unless hx has a state h and c for each layer."""
    L, sizes = module.num_layers, module.hidden_size
    dims = 3 if batched else 2
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx: expected a tuple (h_0, c_0) of tuples, got {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError(f"hx: expected two states, hidden and cell, got {len(hx)}")
    for name, states in zip("hc", hx, strict=True):
        if not isinstance(states, (Tensor, tuple, list)):
            kind = type(states).__name__
            raise TypeError(f"hx: expected a tuple of {L} tensors {name}, got {kind}")
        if isinstance(states, Tensor) or len(states) != L:
            got = "one tensor" if isinstance(states, Tensor) else f"{len(states)} tensors"
            raise RuntimeError(
                f"hx: expected {L} tensors {name}, one for each size of {sizes}, got {got}"
            )
        for state in states:
            if not isinstance(state, Tensor):
                raise TypeError(f"hx: expected a Tensor, got {type(state).__name__}")
            if state.dim() != dims:
                raise RuntimeError(f"hx: expected {dims}-D states, got {state.dim()}-D")


def forward(
    module: LSTMBase, input: Tensor | PackedSequence, hx: States | None, **keywords: Any
) -> tuple[Any, ...]:
    """``LSTM.forward`` with a size for each layer; the states are tuples with a tensor for each."""
    if not isinstance(input, PackedSequence):
        check_input(input, None)
    batched = isinstance(input, PackedSequence) or input.dim() == 3
    if hx is not None:
        check_states(module, hx, batched)
    if not batched:
        hx = hx and tuple(tuple(s.unsqueeze(1) for s in states) for states in hx)  # type: ignore
        time = 0 if module.batch_first else 1
        if keywords["lengths"] is not None:
            raise ValueError("lengths: expected None for unbatched 2-D input")
        if keywords["reset"] is not None:
            keywords["reset"] = torch.as_tensor(keywords["reset"]).unsqueeze(time)
        assert isinstance(input, Tensor)
        output, states, *rest = forward(module, input.unsqueeze(time), hx, **keywords)
        output, *rest = (s if s is None else s.squeeze(time) for s in (output, *rest))
        return output, tuple(tuple(s.squeeze(1) for s in each) for each in states), *rest
    D, last = 1 + module.bidirectional, module.num_layers - 1
    weights, x = module.weights(), input
    hy: list[Tensor] = []
    cy: list[Tensor] = []
    cells: list[Any] = []
    options = module._active_options(module._endings())
    for layer in range(module.num_layers):
        own = slice(layer * D, (layer + 1) * D)
        of_layer, here = options, dict(keywords)
        if options.norms is not None:
            of_layer = options._replace(norms=options.norms[own])
        if layer < last:
            here |= {"return_all_cells": False, "return_sequence": True}
        output, (h, c), *cells = lstm(
            x,
            hx and (hx[0][layer], hx[1][layer]),
            weights[own],
            bidirectional=module.bidirectional,
            batch_first=module.batch_first,
            training=module.training,
            checkpoint_every=module.checkpoint_every,
            options=of_layer,
            backend=module.backend,
            **here,
        )
        hy.append(h)
        cy.append(c)
        x = output if layer == last or not module.training else _dropped(module, output)
    return x, (tuple(hy), tuple(cy)), *cells


def _dropped(module: LSTMBase, output: Any) -> Any:
    """The output of a layer as the next one reads it in training."""
    ps = module.dropout, module.cell_options.variational_dropout
    if isinstance(output, PackedSequence):
        sizes = output.batch_sizes
        return output._replace(data=drop_between_layers(output.data, *ps, sizes, int(sizes[0])))
    if module.batch_first:
        output = output.transpose(0, 1)
    output = drop_between_layers(output, *ps, None, output.shape[1])
    return output.transpose(0, 1) if module.batch_first else output
