"""Checks of the arguments of ``LSTM``, ``lstm`` and ``lstm_sequence``.

A message names the argument, what was expected and what came. Exception types are those of
``nn.LSTM``; where it raises in Python, so are the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.autocast import can_meet
from fastlstm.call import Call, LSTMWeights, SequenceLayout
from fastlstm.layout_checks import (
    check_dense,
    check_layout,
    check_packed_sequence,
    check_size,
    check_tensor,
    tensor_of,
)
from fastlstm.tracing import autocast_dtype, is_exporting_onnx


def check_like(
    name: str, tensor: Tensor, other_name: str, other: Tensor, autocast: bool = False
) -> None:
    """ValueError for a dtype that cannot meet the other's, RuntimeError for another device."""
    if not can_meet(tensor.dtype, other.dtype, autocast):
        raise ValueError(
            f"{name}: expected dtype {other.dtype}, that of {other_name}, got {tensor.dtype}"
        )
    if tensor.device != other.device:
        raise RuntimeError(
            f"{name}: expected device {other.device}, that of {other_name}, got {tensor.device}"
        )


def check_states(hx: Sequence[Tensor]) -> Sequence[Tensor]:
    """``hx``; TypeError unless it is a tuple or list of tensors, RuntimeError unless of two."""
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx: expected a tuple of two tensors, got {type(hx).__name__}")
    if len(hx) != 2:
        raise RuntimeError(f"hx: expected two states, hidden and cell, got {len(hx)}")
    for state in hx:
        if not isinstance(state, Tensor):
            raise TypeError(f"hx: expected a Tensor, got {type(state).__name__}")
    return hx


def check_input(input: Tensor, hx: Sequence[Tensor] | None) -> None:
    """Check that the input of an LSTM is a tensor, and its states have as many dimensions."""
    if not isinstance(input, Tensor):
        check_tensor("input", input)
    dim = input.dim()
    if dim not in (2, 3):
        raise ValueError(f"LSTM: Expected input to be 2D or 3D, got {dim}D instead")
    if hx is None:
        return
    if len(hx) < 2:
        raise IndexError(f"hx: expected two states, hidden and cell, got {len(hx)}")
    for index in (0, 1):
        check_tensor("hx", hx[index])
    if hx[0].dim() != dim or hx[1].dim() != dim:
        kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
        raise RuntimeError(
            f"For {kind} input, hx and cx should also be {dim}-D but got "
            f"({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )


def check_call(call: Call, *, autocast: bool = False, length_values: bool = True) -> Call:
    """Check the arguments of :func:`fastlstm.lstm_sequence`.

    Args:
        call: as the user made it; hx and cx may be None for zeros.
        autocast: dtypes may differ, because autocast will make them one.
        length_values: lengths must be in 1..T. The op does not ask for that: its call may be a
            segment behind the end of a row. The kernels clamp lengths.

    Returns:
        The call with states, and with a layout whose tensors are on the input's device and, where
        a program is recorded, are checked again when the program runs.
    """
    input, weights, hx, cx, layout, options = call
    G = len(weights.weight_hh)
    if G == 0 or weights.weight_hh[0].dim() != 2:
        raise RuntimeError("weight_hh: expected one matrix (4H, P) a group")
    four_h, P = weights.weight_hh[0].shape
    if four_h == 0 or four_h % 4:
        raise RuntimeError(f"weight_hh: expected 4 * hidden_size rows, got {four_h}")
    check_tensor("input", input, TypeError)
    check_dense("input", input)
    if not input.is_floating_point():
        raise ValueError(f"input: expected a floating-point dtype, got {input.dtype}")
    H, dtype, device = four_h // 4, input.dtype, input.device
    if not weights.weight_hr and P != H:
        raise RuntimeError(f"weight_hh[0]: expected size {(four_h, H)}, got {(four_h, P)}")
    I = _check_input(input, weights.weight_ih, G, four_h, layout.batch_sizes is not None)
    if (weights.bias_ih or weights.bias_hh) and not weights.weight_ih:
        raise RuntimeError("bias_ih, bias_hh: expected None without weight_ih: igates have them in")
    sizes = ((four_h, I), (four_h, P), (four_h,), (four_h,), (3 * H,), (P, H))
    for name, parameter, size in zip(weights._fields, weights, sizes, strict=True):
        if parameter and len(parameter) != G:
            raise RuntimeError(f"{name}: expected {G} tensors, one a group, got {len(parameter)}")
        for group, weight in enumerate(parameter):
            if weight.shape != size or weight.dtype != dtype or weight.device != device:
                check_size(f"{name}[{group}]", weight, size)
                check_like(f"{name}[{group}]", weight, "input", input, autocast)
    if len(layout.reverse) != G:
        raise RuntimeError(f"reverse: expected {G} flags, one a group, got {len(layout.reverse)}")
    B, layout = check_layout(layout, input, length_values)
    for name, state, size in (("hx", hx, (G, B, P)), ("cx", cx, (G, B, H))):
        if state is not None:
            check_size(name, state, size)
            check_like(name, state, "input", input, autocast)
    hx = input.new_zeros(G, B, P) if hx is None else hx
    cx = input.new_zeros(G, B, H) if cx is None else cx
    return Call(input, weights, hx, cx, layout, options)


def _check_input(
    input: Tensor, weight_ih: Sequence[Tensor], G: int, four_h: int, is_packed: bool
) -> int:
    """The input size I that follows; 0 if the input is igates."""
    rows, dim = ("N", 2) if is_packed else ("T, B", 3)
    if input.dim() not in ((dim, dim + 1) if weight_ih else (dim + 1,)):
        x, igates = f"x ({rows}, I) or ({rows}, G, I)", f"igates ({rows}, G, 4H)"
        expected = x if weight_ih else igates
        raise RuntimeError(f"input: expected {expected}, got {input.dim()} dimensions")
    if input.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if input.dim() == dim + 1 and input.shape[-2] != G:
        raise RuntimeError(f"input: expected {G} groups, as weight_hh has, got {input.shape[-2]}")
    if not weight_ih and input.shape[-1] != four_h:
        raise RuntimeError(f"input: expected a last size of 4H = {four_h}, got {input.shape[-1]}")
    return input.shape[-1] if weight_ih else 0


def check_layers(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[LSTMWeights],
    layout: SequenceLayout,
    batch_first: bool,
    num_heads: int = 1,
) -> tuple[SequenceLayout, torch.dtype | None]:
    """Check the arguments of :func:`fastlstm.lstm`.

    Args:
        input, hx, weights, batch_first, num_heads: as the user gave them.
        layout: the directions, and lengths and reset as the user gave them.

    Returns:
        The layout of the first layer, time first, as :func:`check_call` returns it, and the dtype
        of autocast, None where it is off.
    """
    (_, lengths, _, reset), D = layout, len(layout.reverse)
    if not weights or len(weights) % D:
        raise RuntimeError(f"weights: expected {D} entries a layer, got {len(weights)} in all")
    is_packed = isinstance(input, PackedSequence)
    if is_packed and is_exporting_onnx():
        raise RuntimeError(
            "input: expected a padded batch with lengths, ONNX has no PackedSequence; "
            "got a PackedSequence"
        )
    data = input.data if isinstance(input, PackedSequence) else input
    # Functions that only raise are called where they will: each call costs 0.1 us.
    if not isinstance(data, Tensor):
        check_tensor("input", data)
    if data.is_nested or data.layout is not torch.strided:
        check_dense("input", data)
    first = weights[0]
    if first.weight_ih.dim() != 2 or first.weight_hh.dim() != 2:
        check_matrices(first)
    dtype, lowered = first.weight_ih.dtype, autocast_dtype(data)
    autocast = lowered is not None
    if data.dtype != dtype and not can_meet(data.dtype, dtype, autocast):
        raise (RuntimeError if autocast else ValueError)(
            f"RNN input dtype ({data.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({data.dtype})"
        )
    expected_dim = 2 if is_packed else 3
    if data.dim() != expected_dim:
        raise RuntimeError(f"input must have {expected_dim} dimensions, got {data.dim()}")
    if data.shape[-1] != first.weight_ih.shape[1]:
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {first.weight_ih.shape[1]}, got {data.shape[-1]}"
        )
    if not is_packed and data.shape[1 if batch_first else 0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    batch_sizes = None
    if isinstance(input, PackedSequence):
        batch_sizes = check_packed_sequence(input)
        if lengths is not None:
            raise ValueError("lengths: expected None beside a PackedSequence, which has its own")
        if reset is not None:
            raise ValueError("reset: expected None beside a PackedSequence")
        B = int(input.batch_sizes[0])
    else:
        B = data.shape[0 if batch_first else 1]
    check_weights(weights, D, data, autocast, num_heads)
    layout = SequenceLayout(layout.reverse, None, batch_sizes, None)
    if lengths is not None or reset is not None:
        x = data.transpose(0, 1) if batch_first else data
        _, layout = check_layout(layout._replace(lengths=lengths), x)
        if reset is not None:
            reset = tensor_of("reset", reset)
            reset = reset.t() if batch_first and reset.dim() == 2 else reset
            _, of_reset = check_layout(SequenceLayout(layout.reverse, reset=reset), x)
            layout = layout._replace(reset=of_reset.reset)
    if hx is not None:
        check_states(hx)
        H, P = first.weight_hh.shape[0] // 4, first.weight_hh.shape[1] * num_heads
        for index, (state, size) in enumerate(zip(hx, (P, H), strict=True)):
            if state.shape != (len(weights), B, size):
                raise RuntimeError(
                    f"Expected hidden[{index}] size {(len(weights), B, size)}, "
                    f"got {list(state.shape)}"
                )
            if state.dtype != dtype and not can_meet(state.dtype, dtype, autocast):
                raise RuntimeError(
                    "Input and hidden tensors are not the same dtype, found input tensor with "
                    f"{data.dtype} and hidden tensor with {state.dtype}"
                )
            if state.device != data.device:
                raise RuntimeError(
                    "Input and hidden tensors are not at the same device, found input tensor at "
                    f"{data.device} and hidden tensor at {state.device}"
                )
    return layout, lowered


def check_matrices(weights: LSTMWeights) -> None:
    """RuntimeError unless weight_ih and weight_hh have two dimensions."""
    for name, weight in zip(weights._fields, weights[:2], strict=False):
        if weight.dim() != 2:
            raise RuntimeError(f"{name}: expected a matrix, got {weight.dim()}-D")


def check_num_heads(num_heads: Any, hidden_size: int, has_projection: bool) -> None:
    """TypeError or ValueError unless a hidden layer of that size has that many equal heads."""
    if isinstance(num_heads, bool) or not isinstance(num_heads, int):
        raise TypeError(f"num_heads: expected an int, got {type(num_heads).__name__}")
    if num_heads < 1:
        raise ValueError(f"num_heads: expected at least 1, got {num_heads}")
    if hidden_size % num_heads:
        raise ValueError(
            f"num_heads: expected a divisor of hidden_size={hidden_size}, got {num_heads}"
        )
    if has_projection and num_heads > 1:
        raise ValueError(
            "num_heads: expected 1 with a projection (proj_size), whose output all units share; "
            f"got {num_heads}"
        )


def check_weights(
    weights: Sequence[LSTMWeights], D: int, input: Tensor, autocast: bool, num_heads: int = 1
) -> None:
    """Check sizes, dtypes and devices of all parameters against those of the first entry."""
    first = weights[0]
    four_h, columns = first.weight_hh.shape
    if four_h == 0 or four_h % 4:
        raise RuntimeError(f"weight_hh: expected 4 * hidden_size rows, got {four_h}")
    check_num_heads(num_heads, four_h // 4, first.weight_hr is not None)
    P = columns * num_heads
    if first.weight_hr is None and four_h != 4 * P:
        expected = (four_h, four_h // 4 // num_heads)
        raise RuntimeError(f"weight_hh: expected size {expected}, got {(four_h, columns)}")
    dtype, device = first.weight_ih.dtype, input.device
    if first.weight_ih.device != device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{device} and parameter tensor at {first.weight_ih.device}"
        )
    for index, entry in enumerate(weights):
        input_size = first.weight_ih.shape[1] if index < D else D * P
        sizes = (
            (four_h, input_size),
            (four_h, columns),
            (four_h,),
            (four_h,),
            (3 * four_h // 4,),
            (P, four_h // 4),
        )
        # Messages are put together after the fact: this runs some 4 times a call and layer.
        for kind, (weight, other, size) in enumerate(zip(entry, first, sizes, strict=True)):
            name = entry._fields[kind]
            if (weight is None) != (other is None):
                raise RuntimeError(f"weights[{index}].{name}: expected in all entries or in none")
            if weight is None:
                continue
            if weight.shape != size:
                check_size(f"weights[{index}].{name}", weight, size)
            if weight.device != device or (
                weight.dtype != dtype and not can_meet(weight.dtype, dtype, autocast)
            ):
                raise RuntimeError(
                    f"weights[{index}].{name}: expected {dtype} on {device}, "
                    f"got {weight.dtype} on {weight.device}"
                )
