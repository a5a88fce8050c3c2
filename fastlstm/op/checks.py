"""Checks that the ops make whenever they run: anyone can call them, and kernels trust arguments."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from fastlstm.backends import select
from fastlstm.call import Call, Layers, OutputGradients, Saved, Wanted, reserve_width
from fastlstm.checks import check_call, check_like
from fastlstm.layout_checks import check_size
from fastlstm.problem import pose_problem


def check_op(call: Call, wanted: Wanted, name: str) -> ModuleType:
    """The backend of that name; RuntimeError or ValueError for a call that no kernel could run."""
    check_call(call, length_values=False)
    backend = select.get(name)
    if not hasattr(backend, "backward"):
        raise ValueError(f"backend: expected one with kernels for the op, got {name!r}")
    if wanted.checkpoint_every < 0:
        raise ValueError(f"checkpoint_every: expected at least 0, got {wanted.checkpoint_every}")
    layers = Layers(call.input, [call.weights], call.hx, call.cx, call.layout)
    _, _, problem = pose_problem(layers, wanted, "sequence")
    if call.options is not None:
        check_options(call)
        names = call.options.names
        problem = problem._replace(options=names, cell_options=names)
    if reason := backend.why_not(problem):
        raise ValueError(f"backend={name!r} cannot run this LSTM: {reason}")
    return backend


def check_options(call: Call) -> None:
    """RuntimeError or ValueError for options whose sizes, dtypes or devices are not the call's."""
    (G, B, P), H, rows, options = call.hx.shape, call.cx.shape[2], call.rows, call.options
    assert options is not None
    sizes = ((G, B, P), (*rows, G, P), (*rows, G, H), (G, 4 * H), (G, 2, H))
    for name, tensor, size in zip(options._fields, options[:5], sizes, strict=False):
        if isinstance(tensor, Tensor):
            check_size(name, tensor, size)
            check_like(name, tensor, "input", call.input)
    if not options.cell_clip >= 0:
        raise ValueError(f"cell_clip: expected at least 0, got {options.cell_clip}")
    if options.norm_c is not None and options.norm_hh is None:
        raise ValueError("norm_c: expected None without norm_hh, got a Tensor")
    if options.norm_hh is not None and call.weights.weight_ih:
        raise ValueError("norm_hh: expected an input of igates beside it, got one with weight_ih")


def check_backward(call: Call, saved: Saved, grads: OutputGradients, needs: Sequence[bool]) -> None:
    """RuntimeError or ValueError for arguments of the backward op that do not belong to the call:
    the gradients, what the forward op saved, and the flags of the gradients asked for.
    """
    (G, B, P), H, rows = call.hx.shape, call.cx.shape[2], call.rows
    sizes = ((*rows, G, P), (G, B, P), (G, B, H), (*rows, G, H))
    kept, dtype = (*rows, G, reserve_width(call)), call.input.dtype
    y, reserve, checkpoint_every = saved
    if checkpoint_every:
        kept = (-(-call.T // checkpoint_every), G, B, P + H)
        dtype = torch.promote_types(dtype, torch.float32)
    for name, tensor, size in zip(grads._fields, grads, sizes, strict=True):
        if tensor is not None:
            check_size(name, tensor, size)
            check_like(name, tensor, "input", call.input)
    if not (checkpoint_every and y.dim() == 1):  # else it was not kept, and is empty
        check_size("y", y, sizes[0])
    check_like("y", y, "input", call.input)
    check_size("reserve", reserve, kept)
    check_like("reserve", reserve, "input", call.input.new_empty(0, dtype=dtype))
    weights = call.weights
    has_bias = bool(weights.bias_ih or weights.bias_hh)
    names = ("input", "weight_ih", "bias", "weight_hh", "weight_ch", "weight_hr")
    parameters = (weights.weight_hh, weights.weight_ch, weights.weight_hr)
    there = (True, bool(weights.weight_ih), has_bias, *map(bool, parameters))
    if len(needs) != len(there):
        raise ValueError(f"needs: expected {len(there)} flags, got {len(needs)}")
    for name, is_there, is_needed in zip(names, there, needs, strict=True):
        if is_needed and not is_there:
            raise ValueError(f"needs: expected False for {name}, which is not given; got True")
