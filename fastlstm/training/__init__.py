"""Training of models of video and of long sequences with Lightning.

Needs the extra: pip install 'fastlstm[train]'.
"""

from fastlstm.training.action_data import LabelledBatch, MotionData, MotionVideoData
from fastlstm.training.action_video_data import ActionFutureData, ActionVideoData
from fastlstm.training.baselines import BaselineErrors, Baselines, frame_error
from fastlstm.training.checkpoint import AtomicCheckpointIO, StepSeeds, StopBetweenSteps
from fastlstm.training.classification import ClassificationTask
from fastlstm.training.datamodule import MovingMNISTData, VideoBatch
from fastlstm.training.figures import PredictionFigure
from fastlstm.training.finite import StopOnNonFinite
from fastlstm.training.initialization import SmoothImageWeights
from fastlstm.training.module import VideoTask
from fastlstm.training.patch_data import PatchData
from fastlstm.training.predictions import PredictionWriter
from fastlstm.training.progress import StepProgressBar, Throughput
from fastlstm.training.sequence_data import FileSequenceData, SequenceData, TextData
from fastlstm.training.sequence_task import SequenceTask
from fastlstm.training.tbptt import Window, Windows, window_loss

__all__ = [
    "ActionFutureData",
    "ActionVideoData",
    "AtomicCheckpointIO",
    "BaselineErrors",
    "Baselines",
    "ClassificationTask",
    "FileSequenceData",
    "LabelledBatch",
    "MotionData",
    "MotionVideoData",
    "MovingMNISTData",
    "PatchData",
    "PredictionFigure",
    "PredictionWriter",
    "SequenceData",
    "SequenceTask",
    "SmoothImageWeights",
    "StepProgressBar",
    "StepSeeds",
    "StopBetweenSteps",
    "StopOnNonFinite",
    "TextData",
    "Throughput",
    "VideoBatch",
    "VideoTask",
    "Window",
    "Windows",
    "frame_error",
    "window_loss",
]
