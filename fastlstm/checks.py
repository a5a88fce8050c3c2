"""Argument checks of the functional layer: the argument, what was expected, what came.

Exception types are those of ``nn.LSTM``, and where it raises in Python so is the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastlstm.autocast import autocasts
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


def check_tensor(name: str, value: object, error: type[Exception] = AttributeError) -> None:
    """AttributeError for anything but a tensor: what nn.LSTM's own ``.dim()`` of it raises."""
    if not isinstance(value, Tensor):
        raise error(f"{name}: expected a Tensor, got {type(value).__name__}")


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


def check_packed(input: PackedSequence) -> None:
    """A PackedSequence made or changed by hand: nn.LSTM reads past its data, or leaves some out.

    Raises:
        TypeError: batch_sizes that are no tensor.
        RuntimeError: anything else.
    """
    data, batch_sizes, *orders = input
    check_tensor("batch_sizes", batch_sizes, TypeError)
    if batch_sizes.device.type != "cpu":
        raise RuntimeError(f"batch_sizes: expected device cpu, got {batch_sizes.device}")
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64:
        raise RuntimeError(
            "batch_sizes: expected one dimension of torch.int64, "
            f"got {batch_sizes.dim()} of {batch_sizes.dtype}"
        )
    if batch_sizes.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    # Values cannot be looked at while a compiler or tracer runs, nor in a fake tensor.
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if traced or type(batch_sizes) is not Tensor:
        return
    sizes = batch_sizes.tolist()
    if sizes[-1] < 1 or any(before < after for before, after in pairwise(sizes)):
        raise RuntimeError("batch_sizes: expected positive numbers, none above the one before it")
    if sum(sizes) != data.shape[0]:
        raise RuntimeError(
            f"batch_sizes: expected a sum of {data.shape[0]}, the rows of data, got {sum(sizes)}"
        )
    for name, order in zip(("sorted_indices", "unsorted_indices"), orders, strict=True):
        if order is not None:
            check_size(name, order, (sizes[0],))
            if order.dtype not in (torch.int64, torch.int32) or order.device != data.device:
                raise RuntimeError(
                    f"{name}: expected integers on {data.device}, "
                    f"got {order.dtype} on {order.device}"
                )


def check_lengths(lengths: Tensor, T: int, B: int) -> None:
    """RuntimeError unless ``lengths`` is (B,) integers in 1..T."""
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise RuntimeError(f"lengths: expected integers, got {lengths.dtype}")
    check_size("lengths", lengths, (B,))
    # Values cannot be looked at while a compiler traces; kernels clamp them into 0..T.
    if B and not torch.compiler.is_compiling():
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
    data = input.data
    check_tensor("input", data)
    first = weights[0]
    _check_matrices(first)
    if data.dtype != first.weight_ih.dtype and not autocasts(data.device.type):
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
    if isinstance(input, PackedSequence):
        check_packed(input)
    if packed and lengths is not None:
        raise ValueError("lengths: expected None beside a PackedSequence, which has its own")
    _check_weights(weights, D, data)
    if isinstance(input, PackedSequence):
        T, B = input.batch_sizes.shape[0], int(input.batch_sizes[0])
    else:
        T, B = data.shape[1::-1] if batch_first else data.shape[:2]
    if lengths is not None:
        check_lengths(lengths, T, B)
    if hx is not None:
        check_states(hx)
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
    autocast = autocasts(device.type)
    if first.weight_ih.device != device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{device} and parameter tensor at {first.weight_ih.device}"
        )
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
            if weight is None:
                continue
            # The message is put together after the fact: this runs some 8 times a call and layer.
            if weight.shape != size:
                check_size(f"weights[{index}].{name}", weight, size)
            if weight.device != device or (weight.dtype != dtype and not autocast):
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
    autocast = autocasts(input.device.type)
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
    if input.dtype != weights.weight_ih.dtype and not autocast:
        raise RuntimeError(
            f"input: expected dtype {weights.weight_ih.dtype}, that of weight_ih, got {input.dtype}"
        )
    for index, state in enumerate(hx or ()):
        if state.dtype != weights.weight_hh.dtype and not autocast:
            raise RuntimeError(
                f"hx[{index}]: expected dtype {weights.weight_hh.dtype}, that of weight_hh, "
                f"got {state.dtype}"
            )
        if state.device != input.device:
            raise RuntimeError(
                f"hx[{index}]: expected device {input.device}, that of input, got {state.device}"
            )
