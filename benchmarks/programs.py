"""The suite "programs": small programs that call an LSTM one step at a time.

    detector          A voice detector: 100 frames of 32 ms, one after the other; for each a
                      convolution, an LSTMCell of 128 units, and a linear layer with a sigmoid.
    sine-training     PyTorch's example of time series: two LSTMCells of 51 units and a linear layer
                      over 300 steps of 97 sines, the loss, and the gradients of all parameters.
    sine-prediction   The same for 3 sines, without gradients.
    forecaster        24 steps of an LSTM of two layers of 40 units and a linear layer, for 400
                      series at once, without gradients.

Both versions of a program differ in the class of the LSTM only, and have the same weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastlstm

from .cases import Case, case, ways
from .contests import Contender, Contest, Effort, Results, relative_errors


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


def contest(name: str, train: bool, effort: Effort) -> Contest:
    """Return a program with both libraries."""
    program = PROGRAMS[name]
    data = program.data()
    theirs, ours, double = program.model(nn), program.model(fastlstm), program.model(nn).double()
    for model in (ours, double):
        model.load_state_dict(theirs.state_dict())
    expected, exact = run(theirs, data, train), run(double, data.double(), train)
    return Contest(
        {
            "auto": Contender(
                lambda: run(ours, data, train),
                lambda: relative_errors(run(ours, data, train), expected, exact),
                ("nn.LSTM",),
            ),
            "nn.LSTM": Contender(lambda: run(theirs, data, train), threads=(1, effort.threads)),
        }
    )


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the programs whose mode is asked for."""
    for way in ways(options, ["float32"]):
        train = way["mode"] == "training"
        for name, program in PROGRAMS.items():
            if program.train == train:

                def build(effort: Effort, how: tuple[str, bool] = (name, train)) -> Contest:
                    return contest(*how, effort)

                yield case("programs", {"shape": name, "T": program.steps, **way}, ["auto"], build)
