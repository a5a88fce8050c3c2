"""The smallest model, videos and trainer that the training tests share."""

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


def checkpoint(step, weights=None):
    """The least that a checkpoint of a run has."""
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
    """Keeps the videos trained on and the losses."""

    def __init__(self):
        self.videos, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.videos.append(torch.cat(batch).numpy().copy())
        self.losses.append(float(outputs["loss"]))
