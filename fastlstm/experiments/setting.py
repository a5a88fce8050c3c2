"""The scale and the folders of an experiment, and the files that it writes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from fastlstm.experiments import presets
from fastlstm.experiments.runs import Run, train, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Setting:
    """The options of ``fastlstm experiment``.

    Attributes:
        preset: scale of the experiment, a folder in ``fastlstm/experiments/presets``.
        out: folder of the results: ``out/<experiment>/results.json`` and figures; training runs are
            in ``out/runs``.
        seeds: seeds of the training runs. Default: those of the preset.
        trial: number of training steps of a trial run, which tests one batch. Default: a full run.
        words: further arguments of every ``fastlstm fit``.
    """

    preset: str
    out: Path
    seeds: Sequence[int] | None = None
    trial: int | None = None
    words: Sequence[str] = ()

    def settings(self, experiment: str) -> dict[str, Any]:
        """Read the settings of an experiment at this scale."""
        return presets.read(experiment, self.preset)

    def seeds_of(self, settings: dict[str, Any]) -> list[int]:
        """Return the seeds of the training runs: those of the command, or of the settings."""
        return list(settings["seeds"] if self.seeds is None else self.seeds)

    def train(self, experiment: str, settings: dict[str, Any], model: str, seed: int) -> Run:
        """Train a model of an experiment with a seed, or return the finished run."""
        seeded = {"seed_everything": seed, "data": {"init_args": {"seed": seed}}}
        config = presets.merged(presets.of_model(settings, model), seeded)
        if self.trial is not None:
            one_batch = config["data"]["init_args"]["batch_size"]
            short = {
                "trainer": {"max_steps": self.trial, "val_check_interval": self.trial},
                "data": {"init_args": {"val_size": one_batch, "test_size": one_batch}},
            }
            config = presets.merged(config, short)
        folder = self.out / "runs" / experiment / model / f"seed{seed}"
        print(f"\n{experiment}: {model}, seed {seed}  ({folder})", flush=True)
        return train(folder, config, self.words)

    def first_run(self, experiment: str, model: str) -> Run:
        """Train a model of an experiment with the first seed, or return the finished run."""
        settings = self.settings(experiment)
        return self.train(experiment, settings, model, self.seeds_of(settings)[0])

    def write(
        self, experiment: str, results: dict[str, Any], **figures: Figure | Image
    ) -> dict[str, Any]:
        """Write the results of an experiment to JSON, and each figure to ``<name>.png``."""
        folder = self.out / experiment
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            file = folder / f"{name}.png"
            figure.save(file) if isinstance(figure, Image) else figure.savefig(file, dpi=100)
        scale = {"preset": self.preset} | ({"trial": self.trial} if self.trial else {})
        found = {**scale, **results, "figures": [f"{name}.png" for name in figures]}
        write_json(folder / "results.json", found)
        return found


def read(out: Path, experiment: str) -> dict[str, Any] | None:
    """Read the results of an experiment; None if there are none yet."""
    file = out / experiment / "results.json"
    if not file.exists():
        return None
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def spread(values: Iterable[float]) -> dict[str, Any]:
    """Return the mean, the standard deviation (0 for one value) and the values over the seeds."""
    values = list(values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": values}
