"""``fastlstm.LSTM`` is ``nn.LSTM``: outputs, states and gradients."""

import pairwise
import pytest
import torch
from helpers import assert_close, skip_unless_supported
from pairs import TOLERANCE, B, H, I, T, double, input_of, leaves_of, pair, results, states_of
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastlstm
from fastlstm import _C, backends

LENGTHS = torch.tensor([3, 5, 1, 4])
CONFIGURATIONS = [
    {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    for num_layers in (1, 2, 3)
    for bidirectional in (False, True)
    for batch_first in (False, True)
]


@pairwise.parametrize(
    {
        "configuration": CONFIGURATIONS,
        "bias": [False, True],
        "proj_size": [0, 2],
        "layout": ["padded", "unbatched", "packed"],
        "given": [False, True],
    }
)
def test_equals_torch(configuration, bias, proj_size, layout, given):
    ours, torchs = pair("LSTM", I, H, bias=bias, proj_size=proj_size, **configuration)
    input = input_of(ours, batched=layout != "unbatched")
    hx = states_of(ours, *([] if layout == "unbatched" else [B])) if given else None
    options = {"leaves": leaves_of(input, hx), "packed": LENGTHS if layout == "packed" else None}
    mine, theirs = (results(module, input, hx, **options) for module in (ours, torchs))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_backend_equals_torch(backend, bidirectional, proj_size, layout):
    ours, torchs = pair(
        "LSTM", I, H, 2, bidirectional=bidirectional, proj_size=proj_size, backend=backend
    )
    skip_unless_supported(backend, ours.problem()._replace(is_packed_sequence=layout == "packed"))
    input, hx = input_of(ours), states_of(ours, B)
    options = {"leaves": leaves_of(input, hx), "packed": LENGTHS if layout == "packed" else None}
    mine, theirs = (results(module, input, hx, **options) for module in (ours, torchs))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_output_is_packed_as_torchs(backend, enforce_sorted):
    ours, torchs = pair("LSTM", I, H, 2, bidirectional=True, backend=backend)
    lengths = LENGTHS.sort(descending=True)[0] if enforce_sorted else LENGTHS
    packed = pack_padded_sequence(input_of(ours), lengths, enforce_sorted=enforce_sorted)
    skip_unless_supported(backend, ours.problem(packed))
    mine, theirs = ours(packed)[0], torchs(packed)[0]
    assert type(mine) is PackedSequence
    for field, expected in theirs._asdict().items():
        torch.testing.assert_close(getattr(mine, field), expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_equal_a_packed_sequence(backend, batch_first):
    ours, torchs = pair(
        "LSTM", I, H, 2, bidirectional=True, batch_first=batch_first, backend=backend
    )
    input, hx = input_of(ours), states_of(ours, B)
    leaves = leaves_of(input, hx)
    mine = results(ours, input, hx, leaves=leaves, lengths=LENGTHS)
    assert_close(mine, results(torchs, input, hx, leaves=leaves, packed=LENGTHS), TOLERANCE)


def test_batch_of_none_as_torch():
    ours, torchs = pair("LSTM", I, H, 2, bidirectional=True)
    input = double(T, 0, I)
    (y, (hy, cy)), (y_torch, states_torch) = ours(input), torchs(input)
    assert [s.shape for s in (y, hy, cy)] == [s.shape for s in (y_torch, *states_torch)]


@pytest.mark.parametrize("peephole", [False, True])
def test_batch_of_none_has_gradients_of_zero(backend, peephole):
    module = fastlstm.LSTM(I, H, peephole=peephole, backend=backend)
    skip_unless_supported(backend, module.problem())
    module(torch.randn(T, 0, I))[0].sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


def test_repr():
    assert repr(fastlstm.LSTM(3, 4, num_layers=2)) == repr(nn.LSTM(3, 4, num_layers=2))
    assert repr(fastlstm.LSTMCell(3, 4)) == repr(nn.LSTMCell(3, 4))
    assert repr(fastlstm.LSTM(3, 4, peephole=True)) == "LSTM(3, 4, peephole=True)"
    assert repr(fastlstm.LSTM(3, 4, backend="cpu")) == "LSTM(3, 4, backend='cpu')"
    assert repr(fastlstm.LSTMCell(3, 4, peephole=True)) == "LSTMCell(3, 4, peephole=True)"
    assert repr(fastlstm.LSTMCell(3, 4, backend="cpu")) == "LSTMCell(3, 4, backend='cpu')"


@pytest.mark.parametrize("peephole", [False, True])
def test_backward_in_eval_mode(backend, peephole):
    module = fastlstm.LSTM(I, H, peephole=peephole, dtype=torch.float64, backend=backend)
    skip_unless_supported(backend, module.problem())
    x = input_of(module)
    expected = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    found = torch.autograd.grad(module.eval()(x)[0].sum(), list(module.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_reserve_is_kept_for_training_only(monkeypatch):
    _C.set_direct("off")
    reserves = []
    original = backends.cpu.forward

    def forward(*args, **kwargs):
        results = original(*args, **kwargs)
        reserves.append(results[4].numel())
        return results

    monkeypatch.setattr(backends.cpu, "forward", forward)
    module = fastlstm.LSTM(I, H, backend="cpu")
    x = torch.randn(T, B, I)
    assert module(x)[0].requires_grad
    with torch.no_grad():
        assert not module(x)[0].requires_grad
    with torch.inference_mode():
        module(x)
    assert not module.requires_grad_(False)(x)[0].requires_grad
    assert reserves == [T * B * 5 * H, 0, 0, 0]


def test_gradients_accumulate_and_a_graph_can_be_kept():
    module = fastlstm.LSTM(I, H, peephole=True, backend="cpu")
    loss = module(torch.randn(T, B, I))[0].sin().sum()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in module.parameters()]
    loss.backward()
    for parameter, gradient in zip(module.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


@pytest.mark.parametrize("peephole", [False, True])
def test_meta_device(peephole):
    """Sizes without numbers, as with nn.LSTM."""
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, peephole=peephole, device="meta")
    output, (hy, cy) = module(torch.empty(T, B, I, device="meta"))
    assert output.shape == (T, B, 2 * H) and hy.shape == cy.shape == (4, B, H)
    cell = fastlstm.LSTMCell(I, H, peephole=peephole, device="meta")
    assert [state.shape for state in cell(torch.empty(B, I, device="meta"))] == [(B, H)] * 2
