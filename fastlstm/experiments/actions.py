"""What a video model's encoder is worth to a classifier of motions, with few labels and many."""

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
    """Accuracy by labels of a class, from new weights and from an encoder trained without labels.

    Beside them what can be told without motion: from one frame, and from frames in random order.
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
        "single frame": trials.spread(chosen["model"], most, single_frame=True),
        "frames in random order": trials.spread(chosen["model"], most, shuffle_frames=True),
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
    """Every kind of model by what its encoder is worth at one number of labels."""
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
    """Classifiers trained on few labelled videos and tested: each once, and kept on disk.

    Args:
        setting: of the experiment.
        settings: the file `actions.yaml` of its preset.
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
        self, model: str, labels: int, frozen: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Accuracy over the seeds: of the labelled videos, their order and what is drawn anew.

        Args:
            model: whose encoder to start from, or "new weights".
            labels: labelled videos of each class.
            frozen: train the softmax alone.
            options: of `MotionData`.
        """
        return spread(self._accuracy(model, labels, seed, frozen, options) for seed in self.seeds)

    def _accuracy(
        self, model: str, labels: int, seed: int, frozen: bool, options: dict[str, Any]
    ) -> float:
        words = [model.replace(" ", "_"), *(["frozen"] if frozen else []), f"labels{labels}"]
        words += [*sorted(options), f"seed{seed}"]
        file = self.setting.out / "runs" / "classify" / f"{'-'.join(words)}.json"
        asked = {**self.settings, "classify": self.chosen, "words": list(self.setting.words)}
        if file.exists():
            kept = json.loads(file.read_text())
            if kept["asked"] == asked:
                return float(kept["accuracy"])
        start = self._start(model, seed)
        print(f"classifier: {', '.join(words)}", flush=True)
        accuracy = self._train(start, labels, seed, frozen, options)
        print(f"classifier: {', '.join(words)}: {accuracy:.1%}", flush=True)
        write_json(file, {"accuracy": accuracy, "asked": asked})
        return accuracy

    def _start(self, model: str, seed: int) -> VideoLSTM:
        """A trained video model, or one with new weights, as the trained ones started."""
        if model != _NEW:
            return self.setting.first_run("actions", model).model()
        fit = self.settings["fit"]
        torch.manual_seed(seed)
        fresh = CompositeLSTM(**fit["model"]["model"]["init_args"])
        for callback in fit["trainer"].get("callbacks", ()):
            SmoothImageWeights(**callback["init_args"]).apply(fresh)
        return fresh

    def _train(
        self, start: VideoLSTM, labels: int, seed: int, frozen: bool, options: dict[str, Any]
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
            **options,
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
