"""Training runs of the experiments, which are resumed if interrupted and reused if finished."""

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
    """A finished run of ``fastlstm fit``.

    Attributes:
        folder: folder with the files of the run; ``fit.yaml`` is its configuration.
        errors: errors per frame on the test set, by the names of ``VideoTask`` without ``test/``.
            For models that predict the future, also those of the baselines ``mean_frame`` and
            ``copy_last``.
        seconds: duration of the command; of its last part if it was resumed.
        sequences_per_second: training speed.
    """

    folder: Path
    errors: dict[str, float]
    seconds: float
    sequences_per_second: float | None

    def model(self) -> VideoLSTM:
        """Load the model with the weights that were tested, in evaluation mode."""
        return VideoLSTM.load(self.folder / "model.safetensors").eval()


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step: another process never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1) + "\n")


def train(folder: Path, config: dict[str, Any], words: Sequence[str] = ()) -> Run:
    """Run ``fastlstm fit`` in a folder, unless the folder has the finished run already.

    An interrupted run is resumed.

    Args:
        folder: folder of the run.
        config: configuration, as in a file for ``fastlstm fit --config``.
        words: further arguments of the command.

    Raises:
        ValueError: the folder has a run of another configuration, or ``fastlstm fit`` raises one.
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
        resumes = made.exists() and last.exists()
        if made.exists() and not resumes:  # stopped before the first checkpoint
            remove(run_files(folder), folder)
        write_json(made, asked)
        file = folder / "fit.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        arguments = ["fit", "--config", str(file), "--run", str(folder), *words]
        if resumes:
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
