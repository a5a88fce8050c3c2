"""fastlstm: a drop-in ``nn.LSTM`` with peepholes and fused sequence kernels, and video models."""

import torch

from fastlstm import flops  # noqa: F401, it registers formulas
from fastlstm.backends.packed import PackedWeights
from fastlstm.cell import LSTMCell
from fastlstm.classifier import LSTMClassifier
from fastlstm.dispatch import explain
from fastlstm.functional import lstm, lstm_cell
from fastlstm.interop import Replacement, replace
from fastlstm.language import ByteLSTM
from fastlstm.modules import LSTM
from fastlstm.patching import LSTM_CELL_TYPES, LSTM_TYPES, patched
from fastlstm.segmented import segmented_loss
from fastlstm.sequence import lstm_sequence
from fastlstm.types import LSTMWeights
from fastlstm.video import VideoLoss, VideoLSTM, VideoOutput
from fastlstm.video_models import CompositeLSTM, LSTMAutoencoder, LSTMFuturePredictor

# So that torch.load takes whole models where it allows known classes only (weights_only=True).
torch.serialization.add_safe_globals([LSTM, LSTMCell, PackedWeights])

__version__ = "0.1.0"

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
    "LSTMWeights",
    "Replacement",
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
