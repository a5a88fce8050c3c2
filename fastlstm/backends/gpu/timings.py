"""Measurements by name and number of multiprocessors of the GPU; none has been measured yet.

``TABLES`` has the fastest backend of LSTMs without peepholes. Without an entry
:mod:`fastlstm.backends.gpu.choice` chooses cuDNN where it can. ``PASSES`` has the times of the two
ways of the cuda backend, between which :mod:`fastlstm.backends.cuda.ways` else chooses by a model.
``python -m benchmarks.gpu.tune`` writes a GPU's entries.
"""

from __future__ import annotations

from typing import NamedTuple


class Measured(NamedTuple):
    """One LSTM, and the name of the backend that ran it fastest."""

    dtype: str
    H: int
    B: int
    L: int
    G: int
    """directions"""
    train: bool
    """forward and backward; else forward alone"""
    backend: str


TABLES: dict[tuple[str, int], tuple[Measured, ...]] = {}
"""by :func:`fastlstm.backends.gpu.kind`"""


class MeasuredPass(NamedTuple):
    """One pass of the recurrence by the cuda backend: us of a step by each of its two ways."""

    direction: str
    dtype: str
    H: int
    B: int
    G: int
    persistent_us: float
    stepwise_us: float


PASSES: dict[tuple[str, int], tuple[MeasuredPass, ...]] = {}
