"""Calls whose types mypy checks in ``make lint``; nothing here runs."""

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from typing_extensions import assert_type

import fastlstm


def of_a_tensor(lstm: fastlstm.LSTM, x: Tensor) -> Tensor:
    output, (h, c) = lstm(x)
    assert_type(output, Tensor)
    assert_type(lstm(x, (h, c), lengths=[3, 2]), tuple[Tensor, tuple[Tensor, Tensor]])
    return output


def of_a_packed_sequence(lstm: fastlstm.LSTM, x: PackedSequence) -> Tensor:
    output, _ = lstm(x)
    assert_type(output, PackedSequence)
    return output.data


def of_heads() -> fastlstm.LSTM:
    return fastlstm.LSTM(3, 4, num_heads=2)
