"""The small model, videos, trainer and configuration that the training tests share."""

import torch
from lightning.pytorch import Callback, Trainer

from fastlstm import CompositeLSTM
from fastlstm.training import AtomicCheckpointIO, MovingMNISTData

SIDE = 30


def tiny_data(**changes):
    sizes = {"batch_size": 4, "input_frames": 3, "future_frames": 4, "val_size": 6, "test_size": 6}
    return MovingMNISTData(num_digits=1, size=SIDE, **{**sizes, **changes})


def tiny_model(kind=CompositeLSTM, **options):
    torch.manual_seed(0)
    return kind(SIDE * SIDE, 6, **options)


def run_settings(run):
    """A configuration of ``fastlstm fit``: four steps, validated after the second and fourth."""
    sizes = {"batch_size": 2, "input_frames": 2, "future_frames": 3, "val_size": 2, "test_size": 4}
    return {
        "run": str(run),
        "save_every": 1,
        "model": {
            "model": {
                "class_path": "fastlstm.CompositeLSTM",
                "init_args": {"input_size": SIDE**2, "hidden_size": 4},
            },
            "schedule": "constant",
        },
        "data": {
            "class_path": "fastlstm.training.MovingMNISTData",
            "init_args": {"num_digits": 1, "size": SIDE, **sizes},
        },
        "baselines": {"sample": 8},
        "figure": {"samples": 1},
        "predictions": {"samples": 1},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 4,
            "val_check_interval": 2,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }


def checkpoint(step, weights=None):
    """The entries that every checkpoint of a run has."""
    return {"state_dict": weights, "pytorch-lightning_version": "2.6.0", "global_step": step}


def trainer(folder, *callbacks, **options):
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=list(callbacks),
        plugins=[AtomicCheckpointIO(), *options.pop("plugins", [])],
        **{
            "max_epochs": -1,
            "max_steps": 6,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **options,
        },
    )


class Recorder(Callback):
    """Keep the videos that were trained on, and the losses."""

    def __init__(self):
        self.videos, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.videos.append(torch.cat(batch).numpy().copy())
        self.losses.append(float(outputs["loss"]))
