"""`fastlstm language fit|validate|test`: the training of models of text, byte by byte."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from lightning.pytorch.cli import ArgsType, OptimizerCallable

from fastlstm.models.byte_lstm import ByteLSTM
from fastlstm.training.callbacks.progress import Throughput
from fastlstm.training.commands.base import RunCommand
from fastlstm.training.commands.language_report import (
    bits_by_context,
    compressed_bits,
    draw_report,
    read_curve,
)
from fastlstm.training.schedule import Schedule
from fastlstm.training.tasks.sequence import SequenceTask

_DESCRIPTION = "Train language models of bytes on long streams of text, window by window."
_CONTEXT = 2048  # bytes over which the report looks
_SAMPLE = 400


class LanguageTask(SequenceTask):
    """A `SequenceTask` of a `ByteLSTM`; errors are nats a byte."""

    def __init__(
        self,
        model: ByteLSTM,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(model, optimizer, schedule, warmup_steps)


class LanguageCommand(RunCommand):
    """`RunCommand` for LanguageTask and text; after `fit` the run's folder has figures/report.png.

    The picture shows the learning curve, and how many bits a byte costs by how many were read
    before it: where it goes on falling beyond the window, the model has learnt to keep what
    gradients never reached back to.
    """

    def __init__(self, args: ArgsType = None) -> None:
        throughput = Throughput("bytes", lambda window: window.fresh * window.reset.shape[1])
        super().__init__(LanguageTask, throughput, "fastlstm language", _DESCRIPTION, args)

    def _summary(self, steps: int, errors: Mapping[str, float], tested: str | None) -> list[str]:
        model, data = self.model.model.eval(), self.datamodule
        files, _ = data.sequences("test")
        window = data.k2 or data.k1
        compressors = compressed_bits(files)
        by_context = bits_by_context(model, files, _context_of(files))
        figure = self._folder / "figures" / "report.png"
        draw_report(figure, read_curve(self._folder), by_context, window, compressors)
        speed = self.throughput.per_second
        fast = f", {speed:,.0f} training bytes/s" if speed else ""
        bits = {name: value / math.log(2) for name, value in errors.items()}
        lines = [
            "",
            f"ByteLSTM after {steps:,} steps{fast}",
            f"Held-out text, {tested or 'weights of the last step'}, bits per byte:",
            f"  {'state carried on':<34}{bits['test/error']:>7.3f}",
            f"  {f'fresh state every {data.k1} bytes':<34}{bits['test/error_in_window']:>7.3f}",
        ]
        for start, stop in _stretches(window, len(by_context)):
            mean = by_context[start:stop].mean()
            lines.append(f"  {f'after {start} to {stop - 1} bytes read':<34}{mean:>7.3f}")
        lines += [f"  {f'baseline: {n}':<34}{b:>7.3f}" for n, b in compressors.items()]
        prompt = np.asarray(next(filter(len, files))[:64], np.uint8).tobytes()
        drawn = prompt + model.sample(prompt, _SAMPLE, temperature=0.7)
        lines += ["", "A sample, after the first 64 bytes of a held-out text:", ""]
        lines += [f"  {line}" for line in drawn.decode(errors="replace").splitlines()]
        return [*lines, "", f"figure  {figure}", f"run     {self._folder}"]


def _context_of(files: Any) -> int:
    """As many bytes as the longest file has, at most those that the report looks at."""
    return min(_CONTEXT, max(map(len, files)) - 1)


def _stretches(window: int, context: int) -> list[tuple[int, int]]:
    """From the window on, each twice as long as the one before."""
    edges = [0, *(window * 2**i for i in range(12) if window * 2**i < context), context]
    return list(pairwise(edges))
