"""``segmented_loss``: gradients of the whole sequence from one segment at a time."""

import numpy as np
import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import segmented_loss

T, B, I, H = 25, 3, 4, 6


def _setup(cls=fastlstm.LSTM, **options):
    lstm = cls(I, H, dtype=torch.float64, **options)
    readout = nn.Linear(lstm.proj_size or H, 2, dtype=torch.float64)
    size = (B, T) if lstm.batch_first else (T, B)
    x, target = (torch.randn(*size, n, dtype=torch.float64) for n in (I, 2))
    time = 1 if lstm.batch_first else 0

    def head(output, first):
        part = target.narrow(time, first, output.shape[time])
        return (readout(output) - part).square().sum()

    return lstm, readout, x, head


def _gradients(loss, state, leaves):
    total = loss + sum(s.sin().sum() for s in state)
    return [loss, *state, *torch.autograd.grad(total, leaves)]


OPTIONS = [
    {"peephole": True},
    {"num_layers": 2, "batch_first": True},
    {"proj_size": 3, "checkpoint_every": 4},
    {"learn_initial_state": True, "backend": "reference"},
    {"cls": nn.LSTM},
]


@pytest.mark.parametrize("segment", [1, 7, T, 100])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_whole(options, segment):
    lstm, readout, x, head = _setup(**options)
    x.requires_grad_()
    hx = None
    leaves = [x, *lstm.parameters(), *readout.parameters()]
    if "learn_initial_state" not in options:
        rows = lstm.num_layers
        sizes = (lstm.proj_size or H, H)
        hx = tuple(torch.randn(rows, B, n, dtype=torch.float64) for n in sizes)
        leaves += [state.requires_grad_() for state in hx]
    output, state = lstm(x, hx)
    expected = _gradients(head(output, 0), state, leaves)
    found = _gradients(*segmented_loss(lstm, x, head, segment=segment, hx=hx), leaves)
    torch.testing.assert_close(found, expected)


def test_dropout_draws_the_same_numbers_again():
    lstm, _, x, head = _setup(num_layers=2, dropout=0.5)
    torch.manual_seed(3)
    loss, _ = segmented_loss(lstm, x, head, segment=7)
    ours = torch.autograd.grad(loss, list(lstm.parameters()))
    torch.manual_seed(3)
    state, loss = None, 0
    for first in range(0, T, 7):
        output, state = lstm(x[first : first + 7], state)
        loss = loss + head(output, first)
    torch.testing.assert_close(ours, torch.autograd.grad(loss, list(lstm.parameters())))


class _Recording:
    """A sequence that is not in memory: slices are drawn when they are read."""

    shape = (T, B, I)

    def __init__(self, values):
        self.values, self.read = values, []

    def __getitem__(self, steps):
        part = self.values[steps]
        self.read.append((steps.start, len(part)))
        return part


def test_reads_a_segment_at_a_time_and_once_in_each_pass():
    lstm, _, x, head = _setup()
    source = _Recording(x.numpy())
    loss, _ = segmented_loss(lstm, source, head, segment=10)
    assert source.read == [(0, 10), (10, 10), (20, 5)]
    loss.backward()
    assert source.read[3:] == [(20, 5), (10, 10), (0, 10)]


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_file_in_the_place_of_memory(tmp_path, batch_first):
    """The numbers of a memmap are cast to the dtype of the weights; uint8 frames too."""
    lstm, _, x, head = _setup(batch_first=batch_first)
    frames = (x * 40).to(torch.uint8)
    np.save(tmp_path / "x.npy", frames.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found, _ = segmented_loss(lstm, mapped, head, segment=8)
    torch.testing.assert_close(found, head(lstm(frames.double())[0], 0))


def test_a_single_sequence_and_no_gradients():
    lstm, readout, x, _ = _setup(batch_first=True)

    def head(output, first):
        return readout(output).sum()

    with torch.no_grad():
        loss, (h, _) = segmented_loss(lstm, x[0], head, segment=4)
        assert h.shape == (1, H)
        torch.testing.assert_close(loss, head(lstm(x[0])[0], 0))


def test_errors():
    lstm, _, x, head = _setup()
    with pytest.raises(ValueError, match="lstm: expected one direction"):
        segmented_loss(fastlstm.LSTM(I, H, bidirectional=True), x, head)
    with pytest.raises(ValueError, match="segment: expected at least 1, got 0"):
        segmented_loss(lstm, x, head, segment=0)
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        segmented_loss(lstm, x[:0], head)
    with pytest.raises(RuntimeError, match=r"head: expected a tensor of one number, got \(25, 3"):
        segmented_loss(lstm, x, lambda output, first: output)
    with pytest.raises(RuntimeError, match="head: expected a tensor of one number, got float"):
        segmented_loss(lstm, x, lambda output, first: 1.5)
