"""The compiled kernels. Tensors are passed as addresses, strides in elements; 0 means none.

The contract, with every shape and lifetime, is csrc/lstm.h.
"""

from collections.abc import Sequence

def lstm_forward(
    *,
    dtype: str,
    T: int,
    B: int,
    G: int,
    H: int,
    reverse: Sequence[bool] | bytes,
    lengths: int,
    igates: int,
    igates_stride: tuple[int, int, int],
    weight_hh: int,
    weight_hh_stride: int,
    weight_ch: int,
    weight_ch_stride: int,
    hx: int,
    cx: int,
    y: int,
    hy: int,
    cy: int,
    reserve: int,
    workspace: int,
    num_threads: int,
    isa: str = "auto",
) -> None: ...
def lstm_backward(
    *,
    dtype: str,
    T: int,
    B: int,
    G: int,
    H: int,
    reverse: Sequence[bool] | bytes,
    lengths: int,
    dy: int,
    dy_stride: tuple[int, int, int],
    dhy: int,
    dcy: int,
    reserve: int,
    weight_hh: int,
    weight_hh_stride: int,
    weight_ch: int,
    weight_ch_stride: int,
    cx: int,
    digates: int,
    dweight_ch: int,
    dhx: int,
    dcx: int,
    workspace: int,
    num_threads: int,
    isa: str = "auto",
) -> None: ...
def lstm_forward_workspace(
    dtype: str, T: int, B: int, G: int, H: int, num_threads: int, isa: str = "auto"
) -> int: ...
def lstm_backward_workspace(
    dtype: str, T: int, B: int, G: int, H: int, num_threads: int, isa: str = "auto"
) -> int: ...
def isas() -> list[str]: ...
