"""The compiled kernels. Tensors are passed as addresses, strides in elements; 0 means none.

Every shape and lifetime is in csrc/lstm.h, and for ``cuda`` in csrc/cuda/kernels.h."""

import collections.abc
import typing

import torch
import typing_extensions

def bernoulli_loss(
    *,
    logits_dtype: str,
    targets_dtype: str,
    logits: int,
    targets: int,
    gradient: int,
    count: int,
    scale: float,
    num_threads: int,
    isa: str,
) -> tuple[float, bool]:
    """The sum of softplus(a) - t a, and whether all targets lie in [0, 1] and none is -0.

    ``scale`` is a factor of the gradient only."""

def direct_backward_op(*arguments: typing.Any) -> tuple | None:
    """The same for the op lstm_sequence_backward."""

def direct_cell(
    module: typing.Any, record: typing.Any, input: typing.Any, hx: typing.Any
) -> tuple | None:
    """The outputs of LSTMCell.forward, or None if the general path has to compute them."""

def direct_forward_op(*arguments: typing.Any) -> tuple | None:
    """The outputs of the op lstm_sequence, or None if the general path has to compute them."""

def direct_gradients(layout: tuple, saved: tuple, grads: tuple, needs: tuple) -> tuple | None:
    """The gradients of a direct call's tensors, or None if the general path has to compute them."""

def direct_lstm(
    module: typing.Any,
    record: typing.Any,
    input: typing.Any,
    hx: typing.Any,
    lengths: typing.Any,
    reset: typing.Any,
    options: typing.Any,
    normalize: typing.Any,
) -> tuple | None:
    """The outputs of LSTM.forward, or None if the general path has to compute them."""

def draw_mask(
    *,
    dtype: str,
    seed: int,
    p: float,
    dropped: float,
    kept: float,
    count: int,
    to: int,
    num_threads: int,
    isa: str,
) -> None:
    """Writes ``dropped`` with probability p, and else ``kept``: see csrc/cpu/masks.cpp."""

def fma_flops(isa: str, num_threads: int) -> float:
    """Floating-point operations a second of a loop of nothing but float32 multiply-adds."""

def isas() -> list[str]:
    """The instruction sets available here, best first."""

def layer_norm_backward(
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
    options: int,
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
    norm_hh: int,
    norm_c: int,
    hidden_mask: int,
    keep_h: int,
    keep_h_stride: tuple[int, int, int],
    keep_c: int,
    keep_c_stride: tuple[int, int, int],
    cell_clip: int,
    dnorm_hh: int,
    dnorm_c: int,
    num_threads: int,
    isa: str,
) -> None:
    """The same with layer norm. Arguments are the fields of LayerNormBackward."""

def layer_norm_forward(
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
    options: int,
    y: int,
    hy: int,
    cy: int,
    cells: int,
    reserve: int,
    checkpoints: int,
    prepacked: int,
    is_prepacked: bool,
    norm_hh: int,
    norm_c: int,
    hidden_mask: int,
    keep_h: int,
    keep_h_stride: tuple[int, int, int],
    keep_c: int,
    keep_c_stride: tuple[int, int, int],
    cell_clip: int,
    num_threads: int,
    isa: str,
) -> None:
    """The same with layer norm. Arguments are the fields of LayerNormForward."""

def limit_spare_buffers(bytes: int) -> None:
    """How many bytes of such buffers are kept: 256 MiB at first."""

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
    options: int,
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
    options: int,
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

def lstm_forward_streams(
    dtype: str, T: int, B: int, G: int, H: int, I: int, P: int, isa: str
) -> bool:
    """Whether lstm_forward reads weights as they lie, and packs none, without prepacked ones."""

def poison_scratch(poisoned: bool) -> None:
    """Whether the memory that kernels work in is NaN at first, for tests."""

def pooled_empty(sizes: collections.abc.Sequence[int], dtype: typing.Any) -> torch.Tensor:
    """A tensor on the CPU with anything in it, for what the next training step makes anew: the data
    that a backward pass reads, and the gradients of weights.

    From 1 MiB on its memory returns to a pool when the last tensor on it is freed, and it cannot be
    resized."""

def set_direct(reading: str) -> bool:
    """How direct calls read tensors: "dlpack", the default, "attributes", or "off": there are none.
    Returns False if this torch lacks it. For tests."""

def spare_buffers() -> list[int]:
    """The bytes of the pool's buffers that nobody uses, oldest first."""

class LstmCellOptions:
    """What cells compute beyond the plain equations: see csrc/lstm.h."""

    def __init__(
        self,
        *,
        hidden_mask: int,
        masked_hx: int,
        keep_h: int,
        keep_h_stride: tuple[int, int, int],
        keep_c: int,
        keep_c_stride: tuple[int, int, int],
        cell_clip: float,
    ) -> None: ...
    @property
    def address(self) -> int: ...

class PrepackedMemory:
    """A layer's weights in the kernels' layout."""

    @property
    def address(self) -> int: ...

class PrepackedWeights:
    """A cache of one layer's prepacked weights; empty at first."""

    def __init__(self) -> None: ...
    def of(
        self,
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
    ) -> PrepackedMemory:
        """The packed weights. They are packed again if a checksum of W_ih and W_hh has changed."""

    @property
    def memory(self) -> PrepackedMemory: ...

class Stream:
    """A stepping object: see csrc/stream.h and fastlstm.Stream."""

    def __new__(cls, **keywords: typing.Any) -> typing_extensions.Self:
        """Create and return a new object.  See help(type) for accurate signature."""

    def _get_state(self, h: torch.Tensor, c: torch.Tensor) -> None:
        """Write the state to tensors."""

    def _is_current(self, layer: tuple) -> bool:
        """Whether the weights of a stream of one layer are those of the first such call."""

    def _num_threads(self) -> int:
        """The most threads of a step."""

    def _reset(self, rows: bytes | None) -> None:
        """Set rows to the initial state."""

    def _run_layer(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        hx: torch.Tensor,
        cx: torch.Tensor,
        hy: torch.Tensor,
        cy: torch.Tensor,
        group: int,
        reverse: bool,
    ) -> bool:
        """Run a sequence in one group of a layer; false if another thread is using the stream."""

    def _set_state(self, h: torch.Tensor, c: torch.Tensor) -> None:
        """Read the state from tensors."""

    def _set_weights(
        self, layers: list, h_0: torch.Tensor | None, c_0: torch.Tensor | None
    ) -> None:
        """Pack other weights."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """Run T steps of every row: the results of single steps to the bit, in less time.

        Args:
            x: (T, B, I), float32, on the CPU, with any strides; also if ``lstm.batch_first``.

        Returns:
            y (T, B, P), a new tensor.

        Raises:
            TypeError, ValueError, RuntimeError: as :meth:`step` does."""

    def step(self, x: torch.Tensor) -> torch.Tensor:
        """Run one step of every row.

        Args:
            x: (B, I), float32, on the CPU, with any strides.

        Returns:
            y (B, P), the last layer's h: one tensor, which the next step overwrites. Clone it to
            keep it.

        Raises:
            TypeError: x is no Tensor.
            ValueError: x has another size, dtype or device, or is of a subclass of Tensor.
            RuntimeError: another thread is using the stream."""

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
    ptx: tuple[int, ...]
    "those of them that later GPUs can be compiled for"

    @staticmethod
    def backward(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        layered: bool,
        weight_ih: tuple[int, int],
        weight_hh: tuple[int, int],
        weight_ch: tuple[int, int],
        hx: int,
        cx: int,
        workspace: int,
        dy: int,
        dy_stride: tuple[int, int, int],
        dhy: int,
        dcy: int,
        dcells: int,
        reserve: int,
        digates: int,
        digates_stride: tuple[int, int, int],
        dbias: int,
        dweight_ch: int,
        dhx: int,
        dcx: int,
        device: int,
        stream: int,
        products: str,
        plan: dict[str, int],
    ) -> None:
        """The backward pass in one launch. Arguments are the fields of RecurrenceBackward."""

    @staticmethod
    def backward_with_options(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        layered: bool,
        weight_ih: tuple[int, int],
        weight_hh: tuple[int, int],
        weight_ch: tuple[int, int],
        hx: int,
        cx: int,
        workspace: int,
        dy: int,
        dy_stride: tuple[int, int, int],
        dhy: int,
        dcy: int,
        dcells: int,
        reserve: int,
        digates: int,
        digates_stride: tuple[int, int, int],
        dbias: int,
        dweight_ch: int,
        dhx: int,
        dcx: int,
        options: dict[str, typing.Any],
        dh_kept: int,
        device: int,
        stream: int,
        products: str,
        plan: dict[str, int],
    ) -> None:
        """As backward does. Arguments are the fields of RecurrenceBackwardWithOptions."""

    @staticmethod
    def cell_backward(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        step: int,
        dy: int,
        dy_stride: tuple[int, int, int],
        dcells: int,
        reserve: int,
        weight_ch: tuple[int, int],
        cx: int,
        digates: int,
        digates_stride: tuple[int, int, int],
        dhgates: int,
        dh: int,
        dc: int,
        dbias: int,
        dweight_ch: int,
        device: int,
        stream: int,
    ) -> None:
        """One step of the backward pass. Arguments are the fields of CellBackward."""

    @staticmethod
    def cell_backward_with_options(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        step: int,
        dy: int,
        dy_stride: tuple[int, int, int],
        dcells: int,
        reserve: int,
        weight_ch: tuple[int, int],
        cx: int,
        digates: int,
        digates_stride: tuple[int, int, int],
        dhgates: int,
        dh: int,
        dc: int,
        dbias: int,
        dweight_ch: int,
        options: dict[str, typing.Any],
        device: int,
        stream: int,
    ) -> None:
        """As cell_backward does. Arguments are the fields of CellBackwardWithOptions."""

    @staticmethod
    def cell_forward(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        step: int,
        igates: int,
        igates_stride: tuple[int, int, int],
        hgates: int,
        weight_ch: tuple[int, int],
        h: int,
        c: int,
        y: int,
        cells: int,
        reserve: int,
        device: int,
        stream: int,
    ) -> None:
        """One step of the forward pass. Arguments are the fields of CellForward."""

    @staticmethod
    def cell_forward_with_options(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        step: int,
        igates: int,
        igates_stride: tuple[int, int, int],
        hgates: int,
        weight_ch: tuple[int, int],
        h: int,
        c: int,
        y: int,
        cells: int,
        reserve: int,
        options: dict[str, typing.Any],
        masked_h: int,
        device: int,
        stream: int,
    ) -> None:
        """As cell_forward does. Arguments are the fields of CellForwardWithOptions."""

    @staticmethod
    def costs() -> dict[str, float]:
        """The constants of the model by which plans are ranked."""

    @staticmethod
    def device(number: int) -> dict[str, int]:
        """What the plans depend on: major, minor, multiprocessors, shared_memory."""

    @staticmethod
    def forward(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        layered: bool,
        weight_ih: tuple[int, int],
        weight_hh: tuple[int, int],
        weight_ch: tuple[int, int],
        hx: int,
        cx: int,
        workspace: int,
        igates: int,
        igates_stride: tuple[int, int, int],
        bias: tuple[int, int],
        y: int,
        y_below: int,
        hy: int,
        cy: int,
        cells: int,
        reserve: int,
        device: int,
        stream: int,
        products: str,
        plan: dict[str, int],
    ) -> None:
        """The forward pass in one launch. Arguments are the fields of RecurrenceForward."""

    @staticmethod
    def forward_with_options(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        layered: bool,
        weight_ih: tuple[int, int],
        weight_hh: tuple[int, int],
        weight_ch: tuple[int, int],
        hx: int,
        cx: int,
        workspace: int,
        igates: int,
        igates_stride: tuple[int, int, int],
        bias: tuple[int, int],
        y: int,
        y_below: int,
        hy: int,
        cy: int,
        cells: int,
        reserve: int,
        options: dict[str, typing.Any],
        device: int,
        stream: int,
        products: str,
        plan: dict[str, int],
    ) -> None:
        """As forward does. Arguments are the fields of RecurrenceForwardWithOptions."""

    @staticmethod
    def normalized_cell_backward(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        step: int,
        dy: int,
        dy_stride: tuple[int, int, int],
        dcells: int,
        reserve: int,
        weight_ch: tuple[int, int],
        cx: int,
        digates: int,
        digates_stride: tuple[int, int, int],
        dhgates: int,
        dh: int,
        dc: int,
        dbias: int,
        dweight_ch: int,
        options: dict[str, typing.Any],
        norm_hh: int,
        norm_c: int,
        dz: int,
        dnorm_hh: int,
        dnorm_c: int,
        device: int,
        stream: int,
    ) -> None:
        """The same with layer norm. Arguments are the fields of NormalizedCellBackward."""

    @staticmethod
    def normalized_cell_forward(
        *,
        dtype: str,
        T: int,
        B: int,
        G: int,
        H: int,
        reverse: collections.abc.Sequence[bool] | bytes,
        lengths: int,
        reset: int,
        step: int,
        igates: int,
        igates_stride: tuple[int, int, int],
        hgates: int,
        weight_ch: tuple[int, int],
        h: int,
        c: int,
        y: int,
        cells: int,
        reserve: int,
        options: dict[str, typing.Any],
        masked_h: int,
        norm_hh: int,
        norm_c: int,
        device: int,
        stream: int,
    ) -> None:
        """The same with layer norm. Arguments are the fields of NormalizedCellForward."""

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
        """The plans that fit on the device, best first; and why there is none, or ""."""

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
