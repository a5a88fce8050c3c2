"""fastlstm: a drop-in ``nn.LSTM`` with peepholes and fused sequence kernels, and video models.

``LSTM_TYPES`` is (``nn.LSTM``, ``fastlstm.LSTM``) and ``LSTM_CELL_TYPES`` is (``nn.LSTMCell``,
``fastlstm.LSTMCell``), for ``isinstance(module, fastlstm.LSTM_TYPES)``.
"""

import torch

from fastlstm import openmp, renamed  # noqa: F401, openmp before the compiled module
from fastlstm.backends.cpu.prepacked import PackedWeights, PrepackedWeights  # noqa: F401
from fastlstm.backends.cpu.stored import RoundedWeights
from fastlstm.call import LSTMWeights
from fastlstm.functional import lstm, lstm_cell, lstm_sequence
from fastlstm.models.byte_lstm import ByteLSTM
from fastlstm.models.classifier import LSTMClassifier
from fastlstm.models.srivastava import CompositeLSTM, LSTMAutoencoder, LSTMFuturePredictor
from fastlstm.models.video import VideoLoss, VideoLSTM, VideoOutput
from fastlstm.nn import convert  # noqa: F401, so that fastlstm.nn.convert is there
from fastlstm.nn.explain import explain
from fastlstm.nn.lstm import LSTM
from fastlstm.nn.lstm_cell import LSTMCell
from fastlstm.nn.patching import LSTM_CELL_TYPES, LSTM_TYPES, patched
from fastlstm.nn.replace import Replacement, replace
from fastlstm.nn.segmented_loss import segmented_loss
from fastlstm.nn.stream import Stream
from fastlstm.op import flops  # noqa: F401, it registers formulas
from fastlstm.options import LayerNorm, LSTMOptions

# So that torch.load takes whole models where it allows known classes only (weights_only=True).
torch.serialization.add_safe_globals(
    [LSTM, LSTMCell, LSTMOptions, PrepackedWeights, RoundedWeights]
)
torch.serialization.add_safe_globals(  # files of version 0.1
    [
        (LSTM, "fastlstm.modules.LSTM"),
        (LSTMCell, "fastlstm.cell.LSTMCell"),
        (PrepackedWeights, "fastlstm.backends.packed.PackedWeights"),
    ]
)

__version__ = "0.1.0"


__getattr__ = renamed.old_module

__all__ = [
    "LSTM",
    "LSTM_CELL_TYPES",
    "LSTM_TYPES",
    "ByteLSTM",
    "CompositeLSTM",
    "LSTMAutoencoder",
    "LSTMCell",
    "LSTMClassifier",
    "LSTMFuturePredictor",
    "LSTMOptions",
    "LSTMWeights",
    "LayerNorm",
    "PrepackedWeights",
    "Replacement",
    "Stream",
    "VideoLSTM",
    "VideoLoss",
    "VideoOutput",
    "explain",
    "lstm",
    "lstm_cell",
    "lstm_sequence",
    "patched",
    "replace",
    "segmented_loss",
]
