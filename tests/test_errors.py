"""Wrong arguments raise torch's type of error, with torch's text where torch raises in Python."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm import LSTMWeights, lstm, lstm_sequence

x, h = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)

# name: (the call's arguments, whether torch raises in Python, so that the text is the same)
LSTM_CALLS = {
    "input 1-D": ((x[0, 0],), True),
    "input 4-D": ((x[None],), True),
    "input size": ((x[..., :2],), True),
    "input dtype": ((x.double(),), True),
    "input integers": ((x.long(),), True),
    "empty sequence": ((x[:0],), True),
    "hidden size": ((x, (h[..., :3], h)), True),
    "cell size": ((x, (h, h[..., :3])), True),
    "batch of hx": ((x, (h[:, :1], h)), True),
    "layers of hx": ((x, (h.repeat(2, 1, 1), h)), True),
    "hx 2-D": ((x, (h[0], h[0])), True),
    "hx 3-D, unbatched": ((x[:, 0], (h, h)), True),
    "hidden size, unbatched": ((x[:, 0], (h[:, 0, :3], h[:, 0])), True),
    "hx dtype": ((x, (h.double(), h.double())), False),
    "cx dtype": ((x, (h, h.double())), False),
    "three states": ((x, (h, h, h)), False),
}

CELL_CALLS = {
    "input 3-D": ((x,), True),
    "input size": ((x[0, :, :2],), False),
    "input dtype": ((x[0].double(),), False),
    "hx 3-D": ((x[0], (h, h)), True),
    "hx 1-D": ((x[0], (h[0, 0], h[0, 0])), False),
    "hx 2-D, unbatched": ((x[0, 0], (h[0], h[0])), False),
    "hidden size": ((x[0], (h[0, :, :3], h[0])), False),
    "cell size": ((x[0], (h[0], h[0, :, :3])), False),
    "batch of hx": ((x[0], (h[0, :1], h[0, :1])), False),
    "hx dtype": ((x[0], (h[0].double(), h[0].double())), False),
    "one state": ((x[0], (h[0],)), False),
    "three states": ((x[0], (h[0],) * 3), False),
}


def _check_as_torch(ours, torchs, arguments, same_text):
    with pytest.raises(Exception) as expected:
        torchs(*arguments)
    with pytest.raises(expected.type) as found:
        ours(*arguments)
    assert type(found.value) is expected.type
    if same_text:
        assert str(found.value) == str(expected.value)
    return str(found.value)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("call", LSTM_CALLS)
def test_lstm_raises_as_torch(call, peephole):
    _check_as_torch(fastlstm.LSTM(3, 4, peephole=peephole), nn.LSTM(3, 4), *LSTM_CALLS[call])


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("call", CELL_CALLS)
def test_cell_raises_as_torch(call, peephole):
    ours = fastlstm.LSTMCell(3, 4, peephole=peephole)
    _check_as_torch(ours, nn.LSTMCell(3, 4), *CELL_CALLS[call])


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_size": 0, "hidden_size": 4},
        {"input_size": 3, "hidden_size": 0},
        {"input_size": 3, "hidden_size": 4.0},
        {"input_size": "3", "hidden_size": 4},
        {"input_size": 3, "hidden_size": 4, "num_layers": 0},
        {"input_size": 3, "hidden_size": 4, "bias": 1},
        {"input_size": 3, "hidden_size": 4, "batch_first": 1},
        {"input_size": 3, "hidden_size": 4, "dropout": 1.5},
        {"input_size": 3, "hidden_size": 4, "dropout": True},
        {"input_size": 3, "hidden_size": 4, "proj_size": 4},
        {"input_size": 3, "hidden_size": 4, "proj_size": -1},
    ],
    ids=str,
)
def test_constructor_raises_as_torch(arguments):
    _check_as_torch(
        lambda: fastlstm.LSTM(**arguments), lambda: nn.LSTM(**arguments), (), same_text=True
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_size": 3, "hidden_size": 4, "nonlinearity": "relu"},
        {"input_size": 3, "hidden_size": 4, "mode": "GRU"},
        {"hidden_size": 4},
    ],
    ids=str,
)
def test_constructor_names_itself_for_wrong_arguments(arguments):
    """A TypeError like torch's, which names RNNBase."""
    with pytest.raises(TypeError):
        nn.LSTM(**arguments)
    with pytest.raises(TypeError, match=r"LSTM\.__init__"):
        fastlstm.LSTM(**arguments)


@pytest.mark.parametrize("cls", [nn.LSTM, fastlstm.LSTM])
def test_useless_dropout_warns_as_torch(cls):
    with pytest.warns(UserWarning, match="num_layers greater than 1"):
        cls(3, 4, dropout=0.5)


def test_packed_input_that_does_not_fit():
    """nn.LSTM accepts these inputs, and reads out of bounds."""
    module = fastlstm.LSTM(3, 4)
    with pytest.raises(RuntimeError, match=r"input_size\. Expected 3, got 2"):
        module(pack_sequence([torch.zeros(5, 2)]))
    with pytest.raises(RuntimeError, match=r"hidden\[0\] size \(1, 1, 4\), got \[1, 2, 4\]"):
        module(pack_sequence([torch.zeros(5, 3)]), (h, h))
    with pytest.raises(ValueError, match=r"float64.*float32"):
        module(pack_sequence([torch.zeros(5, 3).double()]))


@pytest.mark.parametrize("backend", ["auto", "cpu", "torch", "reference"])
@pytest.mark.parametrize(
    "lengths, error, match",
    [
        ([0, 5], RuntimeError, r"lengths: expected integers in 1\.\.5, got 0\.\.5"),
        ([1, 6], RuntimeError, r"lengths: expected integers in 1\.\.5, got 1\.\.6"),
        ([-1, 5], RuntimeError, r"lengths: expected integers in 1\.\.5, got -1\.\.5"),
        ([5], RuntimeError, r"lengths: expected size \(2,\), got \(1,\)"),
        ([[5, 5]], RuntimeError, r"lengths: expected size \(2,\), got \(1, 2\)"),
        ([5.0, 5.0], RuntimeError, "lengths: expected integers, got torch.float32"),
        ([True, True], RuntimeError, "lengths: expected integers, got torch.bool"),
    ],
    ids=str,
)
def test_lengths(backend, lengths, error, match):
    with pytest.raises(error, match=match):
        fastlstm.LSTM(3, 4, backend=backend)(x, lengths=torch.tensor(lengths))


def test_lengths_where_there_is_no_padding():
    module, lengths = fastlstm.LSTM(3, 4), torch.tensor([5])
    with pytest.raises(ValueError, match="lengths: expected None for unbatched"):
        module(x[:, 0], lengths=lengths)
    with pytest.raises(ValueError, match="lengths: expected None beside a PackedSequence"):
        module(pack_sequence([x[:, 0]]), lengths=lengths)


@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.LSTMCell])
def test_unknown_backend(cls):
    match = r"backend: expected 'auto', 'cpu', 'torch', 'cuda', 'triton', 'reference', got 'tpu'"
    with pytest.raises(ValueError, match=match):
        cls(3, 4, backend="tpu")


def test_backend_that_cannot_run_it():
    def call(**options):
        return fastlstm.LSTM(3, 4, **options)(x.to(options.get("dtype", x.dtype)))

    with pytest.raises(ValueError, match=r"backend='cpu' cannot run .*on the cpu, not on meta"):
        fastlstm.LSTM(3, 4, backend="cpu", device="meta")(x.to("meta"))
    with pytest.raises(ValueError, match=r"backend='torch' cannot run .*no reset mask"):
        fastlstm.LSTM(3, 4, backend="torch")(x, reset=torch.zeros(x.shape[:2], dtype=torch.bool))
    with pytest.raises(ValueError, match=r"backend='torch' cannot run .*last cell state"):
        fastlstm.LSTM(3, 4, backend="torch")(x, return_all_cells=True)
    with pytest.raises(ValueError, match=r"backend='torch' cannot run .*no peephole"):
        call(backend="torch", peephole=True)
    with pytest.raises(ValueError, match=r"backend='torch' cannot run .*whole layers"):
        lstm_sequence(torch.zeros(1, 1, 1, 4), [torch.zeros(4, 1)], backend="torch")


def _sequence(**changes):
    arguments = {
        "input": torch.zeros(5, 2, 2, 16),
        "weight_hh": [torch.zeros(16, 4)] * 2,
        "hx": torch.zeros(2, 2, 4),
        "cx": torch.zeros(2, 2, 4),
        "weight_ch": [torch.zeros(12)] * 2,
        "reverse": [False, True],
    }
    return lstm_sequence(**(arguments | changes))


@pytest.mark.parametrize(
    "changes, error, match",
    [
        (
            {"input": torch.zeros(5, 2, 16)},
            RuntimeError,
            r"input: expected igates \(T, B, G, 4H\), got 3",
        ),
        ({"input": torch.zeros(5, 2, 2, 15)}, RuntimeError, r"input: .*4H = 16, got 15"),
        ({"input": torch.zeros(0, 2, 2, 16)}, RuntimeError, "sequence length to be larger than 0"),
        (
            {"input": torch.zeros(5, 2, 2, 16).long()},
            ValueError,
            "input: .*floating-point.* got .*int",
        ),
        ({"weight_hh": [torch.zeros(16, 4)]}, RuntimeError, "input: expected 1 groups.* got 2"),
        ({"weight_hh": []}, RuntimeError, "weight_hh: expected one matrix .* a group"),
        (
            {"weight_hh": [torch.zeros(16, 4), torch.zeros(16, 5)]},
            RuntimeError,
            r"weight_hh\[1\]: expected size \(16, 4\), got \(16, 5\)",
        ),
        (
            {"weight_hh": [torch.zeros(16, 4), torch.zeros(16, 4).double()]},
            ValueError,
            r"weight_hh\[1\]: expected dtype torch.float32, that of input, got torch.float64",
        ),
        ({"weight_ch": [torch.zeros(12)]}, RuntimeError, "weight_ch: expected 2 .* got 1"),
        (
            {"weight_ch": [torch.zeros(12), torch.zeros(16)]},
            RuntimeError,
            r"weight_ch\[1\]: expected size \(12,\), got \(16,\)",
        ),
        (
            {"weight_hr": [torch.zeros(3, 4), torch.zeros(3, 5)]},
            RuntimeError,
            r"weight_hr\[0\]: expected size \(4, 4\), got \(3, 4\)",
        ),
        ({"reverse": [True]}, RuntimeError, "reverse: expected 2 flags, .* got 1"),
        ({"hx": torch.zeros(2, 4)}, RuntimeError, r"hx: expected size \(2, 2, 4\), got \(2, 4\)"),
        ({"cx": torch.zeros(2, 2, 5)}, RuntimeError, r"cx: expected size .* got \(2, 2, 5\)"),
        ({"hx": torch.zeros(2, 2, 4).double()}, ValueError, "hx: expected dtype .* got .*float64"),
        ({"cx": torch.zeros(2, 2, 4).half()}, ValueError, "cx: expected dtype .* got .*float16"),
        (
            {"hx": torch.zeros(2, 2, 4, device="meta")},
            RuntimeError,
            "hx: expected device cpu",
        ),
        ({"lengths": torch.tensor([6, 1])}, RuntimeError, r"lengths: .* 1\.\.5, got 1\.\.6"),
        ({"backend": "gpu"}, ValueError, "backend: expected 'auto', .* got 'gpu'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_sequence(changes, error, match):
    _sequence()
    with pytest.raises(error, match=match):
        _sequence(**changes)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"weight_hh": torch.zeros(16, 5)}, r"weights\[1\]\.weight_hh: .*\(16, 4\), got \(16, 5\)"),
        ({"weight_ih": torch.zeros(16, 3)}, r"weights\[1\]\.weight_ih: .*\(16, 4\), got \(16, 3\)"),
        ({"bias_ih": torch.zeros(15)}, r"weights\[1\]\.bias_ih: .*\(16,\), got \(15,\)"),
        ({"bias_hh": None}, r"weights\[1\]\.bias_hh: expected in all entries or in none"),
        ({"weight_ch": torch.zeros(12)}, r"weights\[1\]\.weight_ch: expected in all entries"),
    ],
)
def test_weights_of_layers(change, match):
    bias = torch.zeros(16)
    first = LSTMWeights(torch.zeros(16, 3), torch.zeros(16, 4), bias, bias)
    second = first._replace(weight_ih=torch.zeros(16, 4))
    lstm(x, None, [first, second])
    with pytest.raises(RuntimeError, match=match):
        lstm(x, None, [first, second._replace(**change)])


def test_number_of_weights():
    with pytest.raises(RuntimeError, match="weights: expected 2 entries a layer, got 1 in all"):
        lstm(x, None, [LSTMWeights(torch.zeros(16, 3), torch.zeros(16, 4))], bidirectional=True)
    with pytest.raises(RuntimeError, match="weights: expected 1 entries a layer, got 0 in all"):
        lstm(x, None, [])


def test_explain_without_an_lstm():
    with pytest.raises(ValueError, match=r"module: expected .*fastlstm.* got .*Linear"):
        fastlstm.explain(nn.Linear(3, 4))


@pytest.mark.parametrize("call", ["LSTM", "LSTMCell", "lstm_sequence"])
@pytest.mark.parametrize("layout", ["strided", "jagged", "sparse"])
def test_input_that_is_not_dense(call, layout):
    """Nested and sparse tensors have neither an address nor strides."""
    if layout == "sparse":
        x = torch.randn(5, 2, 3).to_sparse()
    else:
        rows = [torch.randn(2, 3), torch.randn(5, 3)]
        x = torch.nested.nested_tensor(rows, layout=getattr(torch, layout))
    with pytest.raises((RuntimeError, ValueError), match="input: expected a dense tensor, got a"):
        if call == "lstm_sequence":
            fastlstm.lstm_sequence(x, [torch.randn(16, 4)], weight_ih=[torch.randn(16, 3)])
        else:
            getattr(fastlstm, call)(3, 4)(x)


@pytest.mark.parametrize("batch_first", [False, True])
def test_losses_of_an_empty_batch(batch_first):
    """The mean of an empty batch raises an error and does not return NaN."""
    video = fastlstm.CompositeLSTM(6, 4, batch_first=batch_first)
    size = (0, 3, 6) if batch_first else (3, 0, 6)
    with pytest.raises(ValueError, match="frames: expected at least one, got size"):
        video.loss(torch.rand(size), torch.rand(size))
    classifier = fastlstm.LSTMClassifier(6, 4, num_classes=3, batch_first=batch_first)
    with pytest.raises(ValueError, match="frames: expected a batch of at least 1"):
        classifier.loss(torch.rand(size), torch.zeros(0, dtype=torch.int64))
