"""Train a language model of bytes: ``python examples/language/train.py fit --config ...``.

The example shows how a task of your own gets a command like ``fastlstm fit``: derive from
``RunCommand``, name the Lightning module, and say what is printed after training.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from lightning.pytorch.cli import ArgsType, OptimizerCallable
from report import bits_by_context, compressed_bits, draw_report, read_curve

from fastlstm import ByteLSTM
from fastlstm.cli import short_errors, tune_process
from fastlstm.data import LongSequence
from fastlstm.training import SequenceTask, Throughput
from fastlstm.training.commands.base import RunCommand
from fastlstm.training.schedule import Schedule

_DESCRIPTION = "Train language models of bytes on text by truncated backpropagation through time."
_CONTEXT = 2048  # bytes of context in the report
_SAMPLE = 400  # bytes of text generated after training


class LanguageTask(SequenceTask):
    """Train a ``ByteLSTM``; losses and errors are cross-entropies in nats per byte.

    Args:
        model, optimizer, schedule, warmup_steps: as in ``SequenceTask``.
    """

    def __init__(
        self,
        model: ByteLSTM,
        optimizer: OptimizerCallable = torch.optim.Adam,
        schedule: Schedule = "linear",
        warmup_steps: int = 0,
    ) -> None:
        super().__init__(model, optimizer, schedule, warmup_steps)


class LanguageCommand(RunCommand):
    """The commands ``fit``, ``validate`` and ``test`` for language models of bytes.

    After ``fit``, ``figures/report.png`` in the run's folder shows the learning curve, and the bits
    per byte as a function of the number of bytes read before it. If bits per byte still fall beyond
    the training window, the model keeps information for longer than gradients were propagated.

    Args:
        args: the command's words. Default: those of the process.
    """

    example = "examples/language/config.yaml"

    def __init__(self, args: ArgsType = None) -> None:
        throughput = Throughput("bytes", lambda window: window.fresh * window.reset.shape[1])
        super().__init__(
            LanguageTask, throughput, "python examples/language/train.py", _DESCRIPTION, args
        )

    def _summary(self, steps: int, errors: Mapping[str, float], tested: str | None) -> list[str]:
        model, data = self.model.model.eval(), self.datamodule
        files, _ = data.sequences("test")
        window = data.k2 or data.k1
        compressors = compressed_bits(files)
        by_context = bits_by_context(model, files, _context_of(files))
        figure = self._folder / "figures" / "report.png"
        draw_report(figure, read_curve(self._folder), by_context, window, compressors)
        bits = {name: value / math.log(2) for name, value in errors.items()}
        lines = [
            "",
            f"ByteLSTM after {steps:,} steps{self.throughput.summary()}",
            f"Held-out text, {tested or 'weights of the last step'}, bits per byte:",
            f"  {'state carried on':<34}{bits['test/error']:>7.3f}",
            f"  {f'fresh state every {data.k1} bytes':<34}{bits['test/error_in_window']:>7.3f}",
        ]
        for start, stop in _context_ranges(window, len(by_context)):
            mean = by_context[start:stop].mean()
            lines.append(f"  {f'after {start} to {stop - 1} bytes read':<34}{mean:>7.3f}")
        lines += [f"  {f'baseline: {n}':<34}{b:>7.3f}" for n, b in compressors.items()]
        prompt = np.asarray(next(filter(len, files))[:64], np.uint8).tobytes()
        text = prompt + model.sample(prompt, _SAMPLE, temperature=0.7)
        lines += ["", "A sample, after the first 64 bytes of a held-out text:", ""]
        lines += [f"  {line}" for line in text.decode(errors="replace").splitlines()]
        return [*lines, "", f"figure  {figure}", f"run     {self._folder}"]


def _context_of(files: Sequence[LongSequence]) -> int:
    """Bytes of context to report: those of the longest file, but at most ``_CONTEXT``."""
    return min(_CONTEXT, max(map(len, files)) - 1)


def _context_ranges(window: int, context: int) -> list[tuple[int, int]]:
    """Split 0 .. context at ``window``, 2 ``window``, 4 ``window`` and so on."""
    edges = [0, *(window * 2**i for i in range(12) if window * 2**i < context), context]
    return list(pairwise(edges))


if __name__ == "__main__":
    with short_errors():
        tune_process()
        LanguageCommand(sys.argv[1:])
