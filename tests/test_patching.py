"""``patched`` puts our classes in torch's place for a block; ``LSTM_TYPES`` names both."""

import io
import threading

import pytest
import torch
from torch import nn
from torch.nn.modules.rnn import LSTM, LSTMCell  # by name, before any block: not replaced

import fastlstm

NAMESPACES = (nn, nn.modules, nn.modules.rnn)
I, H = 3, 6


class Model(nn.Module):
    """A model that names nn.LSTM, as other people's models do."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(I, H, 2, bidirectional=True)
        self.cell = nn.LSTMCell(2 * H, H)

    def forward(self, x):
        return self.cell(self.lstm(x)[0][-1])[0]


def initialise(module):
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        for parameter in module.parameters():
            nn.init.constant_(parameter, 0.25)


def initialise_both(module):
    if isinstance(module, (*fastlstm.LSTM_TYPES, *fastlstm.LSTM_CELL_TYPES)):
        for parameter in module.parameters():
            nn.init.constant_(parameter, 0.25)


def _are_torchs():
    return all(space.LSTM is LSTM and space.LSTMCell is LSTMCell for space in NAMESPACES)


def _are_initialised(model):
    return all(bool((parameter == 0.25).all()) for parameter in model.parameters())


def test_a_model_is_built_and_initialised():
    with fastlstm.patched():
        for space in NAMESPACES:
            assert space.LSTM is fastlstm.LSTM and space.LSTMCell is fastlstm.LSTMCell
        torch.manual_seed(0)
        model = Model()
        torch.manual_seed(0)
        assert type(LSTM(I, H)) is LSTM
    assert _are_torchs()
    assert type(model.lstm) is fastlstm.LSTM and type(model.cell) is fastlstm.LSTMCell
    torch.manual_seed(0)
    torchs, x = Model(), torch.randn(5, 4, I)
    torch.testing.assert_close(model(x), torchs(x))
    with fastlstm.patched():
        model.apply(initialise)
    assert _are_initialised(model)
    torch.testing.assert_close(model(x), torchs.apply(initialise)(x))
    assert type(nn.LSTM(I, H)) is LSTM


def test_after_the_block_it_compiles_without_a_break(compiled):
    with fastlstm.patched():
        model = Model().apply(initialise)
    x = torch.randn(5, 4, I)
    torch.testing.assert_close(compiled(model)(x), model(x))


def test_set_for_good_it_compiles_where_dynamo_allows_it(compiled, monkeypatch):
    monkeypatch.setattr(nn, "LSTM", fastlstm.LSTM)
    model, x = fastlstm.LSTM(I, H), torch.randn(5, 4, I)
    with torch._dynamo.config.patch(allow_rnn=True):
        torch.testing.assert_close(compiled(model)(x)[0], model(x)[0])


@pytest.mark.parametrize("build", ["torch", "replace", "patched", "ours"])
def test_a_loop_that_asks_for_the_types(build):
    if build == "patched":
        with fastlstm.patched():
            model = Model()
    else:
        model = Model()
    if build == "replace":
        fastlstm.replace(model)
    if build == "ours":
        model.lstm, model.cell = fastlstm.LSTM(I, H), fastlstm.LSTMCell(I, H)
    model.apply(initialise)
    assert _are_initialised(model) == (build == "torch")
    model.apply(initialise_both)
    assert _are_initialised(model)
    assert not isinstance(nn.GRU(I, H), fastlstm.LSTM_TYPES)
    assert not isinstance(model.cell, fastlstm.LSTM_TYPES)
    assert not isinstance(model.lstm, fastlstm.LSTM_CELL_TYPES)


def test_an_exception_ends_the_block():
    with pytest.raises(KeyError), fastlstm.patched():
        raise KeyError
    assert _are_torchs()


def test_nested_blocks_and_a_function():
    @fastlstm.patched()
    def make():
        return nn.LSTM(I, H)

    with fastlstm.patched():
        with fastlstm.patched():
            assert type(make()) is fastlstm.LSTM
        assert type(nn.LSTM(I, H)) is fastlstm.LSTM
    assert _are_torchs()
    assert type(make()) is fastlstm.LSTM
    assert _are_torchs()


def test_blocks_of_two_threads_that_overlap():
    """The first block to begin ends first: torch's classes are back after the second."""
    begun, ended = threading.Event(), threading.Event()

    def second():
        with fastlstm.patched():
            begun.set()
            ended.wait()
            found.append(nn.LSTM)

    found = []
    thread = threading.Thread(target=second)
    with fastlstm.patched():
        thread.start()
        begun.wait()
    ended.set()
    thread.join()
    assert found == [fastlstm.LSTM]
    assert _are_torchs()


def test_what_was_in_torchs_place_before_comes_back(monkeypatch):
    class Other(LSTM):
        pass

    monkeypatch.setattr(nn, "LSTM", Other)
    with fastlstm.patched():
        assert nn.LSTM is fastlstm.LSTM
    assert nn.LSTM is Other and nn.modules.LSTM is LSTM


def test_a_class_that_inherits_inside():
    with fastlstm.patched():

        class Residual(nn.LSTM):
            def forward(self, x):
                return super().forward(x)[0] + x

    torch.manual_seed(0)
    module, x = Residual(I, I), torch.randn(5, 4, I)
    torch.manual_seed(0)
    torch.testing.assert_close(module(x), LSTM(I, I)(x)[0] + x)
    assert isinstance(module, fastlstm.LSTM) and not isinstance(module, nn.LSTM)


@pytest.mark.parametrize("cls", ["LSTM", "LSTMCell"])
def test_a_pickle_of_torchs_class_is_read_as_ours(cls):
    torchs, file = getattr(nn, cls)(I, H), io.BytesIO()
    torch.save(torchs, file)
    file.seek(0)
    with fastlstm.patched():
        ours = torch.load(file, weights_only=False)
    assert type(ours) is getattr(fastlstm, cls)
    assert vars(ours).keys() == vars(getattr(fastlstm, cls)(I, H)).keys()
    x = torch.randn(4, I)
    torch.testing.assert_close(ours(x)[0], torchs(x)[0])


def test_ways_in_and_out_work_inside():
    model = nn.Sequential(LSTM(I, H))
    with fastlstm.patched():
        assert fastlstm.replace(model).swapped == ["0"]
        assert fastlstm.replace(model).swapped == []
        assert type(model[0].to_torch()) is LSTM
        assert type(fastlstm.LSTM.from_torch(model[0])) is fastlstm.LSTM
        nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
        assert fastlstm.replace(model).left == {}
