"""The compiled kernels. Tensors are passed as addresses, strides in elements; 0 means none.

The contract, with every shape and lifetime, is csrc/lstm.h.
"""

from collections.abc import Sequence

_Strides = tuple[int, int, int]
_Weight = tuple[int, int]
"""Group 0's address, and the elements from one group's to the next group's."""

def lstm_forward(
    dtype: str,
    T: int,
    B: int,
    G: int,
    H: int,
    I: int,
    P: int,
    *,
    reverse: Sequence[int] | bytes,
    lengths: int,
    by_length: int,
    first_row: int,
    reset: int,
    input: int,
    input_stride: _Strides,
    weight_ih: _Weight,
    bias_ih: _Weight,
    bias_hh: _Weight,
    weight_hh: _Weight,
    weight_ch: _Weight,
    weight_hr: _Weight,
    hx: int,
    cx: int,
    y: int,
    hy: int,
    cy: int,
    cells: int,
    checkpoint_every: int,
    reserve: int,
    states: int,
    packed: int,
    is_packed: bool,
    workspace: int,
    num_threads: int,
    isa: str,
) -> None: ...
def lstm_backward(
    dtype: str,
    T: int,
    B: int,
    G: int,
    H: int,
    I: int,
    P: int,
    *,
    reverse: Sequence[int] | bytes,
    lengths: int,
    by_length: int,
    first_row: int,
    reset: int,
    dy: int,
    dy_stride: _Strides,
    dhy: int,
    dcy: int,
    dcells: int,
    checkpoint_every: int,
    reserve: int,
    states: int,
    y: int,
    input: int,
    input_stride: _Strides,
    weight_ih: _Weight,
    bias_ih: _Weight,
    bias_hh: _Weight,
    weight_hh: _Weight,
    weight_ch: _Weight,
    weight_hr: _Weight,
    hx: int,
    cx: int,
    dinput: int,
    dinput_stride: _Strides,
    dweight_ih: int,
    dbias: int,
    dweight_hh: int,
    dweight_ch: int,
    dweight_hr: int,
    dhx: int,
    dcx: int,
    workspace: int,
    num_threads: int,
    isa: str,
) -> None: ...
def lstm_pack(
    *,
    dtype: str,
    G: int,
    H: int,
    I: int,
    P: int,
    weight_ih: _Weight,
    weight_hh: _Weight,
    packed: int,
    num_threads: int,
    isa: str,
) -> None: ...
def lstm_checksum(
    *,
    dtype: str,
    G: int,
    H: int,
    I: int,
    P: int,
    weight_ih: _Weight,
    weight_hh: _Weight,
    num_threads: int,
    isa: str,
) -> int: ...
def lstm_forward_streams(
    dtype: str, T: int, B: int, G: int, H: int, I: int, P: int, isa: str
) -> bool: ...
def lstm_forward_packed(dtype: str, G: int, H: int, I: int, P: int, isa: str) -> int: ...
def lstm_forward_workspace(
    dtype: str, T: int, B: int, G: int, H: int, I: int, P: int, num_threads: int, isa: str
) -> int: ...
def lstm_backward_workspace(
    dtype: str,
    T: int,
    B: int,
    G: int,
    H: int,
    I: int,
    P: int,
    checkpoint_every: int,
    num_threads: int,
    isa: str,
) -> int: ...
def fma_flops(isa: str, num_threads: int) -> float: ...
def isas() -> list[str]: ...
