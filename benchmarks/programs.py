"""Compare three small programs that call an LSTM one step at a time, with nn.* and with fastlstm.*.

    python -m benchmarks.programs [--program detector sine-training sine-prediction forecaster]
        [--rounds 7] [--threads N] [--json FILE]

    detector          A voice detector: 100 frames of 32 ms, one after the other; for each a
                      convolution, an LSTMCell of 128 units, and a linear layer with a sigmoid.
    sine-training     PyTorch's example of time series: two LSTMCells of 51 units and a linear layer
                      over 300 steps of 97 sines, the loss, and the gradients of all parameters.
    sine-prediction   The same for 3 sines, without gradients.
    forecaster        24 steps of an LSTM of two layers of 40 units and a linear layer, for 400
                      series at once, without gradients.

Both versions of a program differ in the class of the LSTM only, have the same weights, and run in
float32. Their results are compared before they are timed. nn.* runs on one thread and on all, and
its better time counts; fastlstm.* runs on all. They take turns in one process. The ratio is the
median over the rounds, above 1 fastlstm is faster; "spread" is the interquartile range of the
rounds' ratios as a share of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks import common
from benchmarks.lstm import Results, check
from benchmarks.timing import median_ms, paired_with_torch, ratio, ratios, spread


class Detector(nn.Module):
    """The probability of speech in each frame of samples."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 128, kernel_size=256, stride=128)
        self.cell = library.LSTMCell(128, 128)
        self.readout = nn.Linear(128, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (T, 1, 1, samples) to (T, 1, 1); nothing is known of a frame before its turn."""
        state, probabilities = None, []
        for frame in frames:
            features = self.filters(frame).relu().mean(-1)
            state = self.cell(features, state)
            probabilities.append(torch.sigmoid(self.readout(state[0])))
        return torch.stack(probabilities)


class Sine(nn.Module):
    """The next value of each series at every step."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.lstm1 = library.LSTMCell(1, 51)
        self.lstm2 = library.LSTMCell(51, 51)
        self.linear = nn.Linear(51, 1)

    def forward(self, series: Tensor) -> Tensor:
        """Map (B, T) to (B, T)."""
        first = second = (series.new_zeros(len(series), 51), series.new_zeros(len(series), 51))
        outputs = []
        for value in series.split(1, dim=1):
            first = self.lstm1(value, first)
            second = self.lstm2(first[0], second)
            outputs.append(self.linear(second[0]))
        return torch.cat(outputs, dim=1)


class Forecaster(nn.Module):
    """The forecast of each series at every step."""

    def __init__(self, library: Any) -> None:
        super().__init__()
        self.lstm = library.LSTM(48, 40, num_layers=2)
        self.readout = nn.Linear(40, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (T, B, 48) to (T, B, 1), a call of the LSTM for each step."""
        state, outputs = None, []
        for step in features.split(1):
            y, state = self.lstm(step, state)
            outputs.append(self.readout(y))
        return torch.cat(outputs)


def sines(count: int) -> Tensor:
    """Return sines (count, 300) of random phases."""
    phases = torch.randint(-80, 80, (count, 1))
    return torch.sin((torch.arange(300) + phases) / 20)


class Program(NamedTuple):
    """A model, the function that makes its input, its steps, and whether it is trained."""

    model: Callable[[Any], nn.Module]
    data: Callable[[], Tensor]
    steps: int
    train: bool = False


PROGRAMS = {
    "detector": Program(Detector, lambda: torch.randn(100, 1, 1, 512), 100),
    "sine-training": Program(Sine, lambda: sines(97), 300, train=True),
    "sine-prediction": Program(Sine, lambda: sines(3), 300),
    "forecaster": Program(Forecaster, lambda: torch.randn(24, 400, 48), 24),
}


def run(model: nn.Module, data: Tensor, train: bool) -> Results:
    """Run a program; in training also compute the gradients of the squared error."""
    with torch.set_grad_enabled(train):
        if not train:
            return [model(data)]
        outputs = model(data[:, :-1])
        loss = nn.functional.mse_loss(outputs, data[:, 1:])
        return [outputs, *torch.autograd.grad(loss, list(model.parameters()))]


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one row of the table."""
    program = PROGRAMS[name]
    data, train = program.data(), program.train
    theirs, ours, double = program.model(nn), program.model(fastlstm), program.model(nn).double()
    for model in (ours, double):
        model.load_state_dict(theirs.state_dict())
    check(run(ours, data, train), run(theirs, data, train), run(double, data.double(), train))
    calls: dict[str, Callable[[], object]] = {
        "fastlstm.*": lambda: run(ours, data, train),
        "nn.*": lambda: run(theirs, data, train),
    }
    seconds, peer = paired_with_torch(calls, rounds, threads)
    return {
        "program": name,
        "us a step": {n: 1e3 * median_ms(s) / program.steps for n, s in seconds.items()},
        "nn.* us a step": 1e3 * median_ms(seconds[peer]) / program.steps,
        "nn.* / fastlstm.*": ratio(seconds, peer, "fastlstm.*"),
        "spread": spread(ratios(seconds, peer, "fastlstm.*")),
    }


def line(row: dict[str, Any]) -> str:
    """Format a row of the table."""
    text = f"{row['program']:<16}{row['nn.* us a step']:>12.1f}"
    text += f"{row['us a step']['fastlstm.*']:>12.1f}{row['nn.* / fastlstm.*']:>8.2f}"
    return text + f"{row['spread']:>8.0%}"


def main() -> None:
    """Parse arguments, measure, print a table, and write JSON if asked to."""
    parser = common.parser(__doc__)
    parser.add_argument("--program", nargs="+", default=list(PROGRAMS), choices=list(PROGRAMS))
    arguments = parser.parse_args()
    machine = common.begin(arguments)
    print(f"{'us a step':<16}{'nn.*':>12}{'fastlstm.*':>12}{'ratio':>8}{'spread':>8}")
    rows = []
    for name in arguments.program:
        rows.append(measure(name, arguments.rounds, arguments.threads))
        print(line(rows[-1]), flush=True)
        common.write(arguments.json, machine, rows)
    slower = [row["program"] for row in rows if row["nn.* / fastlstm.*"] < 1]
    print(f"slower with fastlstm.*: {', '.join(slower) or 'none'}")


if __name__ == "__main__":
    main()
