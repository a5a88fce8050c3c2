"""``Stream``: an LSTM that is stepped on the CPU, for inference on data that arrives over time."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.backends.cpu.stored import WEIGHT_TYPES
from fastlstm.layers import dense_weight
from fastlstm.nn.options import refuse_options

_MODULE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Stream(_C.Stream):
    """Step an LSTM over data that arrives over time; made by :meth:`fastlstm.LSTM.stream`.

    A stream holds a packed copy of the module's weights, and the state (h and c of every layer and
    row). A call does nothing but the arithmetic: with I = H = 4 a step takes 0.3 us, where a call
    of the module takes 7. See docs/streaming.md.

    The weights are a snapshot: later changes of the module are seen after :meth:`refresh` only.
    Results are those of the module in eval mode, without dropout; they never require a gradient.
    bfloat16 and int8 are types of storage: sums are float32. int8 has a scale for each row of each
    weight matrix. Heads (``num_heads``) are stored as one block-diagonal W_hh, zeros included, and
    save no time here. Where a row of x has an infinity, a stream with int8 may return NaN.

    A stream runs one call at a time. It can be neither copied nor pickled: both raise TypeError.
    After ``os.fork`` it works in the child too, with a state of its own.

    ``step`` and ``run`` are compiled methods: a method of Python around them would take 0.1 us.

    Sizes: T time steps, a batch of B rows, I input_size, H hidden_size, L num_layers, and P, the
    size of h: proj_size, or H without a projection.

    Args:
        lstm: the module, on the CPU, of dtype float32, bfloat16 or float16, and not bidirectional.
        batch_size: B.
        dtype_of_weights: "float32", "bfloat16" or "int8". Relative error of 50 steps against
            float64: 2e-7, 2e-3 and 5e-3. Default: "float32".
        isa: an instruction set, one of ``fastlstm.backends.cpu.isas()``; "auto" is the fastest.

    Raises:
        TypeError: ``lstm`` is no LSTM, or ``batch_size`` no integer.
        ValueError: ``batch_size`` is below 1, ``dtype_of_weights`` is unknown, the module is
            bidirectional, on another device or of another dtype.

    Example:
        >>> lstm = fastlstm.LSTM(10, 20, num_layers=2)
        >>> stream = lstm.stream(batch_size=3)
        >>> first = stream.step(torch.randn(3, 10)).clone()
        >>> rest = stream.run(torch.randn(5, 3, 10))
        >>> first.shape, rest.shape
        (torch.Size([3, 20]), torch.Size([5, 3, 20]))
        >>> h, c = stream.state
        >>> torch.equal(h[-1], rest[-1])
        True
        >>> stream.reset([0, 2])  # rows 0 and 2 start again
    """

    _lstm: Any
    _sizes: tuple[int, int, int, int]  # L, B, P, H

    def __new__(
        cls, lstm: Any, batch_size: int, dtype_of_weights: str = "float32", isa: str = "auto"
    ) -> Stream:
        """Check the arguments and pack the weights."""
        _check_module(lstm)
        if isinstance(batch_size, bool) or not isinstance(batch_size, int):
            raise TypeError(f"batch_size: expected an int, got {type(batch_size).__name__}")
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        if dtype_of_weights not in WEIGHT_TYPES:
            known = ", ".join(WEIGHT_TYPES)
            raise ValueError(f"dtype_of_weights: expected {known}, got {dtype_of_weights!r}")
        P = lstm.proj_size or lstm.hidden_size
        buffer = bytearray(4 * batch_size * P)
        with torch.inference_mode(False):
            output = torch.frombuffer(buffer, dtype=torch.float32).view(batch_size, P)
        layers, h_0, c_0 = _weights(lstm)
        self = super().__new__(
            cls,
            batch_size=batch_size,
            input_size=lstm.input_size,
            hidden_size=lstm.hidden_size,
            proj_size=lstm.proj_size,
            layers=layers,
            h_0=h_0,
            c_0=c_0,
            weight_type=WEIGHT_TYPES[dtype_of_weights],
            output=output,
            buffer=buffer,
            num_threads=torch.get_num_threads(),
            isa=isa,
        )
        self._lstm = lstm
        self._sizes = lstm.num_layers, batch_size, P, lstm.hidden_size
        return self

    @property
    def state(self) -> tuple[Tensor, Tensor]:
        """Copies of h (L, B, P) and c (L, B, H); set it to a pair of such tensors.

        Raises:
            TypeError: what it is set to is no pair of Tensors.
            ValueError: a tensor has another size, dtype or device.
            RuntimeError: another thread is using the stream.
        """
        L, B, P, H = self._sizes
        options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        h, c = torch.empty(L, B, P, **options), torch.empty(L, B, H, **options)
        self._get_state(h, c)
        return h, c

    @state.setter
    def state(self, state: tuple[Tensor, Tensor]) -> None:
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"state: expected the pair (h, c), got {type(state).__name__}")
        h, c = (s.detach().contiguous() if isinstance(s, Tensor) else s for s in state)
        self._set_state(h, c)

    def reset(self, rows: Any = None) -> None:
        """Set rows to the state from which they started.

        That is zero, or the parameters of ``learn_initial_state`` as they were packed.

        Args:
            rows: (B) booleans, or the indices of rows; a tensor, list or array. Default: all rows.

        Raises:
            ValueError: there are not B booleans, or an index is not in 0..B-1.
            TypeError: ``rows`` has other numbers than booleans and integers.
            RuntimeError: another thread is using the stream.
        """
        self._reset(None if rows is None else _flags(rows, self._sizes[1]))

    def refresh(self) -> None:
        """Pack the module's weights as they are now, and its initial state; keep the state.

        Raises:
            ValueError: the module has moved to another device or dtype, or has other sizes.
            RuntimeError: another thread is using the stream.
        """
        _check_module(self._lstm)
        self._set_weights(*_weights(self._lstm))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Stream can be neither copied nor pickled: make one with lstm.stream()")


def _check_module(lstm: Any) -> None:
    """TypeError or ValueError if no stream can be made of the module."""
    if not isinstance(lstm, torch.nn.RNNBase) or not hasattr(lstm, "learn_initial_state"):
        raise TypeError(f"lstm: expected a fastlstm.LSTM, got {type(lstm).__name__}")
    refuse_options(lstm, "a stream has no such option", in_evaluation=True)
    if lstm.bidirectional:
        raise ValueError(
            "lstm: expected bidirectional=False, as the reverse direction needs the whole "
            "sequence; got True"
        )
    weight = lstm.weight_ih_l0
    if weight.device.type != "cpu" or weight.dtype not in _MODULE_DTYPES:
        raise ValueError(
            "lstm: expected float32, bfloat16 or float16 parameters on the cpu, got "
            f"{str(weight.dtype).removeprefix('torch.')} on {weight.device}"
        )


def _weights(lstm: Any) -> tuple[list[tuple[Tensor | None, ...]], Tensor | None, Tensor | None]:
    """The weights of each layer and the initial state, as the compiled type takes them."""

    def plain(weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight.detach().to(torch.float32).contiguous()

    layers = []
    for weights in lstm.weights():
        dense = dense_weight(weights.weight_hh, lstm.num_heads)
        layers.append(tuple(map(plain, weights._replace(weight_hh=dense))))
    learnt = lstm.learn_initial_state
    return layers, *((plain(lstm.h_0), plain(lstm.c_0)) if learnt else (None, None))


def _flags(rows: Any, B: int) -> bytes:
    """One byte for each row, from booleans or indices."""
    rows = torch.as_tensor(rows)
    if rows.dtype == torch.bool:
        if rows.shape != (B,):
            raise ValueError(f"rows: expected ({B},) booleans, got {tuple(rows.shape)}")
        return bytes(rows.tolist())
    if rows.numel() and (rows.is_floating_point() or rows.is_complex()):
        raise TypeError(f"rows: expected booleans or integers, got {rows.dtype}")
    flags = bytearray(B)
    for row in rows.flatten().tolist():
        if not 0 <= row < B:
            raise ValueError(f"rows: expected indices in 0..{B - 1}, got {row}")
        flags[row] = 1
    return bytes(flags)
