"""TorchScript, torch.fx and quantisation accept our modules, or say why not."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fastlstm

T, B, I, H = 5, 3, 4, 6


class Model(nn.Module):
    """An LSTM inside a model, as users have it."""

    def __init__(self, *args, **kwargs):
        super().__init__()
        self.lstm = fastlstm.LSTM(*args, **kwargs)

    def forward(self, x: torch.Tensor):
        y, (h, c) = self.lstm(x)
        return y.sin(), h, c


class Cells(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.cell = fastlstm.LSTMCell(I, H, **kwargs)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor):
        return self.cell(x, (h, c))


def _through_a_file(scripted):
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


def _assert_same(found, expected):
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


OPTIONS = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "projected": {"proj_size": 2, "batch_first": True, "bias": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_script_shares_the_parameters(options):
    model = Model(I, H, **options).eval()
    parameters, x = dict(model.named_parameters()), torch.randn(T, B, I)
    expected = model(x)
    scripted = torch.jit.script(model)
    _assert_same(scripted(x), expected)
    _assert_same(_through_a_file(scripted)(x), expected)
    scripted(x)[0].sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in parameters.values())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(2)
    assert not torch.allclose(scripted(x)[0], expected[0])


def test_script_keeps_the_mode():
    torch.manual_seed(0)
    model, x = Model(I, 50, 2, dropout=0.9), torch.randn(T, B, I)
    scripted = torch.jit.script(model)
    assert not torch.equal(scripted(x)[0], scripted(x)[0])
    scripted = torch.jit.script(Model(I, 50, 2, dropout=0.9).eval())
    assert torch.equal(scripted(x)[0], scripted(x)[0])


def test_script_draws_no_numbers():
    model = Model(I, H)
    state = torch.get_rng_state()
    torch.jit.script(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_script_of_packed_input():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fastlstm.LSTM(I, H)

        def forward(self, input: PackedSequence):
            return self.lstm(input)[0].data

    model = Packed()
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, I) for n in (5, 3)])
    expected = model(packed)
    torch.testing.assert_close(torch.jit.script(model)(packed), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_script_of_a_cell(bias):
    model = Cells(bias=bias)
    inputs = torch.randn(B, I), torch.randn(B, H), torch.randn(B, H)
    expected = model(*inputs)
    scripted = torch.jit.script(model)
    _assert_same(_through_a_file(scripted)(*inputs), expected)
    cell = fastlstm.LSTMCell(I, H)
    _assert_same(torch.jit.script(cell)(inputs[0]), cell(inputs[0]))


@pytest.mark.parametrize("model", [Model(I, H, peephole=True), Cells(peephole=True)])
def test_script_refuses_peepholes(model):
    with pytest.raises(ValueError, match=r"peephole: expected False .*torch\.export"):
        torch.jit.script(model)


# Sizes are tensors in a trace, and our checks compare them once, with those of the example.
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["one layer", "stack"]
)
def test_trace_takes_other_sizes(options, peephole):
    model = Model(I, H, peephole=peephole, dtype=torch.float64, **options)
    parameters = list(model.parameters())
    x = torch.randn(T, B, I, dtype=torch.float64)
    traced = _through_a_file(torch.jit.trace(model, x))
    for size in ((T, B), (T + 4, B), (T, B + 2), (1, 1)):
        x = torch.randn(*size, I, dtype=torch.float64)
        expected = model(x)
        found = traced(x)
        _assert_same(found, expected)
        weights = [torch.randn_like(result) for result in expected]
        mine = torch.autograd.grad(found, list(traced.parameters()), weights)
        named = dict(zip((name for name, _ in traced.named_parameters()), mine, strict=True))
        theirs = torch.autograd.grad(expected, parameters, weights)
        for (name, _), gradient in zip(model.named_parameters(), theirs, strict=True):
            torch.testing.assert_close(named[name], gradient)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("peephole", [False, True])
def test_trace_of_a_cell(peephole):
    model = Cells(peephole=peephole)
    traced = _through_a_file(
        torch.jit.trace(model, (torch.randn(B, I), torch.randn(B, H), torch.randn(B, H)))
    )
    for rows in (B, B + 2, 1):
        inputs = torch.randn(rows, I), torch.randn(rows, H), torch.randn(rows, H)
        expected, found = model(*inputs), traced(*inputs)
        _assert_same(found, expected)
        found[0].sum().backward()
        expected[0].sum().backward()
        for mine, theirs in zip(traced.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad)
            mine.grad = theirs.grad = None


@pytest.mark.parametrize("peephole", [False, True])
def test_fx_sees_one_node(peephole):
    """As with torch's own modules, which are leaves because they are in torch.nn."""
    model = Model(I, H, 2, peephole=peephole)
    graph = torch.fx.symbolic_trace(model)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["lstm"]
    x = torch.randn(T, B, I)
    _assert_same(graph(x), model(x))
    cells = Cells(peephole=peephole)
    inputs = torch.randn(B, I), torch.randn(B, H), torch.randn(B, H)
    graph = torch.fx.symbolic_trace(cells)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["cell"]
    _assert_same(graph(*inputs), cells(*inputs))


def test_fx_keeps_lengths():
    class WithLengths(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = fastlstm.LSTM(I, H)

        def forward(self, x, lengths):
            return self.lstm(x, lengths=lengths)[0]

    model, x, lengths = WithLengths(), torch.randn(T, B, I), torch.tensor([5, 1, 3])
    _assert_same([torch.fx.symbolic_trace(model)(x, lengths)], [model(x, lengths)])


@pytest.mark.filterwarnings("ignore")
def test_dynamic_quantisation_after_to_torch():
    """quantize_dynamic looks for nn.LSTM exactly, so ours becomes one first."""
    model = Model(I, 32, 2, bidirectional=True).eval()
    x = torch.randn(T, B, I)
    expected = model(x)
    model.lstm = model.lstm.to_torch()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert type(quantised.lstm) is torch.ao.nn.quantized.dynamic.LSTM
    found = quantised(x)
    for mine, exact in zip(found, expected, strict=True):
        # 8 bits a weight: an error near 1/256 of the largest, summed over 32 units
        assert 0 < (mine - exact).abs().max() < 0.05 * exact.abs().max()


def test_our_classes_in_torch_nn(monkeypatch):
    """If our classes are assigned to torch.nn, to_torch and jit.script still return torch's."""
    torchs = nn.LSTM
    monkeypatch.setattr(nn, "LSTM", fastlstm.LSTM)
    assert type(fastlstm.LSTM(I, H).to_torch()) is torchs
    torch.jit.script(Model(I, H))


def test_a_trace_without_gradients_asks_for_no_checkpoints():
    module = fastlstm.LSTM(3, 4, backend="torch", checkpoint_every=2)
    x = torch.randn(5, 2, 3)
    with torch.no_grad():
        traced = torch.jit.trace(module, (x,))
        torch.testing.assert_close(traced(x), module(x))


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_trace_under_autocast_without_gradients_can_be_trained(num_layers):
    module, x = fastlstm.LSTM(3, 4, num_layers), torch.randn(5, 2, 3)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        traced = torch.jit.trace(module, (x,), check_trace=False)
    traced(x)[0].float().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
