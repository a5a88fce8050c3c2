"""The compiled kernels. Tensors are passed as addresses, strides in elements; 0 means none.

Every shape and lifetime is in csrc/lstm.h, and for ``cuda`` in csrc/cuda/kernels.h."""

import collections.abc

def fma_flops(isa: str, num_threads: int) -> float:
    """Floating-point operations a second of a loop of nothing but float32 multiply-adds."""

def isas() -> list[str]:
    """The instruction sets available here, best first."""

def lstm_backward(
    *,
    dtype: str,
    T: int,
    B: int,
    G: int,
    H: int,
    I: int,
    P: int,
    checkpoint_every: int,
    reverse: collections.abc.Sequence[bool] | bytes,
    lengths: int,
    by_length: int,
    first_row: int,
    reset: int,
    input: int,
    input_stride: tuple[int, int, int],
    weight_ih: tuple[int, int],
    bias_ih: tuple[int, int],
    bias_hh: tuple[int, int],
    weight_hh: tuple[int, int],
    weight_ch: tuple[int, int],
    weight_hr: tuple[int, int],
    hx: int,
    cx: int,
    workspace: int,
    dy: int,
    dy_stride: tuple[int, int, int],
    dhy: int,
    dcy: int,
    dcells: int,
    y: int,
    reserve: int,
    checkpoints: int,
    dinput: int,
    dinput_stride: tuple[int, int, int],
    dweight_ih: int,
    dbias: int,
    dweight_hh: int,
    dweight_ch: int,
    dweight_hr: int,
    dhx: int,
    dcx: int,
    num_threads: int,
    isa: str,
) -> None:
    """The backward pass of a layer, all directions. Arguments are the fields of LstmBackward."""

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
) -> int:
    """Bytes of scratch that lstm_backward needs."""

def lstm_checksum(
    *,
    dtype: str,
    G: int,
    H: int,
    I: int,
    P: int,
    weight_ih: tuple[int, int],
    weight_hh: tuple[int, int],
    num_threads: int,
    isa: str,
) -> int:
    """64 bits that change when W_ih or W_hh do; not cryptographic."""

def lstm_forward(
    *,
    dtype: str,
    T: int,
    B: int,
    G: int,
    H: int,
    I: int,
    P: int,
    checkpoint_every: int,
    reverse: collections.abc.Sequence[bool] | bytes,
    lengths: int,
    by_length: int,
    first_row: int,
    reset: int,
    input: int,
    input_stride: tuple[int, int, int],
    weight_ih: tuple[int, int],
    bias_ih: tuple[int, int],
    bias_hh: tuple[int, int],
    weight_hh: tuple[int, int],
    weight_ch: tuple[int, int],
    weight_hr: tuple[int, int],
    hx: int,
    cx: int,
    workspace: int,
    y: int,
    hy: int,
    cy: int,
    cells: int,
    reserve: int,
    checkpoints: int,
    prepacked: int,
    is_prepacked: bool,
    num_threads: int,
    isa: str,
) -> None:
    """The forward pass of a layer, all directions. Arguments are the fields of LstmForward."""

def lstm_forward_prepacked(dtype: str, G: int, H: int, I: int, P: int, isa: str) -> int:
    """Bytes of prepacked weights, which lstm_forward can reuse."""

def lstm_forward_streams(
    dtype: str, T: int, B: int, G: int, H: int, I: int, P: int, isa: str
) -> bool:
    """Whether lstm_forward reads weights as they lie, and packs none, without prepacked ones."""

def lstm_forward_workspace(
    dtype: str, T: int, B: int, G: int, H: int, I: int, P: int, num_threads: int, isa: str
) -> int:
    """Bytes of scratch that lstm_forward needs."""

def lstm_prepack(
    *,
    dtype: str,
    G: int,
    H: int,
    I: int,
    P: int,
    weight_ih: tuple[int, int],
    weight_hh: tuple[int, int],
    prepacked: int,
    num_threads: int,
    isa: str,
) -> None:
    """Writes W_ih and W_hh in the kernel's layout to the memory at prepacked."""

class cuda:
    """The kernels for GPUs: functions, if ``built``.

    ``stream`` is a cudaStream_t, ``products`` "tf32" or "tf32x3", ``direction`` "forward" or
    "backward", ``plan`` one of ``plans``, or a ValueError is raised. ``layered``: the groups are
    the layers of one LSTM."""

    built: bool
    reason: str | None
    "why they were not built"
    architectures: tuple[int, ...]
    "that they were compiled for, as 90 for sm_90"
