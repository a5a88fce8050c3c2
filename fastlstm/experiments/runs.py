"""Training runs of an experiment: made once, resumed where they stopped, used again."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fastlstm.files import written_whole
from fastlstm.models.video import VideoLSTM
from fastlstm.training.commands.video import VideoCommand
from fastlstm.training.run_folder import remove, run_files


@dataclass(frozen=True)
class Run:
    """A finished run of `fastlstm fit`.

    folder: all of its files; `fit.yaml` is its configuration.
    errors: of the test set, per frame, by the names of `VideoTask` without `test/`; of models of
        the future also those of the baselines `mean_frame` and `copy_last`.
    seconds: that the command took, in its last go if it was resumed.
    sequences_per_second: of training.
    """

    folder: Path
    errors: dict[str, float]
    seconds: float
    sequences_per_second: float | None

    def model(self) -> VideoLSTM:
        """The model with the weights that were tested."""
        return VideoLSTM.load(self.folder / "model.safetensors").eval()


def write_json(path: Path, content: Any) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n")


def train(folder: Path, config: dict[str, Any], words: Sequence[str] = ()) -> Run:
    """The run of `fastlstm fit` with this configuration in this folder.

    One that was finished is read, one that was interrupted goes on, else it begins.

    Args:
        folder: of the run.
        config: as in the file that `fastlstm fit --config` takes.
        words: further arguments of the command.

    Raises:
        ValueError: the folder has a run of another configuration, and what `fastlstm fit` raises.
    """
    asked = {"config": config, "words": list(words)}
    made = folder / "asked.json"
    if made.exists() and json.loads(made.read_text()) != asked:
        raise ValueError(
            f"out: expected a run of this configuration in {folder}, got one of another ({made});"
            " remove it, or give another --out"
        )
    finished = folder / "finished.json"
    if not finished.exists():
        last = folder / "checkpoints" / "last.ckpt"
        goes_on = made.exists() and last.exists()
        if made.exists() and not goes_on:  # stopped before there was anything to go on from
            remove(run_files(folder), folder)
        write_json(made, asked)
        file = folder / "fit.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        arguments = ["fit", "--config", str(file), "--run", str(folder), *words]
        if goes_on:
            arguments += ["--ckpt_path", "last"]
        start = time.perf_counter()
        command = VideoCommand(arguments)
        command.model.model.save(folder / "model.safetensors")
        errors = {
            name.removeprefix("test/"): float(error)
            for name, error in command.trainer.callback_metrics.items()
            if name.startswith("test/")
        }
        write_json(
            finished,
            {
                "errors": errors,
                "seconds": round(time.perf_counter() - start, 1),
                "sequences_per_second": command.throughput.per_second,
            },
        )
    return Run(folder, **json.loads(finished.read_text()))
