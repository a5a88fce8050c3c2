"""What the commands leave in a run's folder, and that a fresh run there starts without it."""

import contextlib
import re
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

# In full, so that what a user put there stays: a copy `last_good.ckpt`, a note in figures/.
_PREDICTION = r"predictions/batch_\d{3,}\.(npz|png|gif)"
_RESULT = re.compile(
    rf"""checkpoints/(best|last|nonfinite_step_\d+)\.ckpt | hpc_ckpt_\d+\.ckpt
    | metrics/version_\d+/metrics\.csv
    | figures/(step_\d{{6,}}\.(png|gif) | report\.png)
    | {_PREDICTION}""",
    re.VERBOSE,
)
_REMAINDER = re.compile(
    r"""events\.out\.tfevents\..+ | (metrics/version_\d+/)?hparams\.yaml
    | checkpoints/.+\.ckpt\.part""",
    re.VERBOSE,
)
# of `fastlstm experiment`; alone, without a result, they belong to a run that is about to begin
_OF_EXPERIMENTS = ("asked.json", "finished.json")


def results(folder: Path) -> list[Path]:
    """Checkpoints, curves, pictures and predictions of a run in this folder."""
    return _matching(folder, _RESULT)


def predictions(folder: Path) -> list[Path]:
    """What `predict` has written there."""
    return _matching(folder, re.compile(_PREDICTION))


def run_files(folder: Path) -> list[Path]:
    """All that a run has written there, but for config.yaml, which the next one replaces."""
    found = results(folder)
    if found:
        found += [folder / name for name in _OF_EXPERIMENTS if (folder / name).is_file()]
    return found + _matching(folder, _REMAINDER)


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """By folder, then by number: step_999999.png comes before step_1000000.png."""
    places = ("*", "checkpoints/*", "metrics/*/*", "figures/*", "predictions/*")
    paths = chain.from_iterable(folder.glob(place) for place in places)
    return sorted(
        (p for p in paths if pattern.fullmatch(p.relative_to(folder).as_posix()) and p.is_file()),
        key=lambda path: (path.parent, len(path.name), path.name),
    )


def remove(files: Iterable[Path], folder: Path) -> None:
    """These files of a run's folder, and the folders in it that are empty without them."""
    for file in files:
        file.unlink(missing_ok=True)
        for parent in file.relative_to(folder).parents[:-1]:
            with contextlib.suppress(OSError):  # something else is in it
                (folder / parent).rmdir()


class RemoveOlderRun(Callback):
    """Removes what an older run left in a folder when a new one trains its first step there.

    Not earlier: what stops a run before that, such as data that are not found, loses nothing.

    Args:
        folder: of the run, as it is before the new run writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = run_files(folder)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            remove(self.files, self.folder)
