"""Training of the video models with Lightning; needs the extra: pip install 'fastlstm[train]'."""

from fastlstm.training.baselines import BaselineErrors, Baselines, frame_error
from fastlstm.training.checkpoint import AtomicCheckpointIO, StopBetweenSteps
from fastlstm.training.datamodule import MovingMNISTData, VideoBatch
from fastlstm.training.figures import PredictionFigure
from fastlstm.training.initialization import SmoothImageWeights
from fastlstm.training.module import VideoTask
from fastlstm.training.predictions import PredictionWriter
from fastlstm.training.progress import StepProgressBar, Throughput

__all__ = [
    "AtomicCheckpointIO",
    "BaselineErrors",
    "Baselines",
    "MovingMNISTData",
    "PredictionFigure",
    "PredictionWriter",
    "SmoothImageWeights",
    "StepProgressBar",
    "StopBetweenSteps",
    "Throughput",
    "VideoBatch",
    "VideoTask",
    "frame_error",
]
