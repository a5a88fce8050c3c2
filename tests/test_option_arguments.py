"""Arguments of the options of LSTM: copies, other forms of the module, and what is refused."""

import copy
import pickle
from functools import partial

import pytest
import torch
from option_cases import OPTIONS, B, H, I, T, make

import fastlstm
from fastlstm import masks
from fastlstm.nn.convert import keras_arguments


@pytest.mark.parametrize("name", OPTIONS)
def test_copies_pickles_and_text(name):
    lstm = make([name]).eval()
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = lstm(x)[0]
    copies = [copy.deepcopy(lstm), pickle.loads(pickle.dumps(lstm))]
    copies.append(fastlstm.LSTM.from_torch(lstm))
    for other in copies:
        torch.testing.assert_close(other(x)[0], expected, rtol=0, atol=0)
        assert repr(other) == repr(lstm)
    assert ("(6, 5)" if name == "hidden_size" else name) in repr(lstm)


@pytest.mark.parametrize("name", OPTIONS)
def test_eval_needs_no_generator_and_training_follows_its_seed(name):
    lstm = make([name])
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.manual_seed(3)
    first = lstm(x)[0]
    torch.manual_seed(3)
    assert torch.equal(lstm(x)[0], first)
    lstm.eval()
    before = torch.random.get_rng_state()
    assert torch.equal(lstm(x)[0], lstm(x)[0])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"recurrent_dropout": 1.5}, ValueError, "recurrent_dropout: .* 0..1, got 1.5"),
        ({"weight_dropout": -0.1}, ValueError, "weight_dropout: .* 0..1, got -0.1"),
        ({"zoneout": (0.1, 2.0)}, ValueError, "zoneout: .* 0..1, got 2.0"),
        ({"zoneout": 0.1}, TypeError, "zoneout: expected two probabilities"),
        ({"zoneout": (0.1,)}, TypeError, "zoneout: expected two probabilities"),
        ({"variational_dropout": "0.1"}, TypeError, "variational_dropout: expected a number"),
        ({"recurrent_dropout": float("nan")}, ValueError, "recurrent_dropout: .* got nan"),
        (
            {"variational_dropout": 0.1, "dropout": 0.1},
            ValueError,
            "variational_dropout: .*dropout",
        ),
        ({"cell_clip": 0.0}, ValueError, "cell_clip: expected a finite number above 0, got 0.0"),
        ({"cell_clip": -1}, ValueError, "cell_clip: .* got -1"),
        ({"cell_clip": float("inf")}, ValueError, "cell_clip: .* got inf"),
        ({"cell_clip": "1"}, TypeError, "cell_clip: expected a number or None, got str"),
        ({"forget_bias": 1.0, "bias": False}, ValueError, "forget_bias: expected None"),
        ({"forget_bias": True}, TypeError, "forget_bias: expected a number"),
        ({"layer_norm": True, "num_heads": 2}, ValueError, "layer_norm: .*num_heads=2"),
        ({"hidden_size": [6, 5, 4]}, ValueError, "hidden_size: expected 2 sizes, .* got 3"),
        ({"hidden_size": [6, 0]}, ValueError, "hidden_size: .* at least 1, got 0"),
        ({"hidden_size": [6, 2.5]}, TypeError, "hidden_size: expected integers, got float"),
        ({"hidden_size": [6, 5], "proj_size": 2}, ValueError, "proj_size: .*each layer"),
        ({"hidden_size": [6, 5], "num_heads": 2}, ValueError, "num_heads: .*each layer"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        fastlstm.LSTM(**{"input_size": I, "hidden_size": H, "num_layers": 2} | arguments)


def test_bad_changes_and_bad_states():
    lstm = make([])
    with pytest.raises(ValueError, match=r"recurrent_dropout: .* got 2"):
        lstm.cell_options = lstm.cell_options._replace(recurrent_dropout=2)
    lstm = make(["hidden_size"])
    state = torch.zeros(2, B, H, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="hx: expected 2 tensors h, one for each size"):
        lstm(torch.randn(T, B, I, dtype=torch.float64), (state, state))
    x, pair = torch.randn(T, B, I, dtype=torch.float64), (state, state)
    for wrong, error in (
        (state, TypeError),
        ((pair,), RuntimeError),
        ((1, pair), TypeError),
        ((pair, (1, 2)), TypeError),
    ):
        with pytest.raises(error, match="hx: expected"):
            lstm(x, wrong)
    with pytest.raises(ValueError, match="recurrent_dropout: expected 0, a cell"):
        fastlstm.lstm_cell(
            torch.randn(B, I),
            None,
            fastlstm.LSTMCell(I, H).weights(),
            options=fastlstm.LSTMOptions(recurrent_dropout=0.1),
        )


@pytest.mark.parametrize("name", ["layer_norm", "zoneout", "cell_clip", "hidden_size"])
def test_what_other_forms_lack_is_refused(name):
    lstm = make([name], dtype=torch.float32).eval()
    for refused in (lstm.to_torch, partial(lstm.stream, 2), partial(torch.jit.script, lstm)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            refused()
    for module in (make(["recurrent_dropout"], dtype=torch.float32).eval(),):
        x = torch.randn(T, B, I)
        torch.testing.assert_close(module.stream(B).run(x), module(x)[0])


def test_a_backend_that_lacks_an_option_says_so():
    lstm = make(["zoneout"], backend="torch")
    with pytest.raises(ValueError, match="backend='torch' cannot run this LSTM: has no zoneout"):
        lstm(torch.randn(T, B, I, dtype=torch.float64))
    assert "has no zoneout" in fastlstm.explain(make(["zoneout"]))


def test_frozen_weights_do_not_bypass_the_options():
    lstm = make(["cell_clip", "layer_norm"], dtype=torch.float32).eval()
    x = torch.randn(T, 1, I)
    with torch.no_grad():
        expected = lstm(x)[0]
        torch.testing.assert_close(lstm.freeze()(x)[0], expected)
        torch.testing.assert_close(lstm.freeze("bfloat16")(x)[0], expected, rtol=0.05, atol=0.02)


def test_arguments_of_keras():
    config = {"units": 7, "use_bias": False, "recurrent_dropout": 0.25, "unit_forget_bias": True}
    assert keras_arguments(config) == {
        "hidden_size": 7,
        "bias": False,
        "batch_first": True,
        "recurrent_dropout": 0.25,
        "forget_bias": None,
    }
    with pytest.raises(ValueError, match="activation: expected 'tanh', got 'relu'"):
        keras_arguments({"units": 7, "activation": "relu"})


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_masks_have_the_probability_that_was_asked_for(p):
    torch.manual_seed(0)
    mask = masks._dropout_mask((400, 501), p, torch.empty(0))
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert abs(mask.eq(0).double().mean() - p) < 5 * deviation
    columns = mask.eq(0).double().mean(0)  # no column of the words of the generator differs
    assert (columns - p).abs().max() < 6 * (p * (1 - p) / 400) ** 0.5 + 0.01


def test_attributes_of_subclasses_stay_theirs():
    """Classes that regularise an nn.LSTM themselves have attributes with these names."""
    with fastlstm.patched():

        class Regularised(torch.nn.LSTM):
            def __init__(self):
                super().__init__(I, H)
                self.layer_norm = torch.nn.LayerNorm(H)
                self.recurrent_dropout = torch.nn.Dropout(0.5)
                self.weight_dropout = self.zoneout = self.options = 0.5

            def forward(self, x):
                return self.layer_norm(self.recurrent_dropout(super().forward(x)[0]))

    theirs, x = Regularised().eval(), torch.randn(T, B, I)
    plain = torch.nn.LSTM(I, H)
    plain.load_state_dict({n: p for n, p in theirs.state_dict().items() if "_l0" in n})
    torch.testing.assert_close(theirs(x), theirs.layer_norm(plain(x)[0]))
    assert theirs.weight_dropout == theirs.zoneout == theirs.options == 0.5
    assert theirs.cell_options == fastlstm.LSTMOptions()
