"""What raises an error in an eager call raises it in a recorded program too, when it runs."""

import io

import pytest
import torch
from helpers import skip_unless_supported
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

import fastlstm
from fastlstm import lstm_sequence
from fastlstm.problem import Problem

T, B, I, H = 5, 3, 4, 6
GOOD = torch.tensor([2, 5, 1])
BAD = {"zero": [0, 5, 1], "beyond": [2, 6, 1], "negative": [2, -1, 3]}


class Layers(nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.lstm = fastlstm.LSTM(I, H, 2, backend=backend).requires_grad_(False)

    def forward(self, x, lengths):
        return self.lstm(x, lengths=lengths)[0]


class Sequence(nn.Module):
    """The same check through ``lstm_sequence``."""

    def __init__(self, backend):
        super().__init__()
        self.weight_hh, self.backend = torch.randn(4 * H, H), backend

    def forward(self, x, lengths):
        igates = x.repeat(1, 1, H).unsqueeze(2)
        return lstm_sequence(igates, [self.weight_hh], lengths=lengths, backend=self.backend)[0]


def compiled(model, x, lengths):
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def exported(model, x, lengths):
    return torch.export.export(model, (x, lengths)).module()


def saved(model, x, lengths):
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, (x, lengths)), file)
    file.seek(0)
    return torch.export.load(file).module()


def traced(model, x, lengths):
    return torch.jit.trace(model, (x, lengths), check_trace=False)


def fx(model, x, lengths):
    return make_fx(model)(x, lengths)


class Listening(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def listened_to(model, x, lengths):
    def run(*arguments):
        with Listening():
            return model(*arguments)

    return run


def transformed(model, x, lengths):
    """Each call of a vmapped batch has its own lengths."""

    def run(x, lengths):
        each = torch.stack([lengths, torch.ones_like(lengths)])
        return torch.func.vmap(lambda *call: model(*call), (None, 0))(x, each)[0]

    return run


def vmapped_and_compiled(model, x, lengths):
    return torch.compile(transformed(model, x, lengths), fullgraph=True, backend="aot_eager")


def under_autocast(model, x, lengths):
    def run(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return model(*arguments)

    return run


EAGER = [listened_to, transformed, under_autocast]
RECORDED = [compiled, exported, saved, traced, fx, vmapped_and_compiled]


@pytest.mark.parametrize("record", [*EAGER, *RECORDED], ids=lambda function: function.__name__)
@pytest.mark.parametrize("kind", [Layers, Sequence])
def test_lengths(backend, kind, record):
    problem = Problem(
        "cpu", torch.float32, T, B, 1, H, has_lengths=True, whole_layers=kind is Layers
    )
    skip_unless_supported(backend, problem)
    if backend == "torch" and record is not traced and record not in EAGER:
        pytest.skip("torch's own LSTM packs the rows, which needs their lengths at once")
    if backend == "torch" and record is transformed:
        pytest.skip("torch's own LSTM has no rule for vmap")
    torch._dynamo.reset()
    model = kind(backend)
    x = torch.randn(T, B, I)
    program = record(model, x, GOOD)
    expected = model(x, GOOD)
    found = program(x, GOOD).float()
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
    for lengths in BAD.values():
        with pytest.raises(RuntimeError, match=r"lengths: expected integers in 1\.\.5, got"):
            model(x, torch.tensor(lengths))
        with pytest.raises(RuntimeError, match=r"lengths: expected integers in 1\.\.5, got"):
            program(x, torch.tensor(lengths))


@pytest.mark.parametrize("record", [listened_to, traced])
def test_batch_sizes(backend, record):
    """Their sum is the number of rows of the data, and no size is above the one before it."""
    problem = Problem("cpu", torch.float32, 3, B, 1, H, I, is_packed_sequence=True)
    if backend == "torch":
        pytest.skip("torch's own LSTM takes whole layers")
    skip_unless_supported(backend, problem)
    weights = {"weight_hh": [torch.randn(4 * H, H)], "weight_ih": [torch.randn(4 * H, I)]}

    class Packed(nn.Module):
        def forward(self, x, batch_sizes):
            options = {"batch_sizes": batch_sizes, "hx": torch.zeros(1, 3, H)}
            options |= {"cx": torch.zeros(1, 3, H)} | weights
            return lstm_sequence(x, backend=backend, **options)[0]

    x, good = torch.randn(6, I), torch.tensor([3, 2, 1])
    program = record(Packed(), x, good)
    torch.testing.assert_close(program(x, good), Packed()(x, good))
    for bad in ([3, 2, 2], [2, 3, 1], [3, 3, 0]):
        for run in (Packed(), program):
            with pytest.raises(RuntimeError, match="batch_sizes: expected"):
                run(x, torch.tensor(bad))


@pytest.mark.parametrize("record", [compiled, exported, traced])
def test_lengths_are_compared_with_the_steps_of_each_call(record):
    """They are not compared with the steps of the example."""
    torch._dynamo.reset()
    model, dims = Layers("cpu"), ({0: torch.export.Dim.DYNAMIC}, None)
    if record is exported:
        example = torch.randn(T, B, I), GOOD
        program = torch.export.export(model, example, dynamic_shapes=dims).module()
    else:
        program = record(model, torch.randn(T, B, I), GOOD)
    for steps in (T, 2 * T, 3):
        x, lengths = torch.randn(steps, B, I), torch.tensor([steps, 1, 2])
        torch.testing.assert_close(program(x, lengths), model(x, lengths))
        with pytest.raises(RuntimeError, match=rf"lengths: expected integers in 1\.\.{steps}, got"):
            program(x, lengths + 1)


def test_a_packed_sequence_in_a_trace():
    lstm = fastlstm.LSTM(I, H).requires_grad_(False)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = lstm

        def forward(self, data, batch_sizes):
            return self.lstm(PackedSequence(data, batch_sizes))[0].data

    data, good = torch.randn(6, I), torch.tensor([3, 2, 1])
    program = torch.jit.trace(Model(), (data, good), check_trace=False)
    torch.testing.assert_close(program(data, good), Model()(data, good))
    with pytest.raises(RuntimeError, match="batch_sizes: expected"):
        program(data, torch.tensor([3, 2, 2]))


@pytest.mark.parametrize("name", ["checked_lengths", "checked_batch_sizes"])
def test_opcheck(name):
    tensor, limit = (GOOD, T) if name == "checked_lengths" else (torch.tensor([3, 2, 1]), 6)
    torch.library.opcheck(getattr(torch.ops.fastlstm, name).default, (tensor, torch.tensor(limit)))


def test_fake_lengths():
    with FakeTensorMode():
        lstm = fastlstm.LSTM(I, H)
        assert lstm(torch.randn(T, B, I), lengths=torch.ones(B, dtype=torch.int64))[0].shape[0] == T


def test_lists_and_arrays(backend):
    """Lengths may be what ``pack_padded_sequence`` takes, and resets likewise."""
    problem = Problem("cpu", torch.float32, T, B, 1, H, I, has_lengths=True, whole_layers=True)
    skip_unless_supported(backend, problem)
    lstm, x = fastlstm.LSTM(I, H, backend=backend), torch.randn(T, B, I)
    expected = lstm(x, lengths=GOOD)[0]
    for lengths in (GOOD.tolist(), tuple(GOOD.tolist()), GOOD.cpu().numpy(), GOOD.to(torch.uint16)):
        assert torch.equal(lstm(x, lengths=lengths)[0], expected)
    reset = torch.rand(T, B) < 0.3
    if backend in ("torch", "triton"):
        return
    expected = lstm(x, reset=reset)[0]
    assert torch.equal(lstm(x, reset=reset.tolist())[0], expected)
    assert torch.equal(lstm(x, reset=reset.cpu().numpy())[0], expected)
    row = lstm(x[:, 0], reset=reset[:, 0].tolist())[0]
    torch.testing.assert_close(row, expected[:, 0])
    first = fastlstm.LSTM(I, H, batch_first=True, backend=backend)
    first.load_state_dict(lstm.state_dict())
    swapped = first(x.transpose(0, 1), reset=reset.t().tolist())[0].transpose(0, 1)
    torch.testing.assert_close(swapped, expected)


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"lengths": "5"}, TypeError, "lengths: expected a Tensor, a list or an array, got str"),
        ({"lengths": 5}, TypeError, "lengths: expected a Tensor, a list or an array, got int"),
        ({"lengths": [[1], [1, 2]]}, TypeError, "lengths: expected numbers that fit into a tensor"),
        ({"lengths": [5, None, 1]}, TypeError, "lengths: expected numbers that fit into a tensor"),
        ({"lengths": [5.0, 1.0, 1.0]}, RuntimeError, "lengths: expected integers, got torch.float"),
        ({"lengths": [5, 0, 1]}, RuntimeError, r"lengths: expected integers in 1\.\.5, got 0\.\.5"),
        ({"reset": [[0, 1, 0]] * T}, RuntimeError, "reset: expected torch.bool, got torch.int64"),
        ({"reset": [True] * T}, RuntimeError, r"reset: expected size \(5, 3\), got \(5,\)"),
        ({"reset": True}, TypeError, "reset: expected a Tensor, a list or an array, got bool"),
    ],
)
def test_invalid_lengths_and_resets(options, error, match):
    """The error names the argument, from a module and from the function."""
    lstm, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    with pytest.raises(error, match=match):
        lstm(x, **options)
    with pytest.raises(error, match=match):
        lstm_sequence(torch.randn(T, B, 1, 4 * H), [lstm.weight_hh_l0], **options)
