"""The compiled kernels. Tensors are passed as addresses, strides in elements; 0 means none.

The contract, with every shape and lifetime, is csrc/lstm.h, and for ``cuda`` csrc/cuda/kernels.h.
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

class cuda:
    """The submodule of the kernels for GPUs: functions, where ``built``.

    ``stream`` is a cudaStream_t, ``products`` "tf32" or "tf32x3", ``direction`` "forward" or
    "backward", ``plan`` a Plan as a dict: one of ``plans``, or it raises a ValueError.
    """

    built: bool
    reason: str | None
    """why they were not built"""
    architectures: tuple[int, ...]
    """that they were compiled for, as 90 for sm_90"""

    @staticmethod
    def device(number: int) -> dict[str, int]:
        """major, minor, multiprocessors, shared_memory."""

    @staticmethod
    def plans(
        direction: str,
        dtype: str,
        B: int,
        G: int,
        H: int,
        *,
        layered: bool = False,
        products: str,
        device: dict[str, int],
    ) -> tuple[list[dict[str, int]], str]:
        """What fits on the device, best first; and why nothing does, or "".

        ``layered``: the groups are layers, each but the first of which reads the one before it.
        """

    @staticmethod
    def costs() -> dict[str, float]:
        """The constants of the model by which plans are ranked."""

    @staticmethod
    def step_ns(
        direction: str,
        dtype: str,
        B: int,
        G: int,
        H: int,
        *,
        layered: bool = False,
        products: str,
        plan: dict[str, int],
        costs: dict[str, float],
    ) -> float:
        """What the model expects a step of the plan to take."""

    @staticmethod
    def forward(
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        *,
        layered: bool,
        reverse: Sequence[int],
        lengths: int,
        reset: int,
        igates: int,
        igates_stride: _Strides,
        weight_ih: _Weight,
        bias_ih: _Weight,
        weight_hh: _Weight,
        weight_ch: _Weight,
        hx: int,
        cx: int,
        y: int,
        hy: int,
        cy: int,
        cells: int,
        states: int,
        reserve: int,
        workspace: int,
        products: str,
        plan: dict[str, int],
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def backward(
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        *,
        layered: bool,
        reverse: Sequence[int],
        lengths: int,
        reset: int,
        dy: int,
        dy_stride: _Strides,
        dhy: int,
        dcy: int,
        dcells: int,
        reserve: int,
        y: int,
        weight_ih: _Weight,
        weight_hh: _Weight,
        weight_ch: _Weight,
        hx: int,
        cx: int,
        digates: int,
        digates_stride: _Strides,
        dbias: int,
        dweight_ch: int,
        dhx: int,
        dcx: int,
        workspace: int,
        products: str,
        plan: dict[str, int],
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def cell_forward(
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        *,
        step: int,
        reverse: Sequence[int],
        lengths: int,
        reset: int,
        igates: int,
        igates_stride: _Strides,
        weight_ch: _Weight,
        y: int,
        cells: int,
        reserve: int,
        hgates: int,
        h: int,
        c: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def cell_backward(
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        *,
        step: int,
        reverse: Sequence[int],
        lengths: int,
        reset: int,
        dy: int,
        dy_stride: _Strides,
        dcells: int,
        reserve: int,
        weight_ch: _Weight,
        cx: int,
        digates: int,
        digates_stride: _Strides,
        dbias: int,
        dweight_ch: int,
        dhgates: int,
        dh: int,
        dc: int,
        device: int,
        stream: int,
    ) -> None: ...
