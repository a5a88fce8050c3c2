"""What a module checks before it calls the functional layer, which takes batches and weights only.

Exception types are those of ``nn.LSTM`` and ``nn.LSTMCell``, and where they raise in Python so is
the text.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastlstm.call import LSTMWeights
from fastlstm.checks import check_states
from fastlstm.layout_checks import check_dense, check_tensor


def check_attributes(
    module: nn.RNNBase | nn.RNNCellBase, weights: LSTMWeights, suffix: str = ""
) -> None:
    """RuntimeError where a weight or a size of a module was changed and the other was not.

    nn.LSTM computes with whatever it finds in memory then. ``weights`` are those of layer 0; the
    others are compared with it.
    """
    if module.peephole and weights.weight_ch is None:
        raise TypeError(f"weight_ch{suffix}: expected a Tensor, got NoneType")
    H = module.hidden_size
    sizes = ((4 * H, module.input_size), (4 * H, getattr(module, "proj_size", 0) or H))
    for name, weight, size in zip(weights._fields, weights, sizes, strict=False):
        if not isinstance(weight, Tensor):
            raise TypeError(f"{name}{suffix}: expected a Tensor, got {type(weight).__name__}")
        if weight.shape != size:
            raise RuntimeError(
                f"{name}{suffix}: expected size {size} for input_size={module.input_size} and "
                f"hidden_size={H}, got {tuple(weight.shape)}"
            )


def check_layout(module: nn.RNNBase) -> None:
    """RuntimeError where what decides how many weights there are was changed afterwards."""
    D = 2 if module.bidirectional else 1
    layers, kinds = len(module._all_weights), len(module._all_weights[0])
    asked = 2 + 2 * module.bias + (module.proj_size > 0)
    if layers != module.num_layers * D or kinds != asked:
        raise RuntimeError(
            "num_layers, bidirectional, bias, proj_size: expected what the module was made with, "
            f"{layers} layers and directions of {kinds} weights each, got "
            f"{module.num_layers}, {module.bidirectional}, {module.bias}, {module.proj_size}"
        )


def check_input(input: Tensor, hx: Sequence[Tensor] | None) -> None:
    """A tensor for an LSTM, and states of as many dimensions."""
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


def check_cell_input(input: Tensor, hx: Sequence[Tensor] | None) -> None:
    """A tensor for an LSTMCell, and states of as many dimensions."""
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
