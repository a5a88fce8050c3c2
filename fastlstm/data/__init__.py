"""Data sets: moving digits, videos, text, and long sequences that are read in slices.

NumPy and torch suffice for most of it. Some file formats need a further package, of the extras
``train``, ``video``, ``parquet`` and ``zarr``.
"""

from fastlstm.data.digits import load_digits
from fastlstm.data.frame_features import FrameFeatures, Percepts
from fastlstm.data.motion_mnist import MOTIONS, MotionMNIST
from fastlstm.data.moving_mnist import MovingMNIST
from fastlstm.data.patches import VideoPatches, real_video_files
from fastlstm.data.sequence_files import (
    BytesSequence,
    NumpySequence,
    ParquetSequence,
    SafetensorsSequence,
)
from fastlstm.data.sequences import LongSequence, open_sequences
from fastlstm.data.streams import Piece, Streams, WindowPlan
from fastlstm.data.text import load_text
from fastlstm.data.ucf_hmdb import ActionClips, Clip, load_actions
from fastlstm.data.video_files import VideoFrames
from fastlstm.data.zarr_arrays import ZarrSequence

__all__ = [
    "MOTIONS",
    "ActionClips",
    "BytesSequence",
    "Clip",
    "FrameFeatures",
    "LongSequence",
    "MotionMNIST",
    "MovingMNIST",
    "NumpySequence",
    "ParquetSequence",
    "Percepts",
    "Piece",
    "SafetensorsSequence",
    "Streams",
    "VideoFrames",
    "VideoPatches",
    "WindowPlan",
    "ZarrSequence",
    "load_actions",
    "load_digits",
    "load_text",
    "open_sequences",
    "real_video_files",
]
