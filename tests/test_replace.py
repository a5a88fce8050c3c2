"""``replace`` swaps the LSTMs inside a model, and reports what it left."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastlstm

T, B, I, H = 5, 4, 3, 6


class Model(nn.Module):
    """LSTMs at several depths, one of them under two names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(I, H, 2, bidirectional=True, dropout=0.5)
        self.decoder = nn.Sequential(
            nn.Linear(2 * H, I), nn.ModuleDict({"cell": nn.LSTMCell(I, H)})
        )
        self.shared = nn.LSTM(I, I, bias=False)
        self.again = self.shared
        self.gru = nn.GRU(I, H)

    def forward(self, x):
        x, _ = self.again(self.shared(x)[0])
        x = self.decoder[0](self.encoder(x)[0])
        return self.decoder[1]["cell"](x[-1])[0]


def test_same_results_names_and_parameters():
    model = Model().double().eval()
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected, parameters = model(x), dict(model.named_parameters())
    report = fastlstm.replace(model)
    assert report.swapped == ["encoder", "shared", "again", "decoder.1.cell"]
    assert report.left == {}
    assert type(model.encoder) is fastlstm.LSTM and type(model.gru) is nn.GRU
    assert type(model.decoder[1]["cell"]) is fastlstm.LSTMCell
    assert model.shared is model.again
    assert not any(module.training for module in model.modules())
    found = dict(model.named_parameters())
    assert list(found) == list(parameters)
    assert all(found[name] is parameter for name, parameter in parameters.items())
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    for cell in (nn.LSTMCell(I, H), nn.LSTM(I, H)):
        container = nn.ModuleList([cell])
        fastlstm.replace(container, backend="reference")
        assert repr(container[0]) == repr(cell)[:-1] + ", backend='reference')"
    assert fastlstm.replace(model).swapped == []


@pytest.mark.parametrize("cls", ["LSTM", "LSTMCell"])
def test_a_swapped_module_has_all_that_a_new_one_has(cls):
    model = nn.Sequential(getattr(nn, cls)(I, H))
    fastlstm.replace(model, backend="reference")
    new = vars(getattr(fastlstm, cls)(I, H, backend="reference"))
    swapped = vars(model[0])
    assert swapped.keys() == new.keys()
    for name, value in new.items():  # except the parameters
        if name not in ("_parameters", "_flat_weights", "_flat_weight_refs"):
            assert swapped[name] == value, name
    assert swapped["_parameters"].keys() == new["_parameters"].keys()


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch.ao", "ignore::DeprecationWarning")
def test_fx_sees_one_node_a_module():
    """quantize_fx and feature extraction rely on it, as with nn.LSTM."""
    model = nn.Sequential(Extractor(), nn.Linear(H, 2)).eval()
    x, (qconfig, quantize) = torch.randn(T, B, I), _quantize_fx()
    expected = model(x)
    fastlstm.replace(model)
    graph = torch.fx.symbolic_trace(model)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module"]
    assert called == ["0.lstm", "0.cell", "1"]
    torch.testing.assert_close(graph(x), expected)
    prepared = quantize.prepare_fx(model, qconfig, (x,))
    prepared(x)
    quantised = quantize.convert_fx(prepared)
    assert type(quantised.get_submodule("1")) is torch.ao.nn.quantized.Linear
    assert 0 < (quantised(x) - expected).abs().max() < 0.05 * expected.abs().max()


class Extractor(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.cell = nn.LSTM(I, H), nn.LSTMCell(H, H)

    def forward(self, x):
        return self.cell(self.lstm(x)[0][-1])[0]


def _quantize_fx():
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    return get_default_qconfig_mapping(), quantize_fx


def test_an_optimiser_goes_on():
    models = [Model().double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.Adam(model.parameters(), lr=0.1) for model in models]
    x = torch.randn(T, B, I, dtype=torch.float64)
    for step in range(4):
        if step == 2:
            fastlstm.replace(models[1])
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model.eval()(x).sin().sum().backward()
            optimizer.step()
    for mine, theirs in zip(models[1].parameters(), models[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-8)


def test_hooks_are_kept_and_their_handles_work():
    model, seen = nn.Sequential(nn.LSTM(I, H)), []
    handle = model[0].register_forward_hook(lambda module, *_: seen.append(type(module)))
    model[0].register_forward_pre_hook(lambda *_: seen.append("before"))
    model[0].register_full_backward_hook(lambda *_: seen.append("backward"))
    model[0].weight_hh_l0.register_hook(lambda gradient: seen.append("gradient"))
    fastlstm.replace(model)
    x = torch.randn(T, B, I, requires_grad=True)
    model(x)[0].sum().backward()
    assert sorted(map(str, seen)) == sorted(
        map(str, ["before", fastlstm.LSTM, "gradient", "backward"])
    )
    seen.clear()
    handle.remove()
    model(x)
    assert seen == ["before"]


@pytest.mark.parametrize("wrap", ["weight_norm", "prune"])
def test_weights_that_hooks_compute(wrap):
    model = nn.Sequential(nn.LSTM(I, H))
    if wrap == "prune":
        prune.l1_unstructured(model[0], "weight_hh_l0", amount=0.5)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model[0], "weight_hh_l0")
    x = torch.randn(T, B, I)
    expected, names = model(x)[0], list(model.state_dict())
    assert fastlstm.replace(model).swapped == ["0"]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x)[0], expected)
    gradients = torch.autograd.grad(model(x)[0].sum(), list(model.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


class Mine(nn.LSTM):
    """A subclass, which may compute anything."""


def test_what_is_left_is_reported():
    parametrized, compiled, patched = nn.LSTM(I, H), nn.LSTM(I, H), nn.LSTM(I, H)
    parametrizations.weight_norm(parametrized, "weight_hh_l0")
    compiled.compile()
    patched.forward = lambda x: x
    model = nn.ModuleDict(
        {
            "plain": nn.LSTM(I, H),
            "mine": Mine(I, H),
            "parametrized": parametrized,
            "compiled": compiled,
            "patched": patched,
            "quantised": torch.ao.nn.quantized.dynamic.LSTM(I, H),
            "scripted": torch.jit.script(nn.LSTM(I, H)),
            "rnn": nn.RNN(I, H),
            "gru": nn.GRUCell(I, H),
        }
    )
    before = dict(model)
    report = fastlstm.replace(model)
    assert report.swapped == ["plain"]
    assert {name: reason.split(":")[0].split(",")[0] for name, reason in report.left.items()} == {
        "mine": "a subclass",
        "parametrized": "parametrized",
        "compiled": "compiled",
        "patched": "its forward was replaced",
        "quantised": "quantised",
        "scripted": "scripted",
    }
    assert all(model[name] is before[name] for name in before if name != "plain")
    assert "swapped 1, left 6" in str(report) and "  mine: left, a subclass, Mine" in str(report)
    assert fastlstm.replace(Mine(I, H)).left == {"": "a subclass, Mine"}


@pytest.mark.parametrize("module", [nn.LSTM(I, H), nn.LSTMCell(I, H)], ids=repr)
def test_an_lstm_itself_cannot_be_swapped(module):
    with pytest.raises(ValueError, match=f"got an nn.{type(module).__name__} itself; put it into"):
        fastlstm.replace(module)
    with pytest.raises(ValueError, match="backend"):
        fastlstm.replace(nn.Sequential(module), backend="fastest")


@pytest.mark.parametrize("value", [[nn.LSTM(I, H)], {}, None, nn.LSTM, torch.zeros(2)], ids=str)
def test_arguments_that_are_no_modules(value):
    got = type(value).__name__
    with pytest.raises(TypeError, match=f"^model: expected an nn.Module, got {got}$"):
        fastlstm.replace(value)
    with pytest.raises(TypeError, match=f"^module: expected an nn.Module, got {got}$"):
        fastlstm.explain(value)
    with pytest.raises(TypeError, match=f"^module: expected an nn.LSTM, got {got}$"):
        fastlstm.LSTM.from_torch(value)
    with pytest.raises(TypeError, match=f"^model: expected a VideoLSTM, got {got}$"):
        fastlstm.LSTMClassifier.from_encoder(value, 3)


def test_from_torch_of_other_modules():
    for other in (nn.GRU(I, H), nn.LSTMCell(I, H), nn.Linear(I, H)):
        with pytest.raises(TypeError, match=f"expected an nn.LSTM, got {type(other).__name__}"):
            fastlstm.LSTM.from_torch(other)
    x = torch.randn(T, B, I)
    for module in (Mine(I, H), fastlstm.LSTM(I, H)):
        torch.testing.assert_close(fastlstm.LSTM.from_torch(module)(x)[0], module(x)[0])


def test_the_report_names_what_code_may_ask_for():
    report = str(fastlstm.replace(nn.Sequential(nn.LSTM(I, H))))
    assert report.splitlines()[1:] == [
        "  0: swapped",
        "isinstance(m, nn.LSTM) is False for what was swapped: ask for fastlstm.LSTM_TYPES or "
        "fastlstm.LSTM_CELL_TYPES",
    ]
    assert str(fastlstm.replace(nn.Sequential())) == "swapped 0, left 0"


def test_copies_of_a_swapped_model():
    model = Model().eval()
    fastlstm.replace(model)
    again = copy.deepcopy(model)
    assert again.shared is again.again and type(again.encoder) is fastlstm.LSTM
    x = torch.randn(T, B, I)
    torch.testing.assert_close(again(x), model(x))
