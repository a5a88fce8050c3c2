"""Training of models of video and of long sequences with PyTorch Lightning.

Tasks are Lightning modules, ``...Data`` are data modules, the others are callbacks, batch types and
functions. Needs the packages of an extra: pip install 'fastlstm[train]'.
"""

from fastlstm.training.batches import LabelledBatch, VideoBatch
from fastlstm.training.callbacks.baselines import BaselineErrors, Baselines, frame_error
from fastlstm.training.callbacks.checkpoint import AtomicCheckpointIO, StepSeeds, StopBetweenSteps
from fastlstm.training.callbacks.figures import PredictionFigure
from fastlstm.training.callbacks.finite import StopOnNonFinite
from fastlstm.training.callbacks.initialization import SmoothImageWeights
from fastlstm.training.callbacks.predictions import PredictionWriter
from fastlstm.training.callbacks.progress import StepProgressBar, Throughput
from fastlstm.training.datamodules.action_videos import ActionFutureData, ActionVideoData
from fastlstm.training.datamodules.motions import MotionData
from fastlstm.training.datamodules.moving_mnist import MotionVideoData, MovingMNISTData
from fastlstm.training.datamodules.patches import PatchData
from fastlstm.training.datamodules.sequences import FileSequenceData, SequenceData, TextData
from fastlstm.training.sharded import DDPWithShardedCheckpoints
from fastlstm.training.tasks.classification import ClassificationTask
from fastlstm.training.tasks.sequence import SequenceTask
from fastlstm.training.tasks.video import VideoTask
from fastlstm.training.tbptt import Window, Windows, window_loss

__all__ = [
    "ActionFutureData",
    "ActionVideoData",
    "AtomicCheckpointIO",
    "BaselineErrors",
    "Baselines",
    "ClassificationTask",
    "DDPWithShardedCheckpoints",
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
