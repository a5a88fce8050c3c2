"""Argument checks of the functional layer: the argument, what was expected, what came.

Exception types are those of ``nn.LSTM``, and where it raises in Python so is the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.autocast import can_meet, is_autocast
from fastlstm.backends.onnx import is_exporting
from fastlstm.call import Course, LSTMWeights
from fastlstm.layout_checks import (
    check_batch_sizes,
    check_dense,
    check_lengths,
    check_packed,
    check_reset,
    check_size,
    check_tensor,
    tensor_of,
)


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


def check_sequence(
    input: Tensor,
    groups: Sequence[Sequence[Tensor]],
    hx: Tensor | None,
    cx: Tensor | None,
    course: Course,
    *,
    autocast: bool = False,
    length_values: bool = True,
) -> tuple[int, Course]:
    """The arguments of :func:`fastlstm.lstm_sequence`.

    Args:
        groups: the lists of weights from weight_ih to weight_hr.
        autocast: dtypes may differ where autocast will make them one.
        length_values: lengths must be in 1..T; not for the op, whose call may be a segment behind
            the end of a row. The kernels clamp them.

    Returns:
        B and the course, whose tensors are on the input's device and, where a program is
        recorded, are checked again when it runs.
    """
    weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr = groups
    G = len(weight_hh)
    if G == 0 or weight_hh[0].dim() != 2:
        raise RuntimeError("weight_hh: expected one matrix (4H, P) a group")
    four_h, P = weight_hh[0].shape
    if four_h == 0 or four_h % 4:
        raise RuntimeError(f"weight_hh: expected 4 * hidden_size rows, got {four_h}")
    check_tensor("input", input, TypeError)
    check_dense("input", input)
    if not input.is_floating_point():
        raise ValueError(f"input: expected a floating-point dtype, got {input.dtype}")
    H, dtype, device = four_h // 4, input.dtype, input.device
    if not weight_hr and P != H:
        raise RuntimeError(f"weight_hh[0]: expected size {(four_h, H)}, got {(four_h, P)}")
    I = _check_input(input, weight_ih, G, four_h, course.batch_sizes is not None)
    if (bias_ih or bias_hh) and not weight_ih:
        raise RuntimeError("bias_ih, bias_hh: expected None without weight_ih: igates have them in")
    expected: dict[str, tuple[Sequence[Tensor], tuple[int, ...]]] = {
        "weight_ih": (weight_ih, (four_h, I)),
        "bias_ih": (bias_ih, (four_h,)),
        "bias_hh": (bias_hh, (four_h,)),
        "weight_hh": (weight_hh, (four_h, P)),
        "weight_ch": (weight_ch, (3 * H,)),
        "weight_hr": (weight_hr, (P, H)),
    }
    for name, (weights, size) in expected.items():
        if weights and len(weights) != G:
            raise RuntimeError(f"{name}: expected {G} tensors, one a group, got {len(weights)}")
        for group, weight in enumerate(weights):
            if weight.shape != size or weight.dtype != dtype or weight.device != device:
                check_size(f"{name}[{group}]", weight, size)
                check_like(f"{name}[{group}]", weight, "input", input, autocast)
    if len(course.reverse) != G:
        raise RuntimeError(f"reverse: expected {G} flags, one a group, got {len(course.reverse)}")
    B, course = _check_course(input, course, length_values)
    for name, state, size in (("hx", hx, (G, B, P)), ("cx", cx, (G, B, H))):
        if state is not None:
            check_size(name, state, size)
            check_like(name, state, "input", input, autocast)
    return B, course


def _check_course(input: Tensor, course: Course, length_values: bool) -> tuple[int, Course]:
    """B, and the course as it is to be used."""
    _, lengths, batch_sizes, reset = course
    if batch_sizes is not None:
        if lengths is not None or reset is not None:
            raise ValueError("lengths, reset: expected None beside batch_sizes")
        check_tensor("batch_sizes", batch_sizes, TypeError)
        checked = check_batch_sizes(batch_sizes, input.shape[0])
        return int(batch_sizes[0]), course._replace(batch_sizes=checked)
    T, B = input.shape[:2]
    if lengths is not None:
        lengths = check_lengths(tensor_of("lengths", lengths), T, B, values=length_values)
        lengths = lengths.to(input.device, torch.int64)
    if reset is not None:
        reset = check_reset(tensor_of("reset", reset), T, B).to(input.device)
    return B, course._replace(lengths=lengths, reset=reset)


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
    D: int,
    batch_first: bool,
    lengths: Tensor | None,
    reset: Tensor | None = None,
) -> Course:
    """The arguments of :func:`fastlstm.functional.lstm`.

    Returns:
        The course of the first layer, time first, as :func:`check_sequence` does.
    """
    if not weights or len(weights) % D:
        raise RuntimeError(f"weights: expected {D} entries a layer, got {len(weights)} in all")
    packed = isinstance(input, PackedSequence)
    if packed and is_exporting():
        raise RuntimeError(
            "input: expected a padded batch with lengths, ONNX has no PackedSequence; "
            "got a PackedSequence"
        )
    data = input.data if isinstance(input, PackedSequence) else input
    check_tensor("input", data)
    check_dense("input", data)
    first = weights[0]
    _check_matrices(first)
    dtype, autocast = first.weight_ih.dtype, is_autocast(data)
    if data.dtype != dtype and not can_meet(data.dtype, dtype, autocast):
        raise (RuntimeError if autocast else ValueError)(
            f"RNN input dtype ({data.dtype}) does not match weight dtype ({dtype}). "
            f"Convert input: input.to({dtype}), or convert model: model.to({data.dtype})"
        )
    expected_dim = 2 if packed else 3
    if data.dim() != expected_dim:
        raise RuntimeError(f"input must have {expected_dim} dimensions, got {data.dim()}")
    if data.shape[-1] != first.weight_ih.shape[1]:
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {first.weight_ih.shape[1]}, got {data.shape[-1]}"
        )
    if not packed and data.shape[1 if batch_first else 0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    batch_sizes = check_packed(input) if isinstance(input, PackedSequence) else None
    if packed and lengths is not None:
        raise ValueError("lengths: expected None beside a PackedSequence, which has its own")
    if packed and reset is not None:
        raise ValueError("reset: expected None beside a PackedSequence")
    _check_weights(weights, D, data)
    if isinstance(input, PackedSequence):
        T, B = input.batch_sizes.shape[0], int(input.batch_sizes[0])
    else:
        T, B = data.shape[1::-1] if batch_first else data.shape[:2]
    if lengths is not None:
        lengths = check_lengths(tensor_of("lengths", lengths), T, B)
        lengths = lengths.to(data.device, torch.int64)
    if reset is not None:
        reset = tensor_of("reset", reset)
        reset = check_reset(reset.t() if batch_first and reset.dim() == 2 else reset, T, B)
        reset = reset.to(data.device)
    if hx is not None:
        check_states(hx)
        H, P = first.weight_hh.shape[0] // 4, first.weight_hh.shape[1]
        for index, (state, size) in enumerate(zip(hx, (P, H), strict=True)):
            expected = (len(weights), B, size)
            if tuple(state.shape) != expected:
                raise RuntimeError(
                    f"Expected hidden[{index}] size {expected}, got {list(state.shape)}"
                )
            if not can_meet(state.dtype, first.weight_hh.dtype, autocast):
                raise RuntimeError(
                    "Input and hidden tensors are not the same dtype, found input tensor with "
                    f"{data.dtype} and hidden tensor with {state.dtype}"
                )
            if state.device != data.device:
                raise RuntimeError(
                    "Input and hidden tensors are not at the same device, found input tensor at "
                    f"{data.device} and hidden tensor at {state.device}"
                )
    return Course([False, True][:D], lengths, batch_sizes, reset)


def _check_matrices(weights: LSTMWeights) -> None:
    for name, weight in zip(weights._fields, weights[:2], strict=False):
        if weight.dim() != 2:
            raise RuntimeError(f"{name}: expected a matrix, got {weight.dim()}-D")


def _check_weights(weights: Sequence[LSTMWeights], D: int, input: Tensor) -> None:
    first = weights[0]
    four_h, P = first.weight_hh.shape
    if four_h == 0 or four_h % 4:
        raise RuntimeError(f"weight_hh: expected 4 * hidden_size rows, got {four_h}")
    if first.weight_hr is None and four_h != 4 * P:
        raise RuntimeError(f"weight_hh: expected size {(four_h, four_h // 4)}, got {(four_h, P)}")
    dtype, device = first.weight_ih.dtype, input.device
    autocast = is_autocast(input)
    if first.weight_ih.device != device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{device} and parameter tensor at {first.weight_ih.device}"
        )
    for index, entry in enumerate(weights):
        input_size = first.weight_ih.shape[1] if index < D else D * P
        sizes = (
            (four_h, input_size),
            (four_h, P),
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


def check_cell(input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: LSTMWeights) -> None:
    """The arguments of :func:`fastlstm.functional.lstm_cell`, which are batched by now."""
    _check_matrices(weights)
    four_h, input_size = weights.weight_ih.shape
    if input.shape[1] != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.shape[1]} expected {input_size}"
        )
    _check_weights([weights], 1, input)
    autocast = is_autocast(input)
    for index, state in enumerate(() if hx is None else check_states(hx)):
        if state.shape[0] != input.shape[0]:
            raise RuntimeError(
                f"Input batch size {input.shape[0]} doesn't match hidden{index} batch size "
                f"{state.shape[0]}"
            )
        if state.shape[1] != four_h // 4:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: "
                f"got {state.shape[1]}, expected {four_h // 4}"
            )
    # After the sizes: where both are wrong, nn.LSTMCell tells of the size.
    if not can_meet(input.dtype, weights.weight_ih.dtype, autocast):
        raise RuntimeError(
            f"input: expected dtype {weights.weight_ih.dtype}, that of weight_ih, got {input.dtype}"
        )
    for index, state in enumerate(hx or ()):
        if not can_meet(state.dtype, weights.weight_hh.dtype, autocast):
            raise RuntimeError(
                f"hx[{index}]: expected dtype {weights.weight_hh.dtype}, that of weight_hh, "
                f"got {state.dtype}"
            )
        if state.device != input.device:
            raise RuntimeError(
                f"hx[{index}]: expected device {input.device}, that of input, got {state.device}"
            )
