"""Checks of the arguments of ``LSTMCell`` and ``lstm_cell``.

Exception types are those of ``nn.LSTMCell``; where it raises in Python, so are the texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastlstm.autocast import can_meet
from fastlstm.call import LSTMWeights
from fastlstm.checks import check_matrices, check_states, check_weights
from fastlstm.layout_checks import check_dense, check_tensor
from fastlstm.tracing import autocast_dtype


def check_cell_input(input: Tensor, hx: Sequence[Tensor] | None) -> None:
    """Check that the input of an LSTMCell is a tensor, and its states have as many dimensions."""
    check_tensor("input", input)
    check_dense("input", input)
    dim = input.dim()
    if dim not in (1, 2):
        raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {dim}D instead")
    if hx is None:
        return
    for index, state in enumerate(hx):
        if not isinstance(state, Tensor):
            check_tensor("hx", state)
        if state.dim() not in (1, 2):
            raise ValueError(
                f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead"
            )
    if dim == 2:
        check_states(hx)
    if hx[0].dim() != dim or hx[1].dim() != dim:
        raise RuntimeError(
            f"LSTMCell: Expected hx to be {dim}D, as the input is, "
            f"got {hx[0].dim()}D and {hx[1].dim()}D instead"
        )


def check_cell(input: Tensor, hx: tuple[Tensor, Tensor] | None, weights: LSTMWeights) -> None:
    """Check the arguments of :func:`fastlstm.lstm_cell`, which have a batch dimension."""
    check_matrices(weights)
    four_h, input_size = weights.weight_ih.shape
    if input.shape[1] != input_size:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.shape[1]} expected {input_size}"
        )
    autocast = autocast_dtype(input) is not None
    check_weights([weights], 1, input, autocast)
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
