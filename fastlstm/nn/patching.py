"""Tools for code that names torch's classes: ``patched``, ``LSTM_TYPES``, ``LSTM_CELL_TYPES``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from fastlstm.nn.lstm import LSTM
from fastlstm.nn.lstm_cell import LSTMCell
from fastlstm.nn.scripting import TorchLSTM, TorchLSTMCell

LSTM_TYPES: tuple[type[nn.Module], type[LSTM]] = (TorchLSTM, LSTM)
"""``nn.LSTM`` and ``fastlstm.LSTM``, for ``isinstance(m, fastlstm.LSTM_TYPES)``."""

LSTM_CELL_TYPES: tuple[type[nn.Module], type[LSTMCell]] = (TorchLSTMCell, LSTMCell)
"""``nn.LSTMCell`` and ``fastlstm.LSTMCell``, for ``isinstance(m, fastlstm.LSTM_CELL_TYPES)``."""

_NAMESPACES = (nn, nn.modules, nn.modules.rnn)
_lock = threading.Lock()
_blocks = 0  # that are open, in all threads
_displaced: list[tuple[object, str, object]] = []


@contextmanager
def patched() -> Iterator[None]:
    """Make ``torch.nn.LSTM`` and ``torch.nn.LSTMCell`` fastlstm's classes inside a block.

    The block is for code that cannot be changed, while it builds a model and initialises it. In it
    ``nn.LSTM(...)`` makes a ``fastlstm.LSTM``, and ``isinstance(m, nn.LSTM)`` is true for it. A
    class that is defined in the block with the base ``nn.LSTM`` keeps fastlstm's class as its base.
    After the block, and after an exception in it, torch's classes are back and the model keeps
    fastlstm's modules. Call ``torch.compile`` after the block: it breaks the graph at instances of
    ``torch.nn.LSTM``, and inside the block these are ours.

    Blocks may be nested, and may overlap in several threads. The names belong to the whole process,
    so other threads see fastlstm's classes until the last block ends. A name that was imported
    before, as by ``from torch.nn import LSTM``, is not changed.

    Example:
        >>> with fastlstm.patched():
        ...     model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
        >>> type(model[0]) is fastlstm.LSTM, torch.nn.LSTM is fastlstm.LSTM
        (True, False)
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
