"""The files of a run's folder, and their removal when a new run starts there."""

import contextlib
import re
import shutil
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

# Full names, so that a user's own files stay: a copy `last_good.ckpt`, a note in figures/.
_PREDICTION = r"predictions/batch_\d{3,}\.(npz|png|gif)"
_RESULT = re.compile(
    rf"""checkpoints/((best|last|nonfinite_step_\d+)\.ckpt | model\.safetensors)
    | hpc_ckpt_\d+\.ckpt
    | metrics/version_\d+/metrics\.csv
    | figures/(step_\d{{6,}}\.(png|gif) | report\.png)
    | {_PREDICTION}""",
    re.VERBOSE,
)
_REMAINDER = re.compile(
    r"""events\.out\.tfevents\..+ | (metrics/version_\d+/)?hparams\.yaml
    | checkpoints/(.+\.ckpt\.part | \.model\.safetensors\.\d+\.unfinished)
    | checkpoints/(best|last)\.ckpt\.\d+""",
    re.VERBOSE,
)
# written by `fastlstm experiment`; without results they belong to a run that is about to begin
_OF_EXPERIMENTS = ("asked.json", "finished.json")


def results(folder: Path) -> list[Path]:
    """Return the checkpoints, metrics, pictures and predictions of the run in this folder."""
    return _matching(folder, _RESULT)


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint from which the run in this folder resumes; None if it saved none."""
    names = ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "hpc_ckpt_*.ckpt")
    found = chain.from_iterable(folder.glob(name) for name in names)  # folders if sharded
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def predictions(folder: Path) -> list[Path]:
    """Return the files that ``predict`` wrote."""
    return _matching(folder, re.compile(_PREDICTION))


def run_files(folder: Path) -> list[Path]:
    """Return all files that a run wrote, except config.yaml, which the next run replaces."""
    found = results(folder)
    if found:
        found += [folder / name for name in _OF_EXPERIMENTS if (folder / name).is_file()]
    return found + _matching(folder, _REMAINDER)


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return matching files by folder, then by number: step_999999 comes before step_1000000."""
    places = ("*", "checkpoints/*", "metrics/*/*", "figures/*", "predictions/*")
    paths = chain.from_iterable(folder.glob(place) for place in places)
    return sorted(
        (p for p in paths if pattern.fullmatch(p.relative_to(folder).as_posix())),
        key=lambda path: (path.parent, len(path.name), path.name),
    )


def remove(files: Iterable[Path], folder: Path) -> None:
    """Remove these files of a run's folder, and the folders in it that become empty.

    A checkpoint may be a folder, or a link to one.
    """
    for file in files:
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        else:
            file.unlink(missing_ok=True)
        for parent in file.relative_to(folder).parents[:-1]:
            with contextlib.suppress(OSError):  # the folder is not empty
                (folder / parent).rmdir()


class RemoveOlderRun(Callback):
    """Remove the files of an older run when a new run in the same folder begins its first step.

    A run that fails earlier, for example because data are missing, removes nothing.

    Args:
        folder: the run's folder; its files are listed now, before the new run writes any.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = run_files(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove(self.files, self.folder)
