"""What code that names torch's classes needs: both classes to ask for, ours under torch's names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fastlstm.nn.lstm import LSTM
from fastlstm.nn.lstm_cell import LSTMCell
from fastlstm.nn.scripting import TorchLSTM, TorchLSTMCell

LSTM_TYPES: tuple[type[nn.Module], type[LSTM]] = (TorchLSTM, LSTM)
"""For ``isinstance(m, fastlstm.LSTM_TYPES)``: ``nn.LSTM`` and ours."""

LSTM_CELL_TYPES: tuple[type[nn.Module], type[LSTMCell]] = (TorchLSTMCell, LSTMCell)
"""For ``isinstance(m, fastlstm.LSTM_CELL_TYPES)``: ``nn.LSTMCell`` and ours."""

_NAMESPACES = (nn, nn.modules, nn.modules.rnn)
_lock = threading.Lock()
_blocks = 0  # that are open, in all threads
_displaced: list[tuple[object, str, object]] = []


@contextmanager
def patched() -> Iterator[None]:
    """Inside of the block ``torch.nn.LSTM`` and ``torch.nn.LSTMCell`` are fastlstm's classes.

    For code that cannot be changed, while it builds a model and initialises it: ``nn.LSTM(...)``
    makes ours there, and ``isinstance(m, nn.LSTM)`` is true of them. A class that inherits from
    ``nn.LSTM`` inside of the block inherits from ours, for good. After the block, and after an
    exception in it, torch's classes are back and the model keeps ours, which torch.compile then
    takes without a break: it refuses whatever is an instance of ``torch.nn.LSTM``, ours too while
    they stand there.

    Blocks may be nested, and may overlap in several threads; the names are those of the whole
    process, so other threads see ours until the last block ends. What was imported by name before,
    as ``from torch.nn import LSTM`` does, is not reached.

    Example:
        >>> with fastlstm.patched():  # doctest: +SKIP
        ...     model = Model()
        ...     model.apply(initialise)
    """
    global _blocks
    with _lock:
        if not _blocks:
            for space in _NAMESPACES:
                for ours in (LSTM, LSTMCell):
                    _displaced.append((space, ours.__name__, getattr(space, ours.__name__)))
                    setattr(space, ours.__name__, ours)
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            while not _blocks and _displaced:
                setattr(*_displaced.pop())
