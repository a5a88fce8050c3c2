"""Weights, sizes or a PackedSequence that were changed by hand raise an error.

nn.LSTM reads out of bounds for most of these and returns whatever is in memory, so there is no
result to compare with. Where nn.LSTM raises, the type of the error is the same.
"""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import fastlstm

x, h = torch.randn(5, 2, 3), torch.zeros(1, 2, 4)
packed = pack_sequence([torch.randn(5, 3), torch.randn(3, 3)])

# name: (the weight's new value, what the message says)
WEIGHTS = {
    "hidden size": ("weight_hh_l0", torch.zeros(16, 5), r"weight_hh_l0: .*\(16, 4\).*\(16, 5\)"),
    "vector": ("weight_hh_l0", torch.zeros(16), r"weight_hh_l0: .*\(16, 4\).*\(16,\)"),
    "input size": ("weight_ih_l0", torch.zeros(16, 2), r"weight_ih_l0: .*\(16, 3\).*\(16, 2\)"),
    "gates": ("weight_ih_l0", torch.zeros(12, 3), r"weight_ih_l0: .*\(16, 3\).*\(12, 3\)"),
    "second layer": (
        "weight_ih_l1",
        torch.zeros(16, 3),
        r"\[1\]\.weight_ih: .*\(16, 4\).*\(16, 3\)",
    ),
    "short bias": ("bias_ih_l0", torch.zeros(15), r"bias_ih: expected size \(16,\), got \(15,\)"),
    "dtype": ("weight_hh_l0", torch.zeros(16, 4).double(), "weight_hh: .*float32.*float64"),
    "device": ("weight_hh_l0", torch.zeros(16, 4, device="meta"), "weight_hh: .*cpu.*meta"),
    "second bias": ("bias_hh_l1", torch.zeros(15), r"\[1\]\.bias_hh: .*\(16,\), got \(15,\)"),
}

BACKENDS = ["auto", "cpu", "torch", "reference"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", WEIGHTS)
def test_assigned_weights(change, backend):
    name, value, match = WEIGHTS[change]
    module = fastlstm.LSTM(3, 4, 2, backend=backend)
    setattr(module, name, nn.Parameter(value))
    with pytest.raises(RuntimeError, match=match):
        module(x)


@pytest.mark.parametrize(
    "name, size",
    [("weight_hh", (16, 5)), ("weight_ih", (12, 3)), ("weight_ih", (16,)), ("bias_hh", (15,))],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_assigned_weights_of_a_cell(backend, name, size):
    cell = fastlstm.LSTMCell(3, 4, backend=backend)
    setattr(cell, name, nn.Parameter(torch.zeros(size)))
    with pytest.raises(RuntimeError, match=f"{name}: expected size"):
        cell(x[0])


def test_peepholes_and_projections():
    module = fastlstm.LSTM(3, 4, peephole=True)
    module.weight_ch_l0 = nn.Parameter(torch.zeros(11))
    with pytest.raises(RuntimeError, match=r"weight_ch: expected size \(12,\), got \(11,\)"):
        module(x)
    module = fastlstm.LSTM(3, 4, proj_size=2)
    module.weight_hr_l0 = nn.Parameter(torch.zeros(3, 4))
    with pytest.raises(RuntimeError, match=r"weight_hr: expected size \(2, 4\), got \(3, 4\)"):
        module(x)


def test_deleted_weight():
    for module, name in [
        (fastlstm.LSTM(3, 4), "weight_hh_l0"),
        (fastlstm.LSTMCell(3, 4), "weight_hh"),
    ]:
        setattr(module, name, None)
        with pytest.raises(TypeError, match=f"{name}: expected a Tensor, got NoneType"):
            module(x if name.endswith("l0") else x[0])


EVERY_KIND = {"num_layers": 2, "bidirectional": True, "proj_size": 2, "peephole": True}


@pytest.mark.parametrize(
    "name", [n for n, _ in fastlstm.LSTM(3, 4, **EVERY_KIND).named_parameters()]
)
def test_any_deleted_weight(name):
    """Any parameter of any layer; without a bias or a peephole the kernels would still run."""
    options = EVERY_KIND | {"proj_size": 2 * ("weight_hr" in name), "peephole": "_ch_" in name}
    module = fastlstm.LSTM(3, 4, **options)
    setattr(module, name, None)
    with pytest.raises(TypeError, match=f"{name}: expected a Tensor, got NoneType"):
        module(x)
    if "_ch_" not in name:
        del options["peephole"]
        torchs = nn.LSTM(3, 4, **options)
        setattr(torchs, name, None)
        with pytest.raises((TypeError, AttributeError)):
            torchs(x)


def test_a_deleted_peephole_of_a_cell():
    cell = fastlstm.LSTMCell(3, 4, peephole=True)
    cell.weight_ch = None
    with pytest.raises(TypeError, match="weight_ch: expected a Tensor, got NoneType"):
        cell(x[0])


def test_a_deleted_bias_of_a_cell_is_no_bias():
    """nn.LSTMCell does the same."""
    torchs, cell = nn.LSTMCell(3, 4), fastlstm.LSTMCell(3, 4, backend="cpu")
    cell.load_state_dict(torchs.state_dict())
    for module in (torchs, cell):
        module.bias_ih = None
    torch.testing.assert_close(cell(x[0]), torchs(x[0]))


@pytest.mark.parametrize("hx", [None, (h, h)], ids=["zeros", "hx"])
@pytest.mark.parametrize(
    "name, value, match",
    [
        ("hidden_size", 5, r"weight_ih_l0: .*hidden_size=5, got \(16, 3\)"),
        ("hidden_size", 3, r"weight_ih_l0: .*hidden_size=3, got \(16, 3\)"),
        ("input_size", 5, r"weight_ih_l0: .*input_size=5"),
        ("num_layers", 2, "1 layers and directions of 4 weights each, got 2, False, True, 0"),
        ("bidirectional", True, "1 layers and directions of 4 weights each, got 1, True, True, 0"),
        ("bias", False, "1 layers and directions of 4 weights each, got 1, False, False, 0"),
        ("proj_size", 2, "1 layers and directions of 4 weights each, got 1, False, True, 2"),
    ],
)
def test_changed_sizes(name, value, match, hx):
    module = fastlstm.LSTM(3, 4)
    setattr(module, name, value)
    with pytest.raises(RuntimeError, match=match):
        module(x, hx)


@pytest.mark.parametrize("name", ["hidden_size", "input_size"])
def test_changed_sizes_of_a_cell(name):
    cell = fastlstm.LSTMCell(3, 4)
    setattr(cell, name, 5)
    with pytest.raises(RuntimeError, match=f"weight_ih: .*{name}=5"):
        cell(x[0])


def test_frozen_weights_do_not_hide_a_changed_size():
    module = fastlstm.LSTM(3, 4, backend="cpu").freeze()
    module.hidden_size = 5
    with torch.no_grad(), pytest.raises(RuntimeError, match="hidden_size=5"):
        module(x)


def _integers(*values, **options):
    return torch.tensor(values, dtype=torch.int64, **options)


PACKED = {
    "short": ({"batch_sizes": _integers(2, 2)}, "sum of 8, the rows of data, got 4"),
    "long": ({"batch_sizes": _integers(2, 2, 2, 2, 2)}, "sum of 8, the rows of data, got 10"),
    "data cut": ({"data": packed.data[:4]}, "sum of 4, the rows of data, got 8"),
    "growing": ({"batch_sizes": _integers(1, 2, 2, 2, 1)}, "none above the one before"),
    "zero": ({"batch_sizes": _integers(2, 2, 2, 2, 0)}, "positive numbers"),
    "negative": ({"batch_sizes": _integers(3, 3, 3, -1)}, "positive numbers"),
    "empty": ({"batch_sizes": _integers()}, "sequence length to be larger than 0"),
    "int32": ({"batch_sizes": packed.batch_sizes.int()}, r"torch\.int64, got 1 of torch\.int32"),
    "float": ({"batch_sizes": packed.batch_sizes.float()}, r"got 1 of torch\.float32"),
    "scalar": ({"batch_sizes": torch.tensor(8)}, "got 0 of"),
    "device": ({"batch_sizes": packed.batch_sizes.to("meta")}, "expected device cpu, got meta"),
    "sorted": ({"sorted_indices": _integers(0, 1, 1)}, r"sorted_indices: .*\(2,\), got \(3,\)"),
    "unsorted": ({"unsorted_indices": _integers(0)}, r"unsorted_indices: .*\(2,\), got \(1,\)"),
    "indices": ({"sorted_indices": torch.tensor([0.0, 1.0])}, "expected integers .* torch.float32"),
    "where": ({"sorted_indices": _integers(0, 1, device="meta")}, "integers on cpu, .* on meta"),
    "padded": ({"data": x}, "input must have 2 dimensions, got 3"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("change", PACKED)
def test_packed_sequence(change, backend):
    parts, match = PACKED[change]
    module = fastlstm.LSTM(3, 4, bidirectional=True, backend=backend)
    module(packed)
    with pytest.raises(RuntimeError, match=match):
        module(packed._replace(**parts))


@pytest.mark.parametrize("cls", [nn.LSTM, fastlstm.LSTM])
def test_packed_sequence_that_torch_refuses_too(cls):
    # torch's index_select has two errors for this, by size.
    with pytest.raises((IndexError, RuntimeError), match=r"out of (range|DATA bounds)"):
        cls(3, 4)(packed._replace(unsorted_indices=_integers(0, 7)))
    with pytest.raises(TypeError):
        cls(3, 4)(packed._replace(batch_sizes=[2, 2, 2, 1, 1]))
    with pytest.raises(AttributeError):
        cls(3, 4)(packed._replace(data=[1.0]))


# name: (hx, what our message says). The type of the error is that of torch's class.
STATES = {
    "h alone": (h, "expected two states, hidden and cell, got 1"),
    "h alone, two layers": (
        torch.zeros(2, 2, 4),
        r"hx and cx should also be 3-D but got \(2-D, 2-D",
    ),
    "stacked": (torch.zeros(2, 1, 2, 4), "expected a tuple of two tensors, got Tensor"),
    "h missing": ((None, h), "hx: expected a Tensor, got NoneType"),
    "c missing": ((h, None), "hx: expected a Tensor, got NoneType"),
    "one": ((h,), "expected two states, hidden and cell, got 1"),
    "none": ((), "expected two states, hidden and cell, got 0"),
    "arrays": ((h.numpy(), h.numpy()), "hx: expected a Tensor, got ndarray"),
    "device": ((h.to("meta"), h), "meta"),
}


def _raises_as_torch(cls, arguments, match):
    with pytest.raises(Exception) as expected:
        getattr(nn, cls)(3, 4)(*arguments)
    with pytest.raises(expected.type, match=match) as found:
        getattr(fastlstm, cls)(3, 4)(*arguments)
    assert type(found.value) is expected.type


@pytest.mark.parametrize("name", STATES)
def test_states(name):
    hx, match = STATES[name]
    _raises_as_torch("LSTM", (x, hx), match)


@pytest.mark.parametrize(
    "hx, match",
    [
        (h[0], "expected a tuple of two tensors, got Tensor"),
        (torch.zeros(2, 2, 4), "expected a tuple of two tensors, got Tensor"),
        ((None, h[0]), "hx: expected a Tensor, got NoneType"),
        ((), "expected two states"),
        ((h[0].to("meta"), h[0].to("meta")), "expected device cpu, .*got meta"),
    ],
    ids=["h alone", "stacked", "h missing", "none", "device"],
)
def test_states_of_a_cell(hx, match):
    _raises_as_torch("LSTMCell", (x[0], hx), match)


@pytest.mark.parametrize(
    "value", [[1.0], x.numpy(), None, "x", (x,)], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("cls", ["LSTM", "LSTMCell"])
def test_input_that_is_no_tensor(cls, value):
    _raises_as_torch(cls, (value,), f"input: expected a Tensor, got {type(value).__name__}")


@pytest.mark.parametrize("cls", ["LSTM", "LSTMCell"])
def test_input_on_another_device(cls):
    with pytest.raises(RuntimeError, match="input tensor at meta and parameter tensor at cpu"):
        getattr(fastlstm, cls)(3, 4)(x.to("meta") if cls == "LSTM" else x[0].to("meta"))


def test_states_as_a_list():
    module, cell = fastlstm.LSTM(3, 4), fastlstm.LSTMCell(3, 4)
    assert torch.equal(module(x, [h, h])[0], module(x)[0])
    assert torch.equal(cell(x[0], [h[0], h[0]])[0], cell(x[0])[0])


def test_a_cell_tells_of_the_size_before_the_dtype():
    """If both are wrong, the error has nn.LSTMCell's text."""
    arguments = (x[0].double(), (h[0, :, :3].double(), h[0].double()))
    _raises_as_torch(
        "LSTMCell", arguments, "hidden0 has inconsistent hidden_size: got 3, expected 4"
    )
