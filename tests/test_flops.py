"""``FlopCounterMode`` counts the matrix products of our LSTMs."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

import fastlstm

T, B, I, H = 7, 4, 5, 8


def _count(run):
    with FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def _products(rows, sizes):
    """The multiplications and additions of so many rows by matrices of these sizes."""
    return sum(2 * rows * n * m for n, m in sizes)


LAYERS = {
    "one": ({}, [(4 * H, I), (4 * H, H)]),
    "peephole": ({"peephole": True}, [(4 * H, I), (4 * H, H)]),
    "stack": (
        {"num_layers": 2, "bidirectional": True},
        [(4 * H, I), (4 * H, H), (4 * H, 2 * H), (4 * H, H)] * 2,
    ),
    "projected": ({"proj_size": 3}, [(4 * H, I), (4 * H, 3), (3, H)]),
}


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", LAYERS)
def test_forward_and_backward(name, backend):
    options, sizes = LAYERS[name]
    module = fastlstm.LSTM(I, H, **options, backend=backend)
    x = torch.randn(T, B, I, requires_grad=True)
    expected = _products(T * B, sizes)
    forward, (y, _) = _count(lambda: module(x))
    assert forward == expected
    if backend == "cpu":  # plain torch leaves out the gradient of the first state
        assert _count(lambda: y.sum().backward())[0] == 2 * expected


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")
def test_as_torch_counts_its_own():
    """With a projection nn.LSTM is made of matrix products; oneDNN's LSTM counts none."""
    torchs, x = nn.LSTM(I, H, proj_size=3), torch.randn(T, B, I)
    ours = fastlstm.LSTM.from_torch(torchs)
    (mine, (y, _)), (theirs, (their_y, _)) = (_count(lambda m=m: m(x)) for m in (ours, torchs))
    assert mine == theirs > 0
    mine, theirs = (_count(lambda y=y: y.sum().backward())[0] for y in (y, their_y))
    assert mine == theirs + _products(B, [(4 * H, 3)])  # the gradient of the first state


def test_gradients_that_nobody_asks_for_are_not_counted():
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    module.weight_hh_l0.requires_grad_(False)
    y = module(x)[0]
    backward = _count(lambda: y.sum().backward())[0]
    assert backward == _products(T * B, [(4 * H, I), (4 * H, H)])  # weight_ih and the states


def test_a_forward_that_runs_once_more():
    module, x = fastlstm.LSTM(I, H, checkpoint_every=2), torch.randn(T, B, I, requires_grad=True)
    forward, (y, _) = _count(lambda: module(x))
    assert _count(lambda: y.sum().backward())[0] == 3 * forward


def test_packed_rows_and_lengths():
    module = fastlstm.LSTM(I, H, backend="cpu")
    sizes = [(4 * H, I), (4 * H, H)]
    packed = pack_sequence([torch.randn(n, I) for n in (5, 3, 1)])
    assert _count(lambda: module(packed))[0] == _products(9, sizes)
    x = torch.randn(T, B, I)
    lengths = torch.tensor([7, 1, 2, 3])
    assert _count(lambda: module(x, lengths=lengths))[0] == _products(T * B, sizes)


def test_of_a_module_inside_a_model():
    model = nn.Sequential(nn.LSTM(I, H))
    fastlstm.replace(model)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(T, B, I))
    counts = counter.get_flop_counts()["Sequential.0"]
    expected = _products(T * B, [(4 * H, I), (4 * H, H)])
    assert counts == {torch.ops.fastlstm.lstm_sequence: expected}
