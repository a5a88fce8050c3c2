"""Train classifiers of motions from the encoders of video models, with few and many labels."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from fastlstm.experiments.pictures import label_curves
from fastlstm.experiments.runs import write_json
from fastlstm.experiments.setting import Setting, spread
from fastlstm.models.classifier import LSTMClassifier
from fastlstm.models.srivastava import CompositeLSTM
from fastlstm.models.video import VideoLSTM
from fastlstm.training import ClassificationTask, MotionData, SmoothImageWeights

_NEW = "new weights"


def actions(setting: Setting) -> dict[str, Any]:
    """Measure accuracy over labels per class, from new weights and from a trained encoder.

    Two baselines cannot see the motion: one reads a single frame, one reads the frames in random
    order.
    """
    settings, trials = _prepared(setting)
    chosen = settings["classify"]
    starts = {
        _NEW: (_NEW, False),
        chosen["model"]: (chosen["model"], False),
        f"{chosen['model']}, frozen": (chosen["model"], True),
    }
    accuracy = {
        name: {n: trials.spread(model, n, frozen) for n in chosen["labels_per_class"]}
        for name, (model, frozen) in starts.items()
    }
    most = max(chosen["labels_per_class"])
    baselines = {
        "single frame": trials.spread(chosen["model"], most, change="single_frame"),
        "frames in random order": trials.spread(chosen["model"], most, change="shuffle_frames"),
    }
    chance = 1 / len(MotionData.classes)
    return setting.write(
        "actions",
        {
            "model": chosen["model"],
            "classes": list(MotionData.classes),
            "steps": chosen["steps"],
            "pretraining_steps": settings["fit"]["trainer"]["max_steps"],
            "accuracy": accuracy,
            "baselines": baselines,
            "baselines_at": most,
        },
        accuracy=label_curves(accuracy, chance),
    )


def comparison(setting: Setting) -> dict[str, Any]:
    """Compare the kinds of models by the accuracy of classifiers that start from their encoders."""
    settings, trials = _prepared(setting)
    labels = settings["classify"]["compared_at"]
    models = (_NEW, *settings["models"])
    return setting.write(
        "comparison",
        {
            "labels_per_class": labels,
            "accuracy": {model: trials.spread(model, labels) for model in models},
            "errors": {
                model: setting.first_run("actions", model).errors for model in settings["models"]
            },
        },
    )


def _prepared(setting: Setting) -> tuple[dict[str, Any], "Trials"]:
    settings = setting.settings("actions")
    return settings, Trials(setting, settings)


class Trials:
    """Train and test classifiers on labelled videos, each once: the accuracies are kept in files.

    Args:
        setting: options of the command.
        settings: the settings in ``actions.yaml`` of its preset.
    """

    def __init__(self, setting: Setting, settings: dict[str, Any]) -> None:
        self.setting = setting
        self.settings = settings
        chosen = settings["classify"]
        if setting.trial is not None:
            chosen = {**chosen, "steps": setting.trial, "test_size": chosen["batch_size"]}
        self.chosen = chosen
        self.seeds: Sequence[int] = chosen["seeds"]

    def spread(
        self, model: str, labels: int, frozen: bool = False, change: str | None = None
    ) -> dict[str, Any]:
        """Measure accuracy over the seeds, which choose labelled videos, their order and weights.

        Args:
            model: the model whose encoder to start from, or "new weights".
            labels: number of labelled videos of each class.
            frozen: whether to train the softmax layer alone.
            change: a flag of ``MotionData`` to set: "single_frame" or "shuffle_frames".
        """
        return spread(self._accuracy(model, labels, seed, frozen, change) for seed in self.seeds)

    def _accuracy(
        self, model: str, labels: int, seed: int, frozen: bool, change: str | None
    ) -> float:
        words = [model.replace(" ", "_"), *(["frozen"] if frozen else []), f"labels{labels}"]
        words += [*([change] if change else []), f"seed{seed}"]
        file = self.setting.out / "runs" / "classify" / f"{'-'.join(words)}.json"
        asked = {**self.settings, "classify": self.chosen, "words": list(self.setting.words)}
        if file.exists():
            kept = json.loads(file.read_text())
            if kept["asked"] == asked:
                return float(kept["accuracy"])
        start = self._start(model, seed)
        print(f"classifier: {', '.join(words)}", flush=True)
        accuracy = self._train(start, labels, seed, frozen, change)
        print(f"classifier: {', '.join(words)}: {accuracy:.1%}", flush=True)
        write_json(file, {"accuracy": accuracy, "asked": asked})
        return accuracy

    def _start(self, model: str, seed: int) -> VideoLSTM:
        """Load a trained video model, or create one with the weights that training starts from."""
        if model != _NEW:
            return self.setting.first_run("actions", model).model()
        fit = self.settings["fit"]
        torch.manual_seed(seed)
        fresh = CompositeLSTM(**fit["model"]["model"]["init_args"])
        for callback in fit["trainer"].get("callbacks", ()):
            SmoothImageWeights(**callback["init_args"]).apply(fresh)
        return fresh

    def _train(
        self, start: VideoLSTM, labels: int, seed: int, frozen: bool, change: str | None
    ) -> float:
        chosen = self.chosen
        seed_everything(seed, verbose=False)
        classifier = LSTMClassifier.from_encoder(
            start, len(MotionData.classes), dropout=chosen["dropout"]
        )
        classifier.encoder.requires_grad_(not frozen)
        data = MotionData(
            min(chosen["batch_size"], labels * len(MotionData.classes)),
            chosen["num_frames"],
            labels_per_class=labels,
            size=chosen["size"],
            seed=seed,
            test_size=chosen["test_size"],
            single_frame=change == "single_frame",
            shuffle_frames=change == "shuffle_frames",
        )
        task = ClassificationTask(
            classifier,
            partial(torch.optim.Adam, lr=chosen["frozen_lr" if frozen else "lr"], fused=True),
            warmup_steps=10,
            input_lr_scale=chosen["input_lr_scale"],
        )
        trainer = Trainer(
            max_steps=chosen["steps"],
            max_epochs=-1,
            limit_val_batches=0,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            use_distributed_sampler=False,
        )
        trainer.fit(task, datamodule=data)
        (found,) = trainer.test(task, datamodule=data, verbose=False)
        return float(found["test/accuracy"])
