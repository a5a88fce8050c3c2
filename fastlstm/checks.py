"""Argument checks of the functional layer: the argument, what was expected, what came.

Exception types are those of ``nn.LSTM``, and where it raises in Python so is the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.backends.onnx import is_exporting
from fastlstm.types import LSTMWeights


def check_size(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    """RuntimeError unless ``tensor`` has exactly that size."""
    if tuple(tensor.shape) != tuple(expected):
        raise RuntimeError(f"{name}: expected size {tuple(expected)}, got {tuple(tensor.shape)}")


def check_like(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """ValueError for another dtype, RuntimeError for another device."""
    if tensor.dtype != other.dtype:
        raise ValueError(
            f"{name}: expected dtype {other.dtype}, that of {other_name}, got {tensor.dtype}"
        )
    if tensor.device != other.device:
        raise RuntimeError(
            f"{name}: expected device {other.device}, that of {other_name}, got {tensor.device}"
        )


def can_read_values(tensor: Tensor) -> bool:
    """Whether Python may look at a tensor's values: not in a trace, nor in a CUDA graph's capture.

    Any read from a GPU waits for it, which would end the capture with an error.
    """
    if torch.compiler.is_compiling():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def check_lengths(lengths: Tensor, T: int, B: int) -> None:
    """RuntimeError unless ``lengths`` is (B,) integers in 1..T."""
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise RuntimeError(f"lengths: expected integers, got {lengths.dtype}")
    check_size("lengths", lengths, (B,))
    if B and can_read_values(lengths):  # else kernels clamp them into 0..T
        low, high = int(lengths.min()), int(lengths.max())
        if low < 1 or high > T:
            raise RuntimeError(f"lengths: expected integers in 1..{T}, got {low}..{high}")


def check_sequence(
    input: Tensor,
    weight_ih: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    weight_hr: Sequence[Tensor],
    hx: Tensor | None,
    cx: Tensor | None,
    reverse: Sequence[bool],
    lengths: Tensor | None,
) -> None:
    """The arguments of :func:`fastlstm.functional.lstm_sequence`."""
    G = len(weight_hh)
    if G == 0 or weight_hh[0].dim() != 2:
        raise RuntimeError("weight_hh: expected one matrix (4H, P) a group")
    four_h, P = weight_hh[0].shape
    if four_h == 0 or four_h % 4:
        raise RuntimeError(f"weight_hh: expected 4 * hidden_size rows, got {four_h}")
    if not input.is_floating_point():
        raise ValueError(f"input: expected a floating-point dtype, got {input.dtype}")
    H = four_h // 4
    if not weight_hr and P != H:
        raise RuntimeError(f"weight_hh[0]: expected size {(four_h, H)}, got {(four_h, P)}")
    I = _check_input(input, weight_ih, G, four_h)
    if (bias_ih or bias_hh) and not weight_ih:
        raise RuntimeError("bias_ih, bias_hh: expected None without weight_ih: igates have them in")
    groups: dict[str, tuple[Sequence[Tensor], tuple[int, ...]]] = {
        "weight_ih": (weight_ih, (four_h, I)),
        "bias_ih": (bias_ih, (four_h,)),
        "bias_hh": (bias_hh, (four_h,)),
        "weight_hh": (weight_hh, (four_h, P)),
        "weight_ch": (weight_ch, (3 * H,)),
        "weight_hr": (weight_hr, (P, H)),
    }
    for name, (weights, size) in groups.items():
        if weights and len(weights) != G:
            raise RuntimeError(f"{name}: expected {G} tensors, one a group, got {len(weights)}")
        for group, weight in enumerate(weights):
            check_size(f"{name}[{group}]", weight, size)
            check_like(f"{name}[{group}]", weight, "input", input)
    if len(reverse) != G:
        raise RuntimeError(f"reverse: expected {G} flags, one a group, got {len(reverse)}")
    T, B = input.shape[:2]
    for name, state, size in (("hx", hx, (G, B, P)), ("cx", cx, (G, B, H))):
        if state is not None:
            check_size(name, state, size)
            check_like(name, state, "input", input)
    if lengths is not None:
        check_lengths(lengths, T, B)


def _check_input(input: Tensor, weight_ih: Sequence[Tensor], G: int, four_h: int) -> int:
    """The input size I that follows; 0 if the input is igates."""
    if input.dim() not in ((3, 4) if weight_ih else (4,)):
        expected = "x (T, B, I) or (T, B, G, I)" if weight_ih else "igates (T, B, G, 4H)"
        raise RuntimeError(f"input: expected {expected}, got {input.dim()} dimensions")
    if input.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if input.dim() == 4 and input.shape[2] != G:
        raise RuntimeError(f"input: expected {G} groups, as weight_hh has, got {input.shape[2]}")
    if not weight_ih and input.shape[3] != four_h:
        raise RuntimeError(f"input: expected a last size of 4H = {four_h}, got {input.shape[3]}")
    return input.shape[-1] if weight_ih else 0


def check_layers(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[LSTMWeights],
    D: int,
    batch_first: bool,
    lengths: Tensor | None,
) -> None:
    """The arguments of :func:`fastlstm.functional.lstm`."""
    if not weights or len(weights) % D:
        raise RuntimeError(f"weights: expected {D} entries a layer, got {len(weights)} in all")
    packed = isinstance(input, PackedSequence)
    if packed and is_exporting():
        raise RuntimeError(
            "input: expected a padded batch with lengths, ONNX has no PackedSequence; "
            "got a PackedSequence"
        )
    data = input.data
    first = weights[0]
    if data.dtype != first.weight_ih.dtype and not torch.is_autocast_enabled(data.device.type):
        dtype = first.weight_ih.dtype
        raise ValueError(
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
    if packed and lengths is not None:
        raise ValueError("lengths: expected None beside a PackedSequence, which has its own")
    _check_weights(weights, D)
    if isinstance(input, PackedSequence):
        T, B = input.batch_sizes.shape[0], int(input.batch_sizes[0])
    else:
        T, B = data.shape[1::-1] if batch_first else data.shape[:2]
    if lengths is not None:
        check_lengths(lengths, T, B)
    if hx is not None:
        _check_two_states(hx)
        H, P = first.weight_hh.shape[0] // 4, first.weight_hh.shape[1]
        for index, (state, size) in enumerate(zip(hx, (P, H), strict=True)):
            expected = (len(weights), B, size)
            if tuple(state.shape) != expected:
                raise RuntimeError(
                    f"Expected hidden[{index}] size {expected}, got {list(state.shape)}"
                )
            if state.dtype != first.weight_hh.dtype:
                raise RuntimeError(
                    "Input and hidden tensors are not the same dtype, found input tensor with "
                    f"{data.dtype} and hidden tensor with {state.dtype}"
                )
            if state.device != data.device:
                raise RuntimeError(
                    "Input and hidden tensors are not at the same device, found input tensor at "
                    f"{data.device} and hidden tensor at {state.device}"
                )


def _check_two_states(hx: Sequence[Tensor]) -> None:
    if len(hx) != 2:
        raise RuntimeError(f"hx: expected two states, hidden and cell, got {len(hx)}")


def _check_weights(weights: Sequence[LSTMWeights], D: int) -> None:
    first = weights[0]
    four_h, P = first.weight_hh.shape
    for index, entry in enumerate(weights):
        input_size = first.weight_ih.shape[1] if index < D else D * P
        sizes = {
            "weight_ih": (four_h, input_size),
            "weight_hh": (four_h, P),
            "bias_ih": (four_h,),
            "bias_hh": (four_h,),
            "weight_ch": (3 * four_h // 4,),
            "weight_hr": (P, four_h // 4),
        }
        for name, size in sizes.items():
            weight = getattr(entry, name)
            if (weight is None) != (getattr(first, name) is None):
                raise RuntimeError(f"weights[{index}].{name}: expected in all entries or in none")
            if weight is not None:
                check_size(f"weights[{index}].{name}", weight, size)


def check_cell(input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: LSTMWeights) -> None:
    """The arguments of :func:`fastlstm.functional.lstm_cell`, which are batched by now."""
    four_h, input_size = weights.weight_ih.shape
    if input.shape[1] != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.shape[1]} expected {input_size}"
        )
    _check_weights([weights], 1)
    autocast = torch.is_autocast_enabled(input.device.type)
    if input.dtype != weights.weight_ih.dtype and not autocast:
        raise RuntimeError(
            f"input: expected dtype {weights.weight_ih.dtype}, that of weight_ih, got {input.dtype}"
        )
    if hx is None:
        return
    _check_two_states(hx)
    for index, state in enumerate(hx):
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
        if state.dtype != weights.weight_hh.dtype and not autocast:
            raise RuntimeError(
                f"hx[{index}]: expected dtype {weights.weight_hh.dtype}, that of weight_hh, "
                f"got {state.dtype}"
            )
