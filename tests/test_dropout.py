"""Dropout between layers: what ``nn.LSTM`` drops from the same seed, on any number of threads."""

import pytest
import torch
from torch import nn

import fastlstm
from fastlstm import backends

T, B, I, H = 5, 4, 3, 6
TOLERANCE = 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_same_seed_drops_what_torch_drops(bidirectional, batch_first, dtype):
    torchs = nn.LSTM(
        I, 33, 3, dropout=0.4, bidirectional=bidirectional, batch_first=batch_first, dtype=dtype
    )
    ours = fastlstm.LSTM.from_torch(torchs, backend="cpu")
    x = torch.randn(9, 17, I, dtype=dtype)
    outputs = []
    for module in (ours, torchs):
        torch.manual_seed(3)
        y, _ = module(x)
        outputs.append((y, torch.rand(1), *torch.autograd.grad(y.sum(), module.weight_hh_l0)))
    torch.testing.assert_close(*outputs)


@pytest.mark.parametrize("peephole", [False, True])
def test_the_same_on_any_number_of_threads_and_again(peephole):
    """There are enough rows for torch to draw on several threads."""
    module = fastlstm.LSTM(I, 64, 2, dropout=0.5, peephole=peephole, dtype=torch.float64)
    x = torch.randn(50, 40, I, dtype=torch.float64)
    outputs = []
    for threads in (2, 2, 1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        outputs.append(module(x)[0])
    assert torch.equal(outputs[0], outputs[1])
    for output in outputs[2:]:
        torch.testing.assert_close(output, outputs[0], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("recording", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_mode_drops_whether_gradients_are_recorded_or_not(backend, recording, bidirectional):
    """Monte Carlo dropout: in training mode without gradients too, and never in eval mode."""
    torchs = nn.LSTM(I, H, 2, dropout=0.5, bidirectional=bidirectional)
    ours = fastlstm.LSTM.from_torch(torchs, backend=backend)
    x = torch.randn(T, B, I)
    for training in (True, False):
        outputs = []
        for module in (ours, torchs, ours):
            module.train(training)
            torch.manual_seed(3)
            with recording():
                outputs.append(module(x)[0].detach())
        torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)
        with recording():
            other = ours(x)[0].detach()
        assert torch.equal(outputs[0], outputs[2])
        assert torch.equal(outputs[0], other) is not training


def test_no_draw_where_nothing_is_dropped():
    x, before = torch.randn(T, B, I), torch.get_rng_state()
    fastlstm.LSTM(I, H, 2, dropout=0.4).eval()
    torch.set_rng_state(before)
    module = nn.utils.skip_init(fastlstm.LSTM, I, H, 2, dropout=0.4)
    module.eval()(x)
    assert torch.equal(torch.get_rng_state(), before)


def test_backward_in_eval_mode():
    module = fastlstm.LSTM(I, H, 2, dropout=0.4, dtype=torch.float64)
    whole = fastlstm.LSTM(I, H, 2, dtype=torch.float64)
    whole.load_state_dict(module.state_dict())
    x = torch.randn(T, B, I, dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(m(x)[0].sum(), list(m.parameters())) for m in (module.eval(), whole)
    )
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_dropout_zeroes_that_share_of_what_layers_pass_on(monkeypatch):
    seen = []
    original = backends.reference.forward

    def forward(call):
        seen.append(call.input)
        return original(call)

    monkeypatch.setattr(backends.reference, "forward", forward)
    module = fastlstm.LSTM(I, 200, 3, dropout=0.4, backend="reference")
    with torch.no_grad():
        output, _ = module(torch.randn(T, B, I))
        whole = seen.copy()
        seen.clear()
        module.eval()(torch.randn(T, B, I))
    assert [(x == 0).any().item() for x in (whole[0], output)] == [False, False]
    for x in whole[1:]:
        assert (x == 0).double().mean().item() == pytest.approx(0.4, abs=0.04)
    assert not any((x == 0).any() for x in seen)


def test_dropout_keeps_the_mean():
    module = fastlstm.LSTM(I, 4, 2, dropout=0.5)
    for name, parameter in module.named_parameters():  # a second layer that is nearly linear
        parameter.data.mul_(0.02 if name.endswith("l1") else 1)
    with torch.no_grad():
        x = torch.randn(1, 1, I).expand(1, 20000, I)
        mean = module(x)[0].mean(1)
        expected = module.eval()(x)[0].mean(1)
    deviation = module.train()(x)[0].std(1) / 20000**0.5
    assert ((mean - expected).abs() < 5 * deviation + 1e-6).all()
