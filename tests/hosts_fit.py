"""A tiny training run that torchrun starts on each host, and the record that it leaves."""

import sys
import time
import zlib
from pathlib import Path
from typing import NamedTuple

from language_example import LanguageCommand
from lightning.pytorch import Callback

HURRY = "hurry"


class Record(Callback):
    """Write the time, the loss and the rows of every step to a file for each process.

    Args:
        folder: of the files.
        pause: seconds to wait after a step, for a run to last long enough to be disturbed. When the
            folder has a file ``hurry``, the steps no longer wait.
    """

    def __init__(self, folder: str, pause: float = 0.0) -> None:
        self.folder = Path(folder)
        self.pause = pause

    def on_train_start(self, trainer, pl_module):
        start = trainer.strategy.broadcast(time.time_ns())  # common to the processes
        name = f"{start}_{trainer.world_size}_{trainer.global_rank}.txt"
        self.file = (self.folder / name).open("w", buffering=1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rows = [zlib.crc32(row.contiguous().numpy()) for row in batch.input.unbind(1)]
        loss = float(outputs["loss"]).hex()
        print(trainer.global_step, time.time(), loss, *rows, file=self.file)
        if not (self.folder / HURRY).exists():
            time.sleep(self.pause)


class Start(NamedTuple):
    """What the processes of one start recorded: steps[step][rank] is a time, a loss and rows."""

    processes: int
    steps: dict

    def rows(self, step):
        return [row for rank in range(self.processes) for row in self.steps[step][rank][2]]

    def losses(self, step):
        return [self.steps[step][rank][1] for rank in range(self.processes)]

    def time(self, step):
        return max(when for when, _, _ in self.steps[step].values())

    def is_whole(self, step):
        return len(self.steps[step]) == self.processes


def read_starts(folder):
    """The starts of a run that made a step, oldest first."""
    starts = {}
    for path in folder.glob("*_*_*.txt"):
        number, processes, rank = map(int, path.stem.split("_"))
        start = starts.setdefault(number, Start(processes, {}))
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):  # else its process was killed as it wrote
                step, when, loss, *rows = line.split()
                found = float(when), float.fromhex(loss), rows
                start.steps.setdefault(int(step), {})[rank] = found
    return [start for _, start in sorted(starts.items()) if start.steps]


class Fit(LanguageCommand):
    """``LanguageCommand`` without its report."""

    def _summary(self, steps, errors, tested):
        return []


if __name__ == "__main__":
    Fit(sys.argv[1:])
