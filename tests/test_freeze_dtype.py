"""``LSTM.freeze(dtype=...)``: inference computes with rounded weights, everything else does not."""

import copy
import pickle
import threading

import pytest
import torch
from direct_calls import assert_same, is_direct
from torch.nn.utils.rnn import pack_sequence

import fastlstm
from fastlstm.backends.cpu.stored import MOST_ROWS, rounded

DTYPES = ("bfloat16", "int8")
# The kernels of steps multiply x and h as 16-bit integers with int8 weights.
TOLERANCE = {"bfloat16": 3e-6, "int8": 2e-4}


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads on a busy machine make these short calls a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(seed=0, **options):
    torch.manual_seed(seed)
    return fastlstm.LSTM(21, 35, **options).eval()


def with_rounded_weights(module, dtype):
    """A plain module with the weights that a frozen one computes with."""
    module = copy.deepcopy(module).unfreeze()
    with torch.no_grad():
        for weights in module.weights():
            for weight, value in zip(weights, rounded(weights, dtype), strict=True):
                if weight is not None:
                    weight.copy_(value)
    return module


def assert_close(found, expected, dtype):
    for one, other in zip(found, expected, strict=True):
        if isinstance(one, tuple):
            assert_close(one, other, dtype)
        elif one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B", [1, 2, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2, "bidirectional": True, "peephole": True},
        {"num_layers": 2, "bidirectional": True, "proj_size": 9, "batch_first": True},
        {"bias": False, "learn_initial_state": True},
    ],
)
def test_inference_is_that_of_rounded_weights(options, B, dtype):
    module = make(**options)
    expected = with_rounded_weights(module, dtype)
    assert module.freeze(dtype) is module
    x = torch.randn((B, 30, 21) if module.batch_first else (30, B, 21))
    with torch.no_grad():
        for input in (x, x[:1], x.flip(0, 1, 2)[..., ::1]):
            assert_close(module(input), expected(input), dtype)
        _, state = expected(x)
        assert_close(module(x, state), expected(x, state), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", ["auto", "cpu", "torch", "reference"])
def test_every_kind_of_call(backend, dtype):
    module = make(bidirectional=True, backend=backend)
    expected = with_rounded_weights(module, dtype)
    module.freeze(dtype)
    x, lengths = torch.randn(9, 2, 21), torch.tensor([4, 9])
    with torch.no_grad():
        assert_close(module(x), expected(x), dtype)
        assert_close(module(x[:, 0]), expected(x[:, 0]), dtype)
        assert_close(module(x, lengths=lengths), expected(x, lengths=lengths), dtype)
        packed = pack_sequence([x[:, 0], x[:3, 1]])
        assert_close(module(packed)[0][:1], expected(packed)[0][:1], dtype)
        if backend != "torch":
            reset = torch.rand(9, 2) < 0.3
            assert_close(module(x, reset=reset), expected(x, reset=reset), dtype)
            found = module(x, return_all_cells=True, return_sequence=False)
            assert_close(found, expected(x, return_all_cells=True, return_sequence=False), dtype)
        if backend == "auto":
            batch = torch.randn(3, 9, 2, 21)
            assert_close(
                torch.func.vmap(lambda x: module(x)[0])(batch),
                [expected(x)[0] for x in batch],
                dtype,
            )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("I", [21, 48])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 3, "bidirectional": True, "proj_size": 9},
        {"num_layers": 2, "batch_first": True, "peephole": True, "dropout": 0.5},
    ],
)
def test_direct_calls_have_the_bits_of_the_general_path(options, I, dtype):
    module = fastlstm.LSTM(I, 35, **options).eval().freeze(dtype)
    batch_first, projects = module.batch_first, module.proj_size > 0
    groups = module.num_layers * (1 + module.bidirectional)
    # Blocks have up to 24 rows.
    sizes = [(T, B) for B in range(1, MOST_ROWS + 1) for T in (1, 5, 6, 7, 24, 25, 49)]
    inputs = [torch.randn((B, T, I) if batch_first else (T, B, I)) for T, B in sizes]
    inputs += [torch.randn(7, I), torch.randn(I, 3, 7).transpose(0, 2), inputs[8].flip(0)]
    with torch.no_grad():
        for x in inputs:
            rows = [x.shape[not batch_first]] if x.dim() == 3 else []
            state = tuple(torch.randn(groups, *rows, 35) for _ in "hc")
            module(x)  # rounds the weights
            assert is_direct(module, x) is (not projects and rows <= [MOST_ROWS])
            assert_same(module, x)
            if not projects:
                assert_same(module, x, state)


def test_calls_that_take_the_general_path():
    module = make(num_layers=2, dropout=0.9).freeze("bfloat16")
    x = torch.randn(9, 2, 21)
    with torch.no_grad():
        assert not is_direct(module, x)  # nothing is rounded yet
        module(x)
        assert is_direct(module, x)
        assert not is_direct(module, x, lengths=torch.tensor([9, 4]))
        assert not is_direct(module, x, reset=torch.zeros(9, 2, dtype=torch.bool))
        assert not is_direct(module, x.repeat(1, 3, 1))
        assert not is_direct(module, torch._neg_view(x))
        assert not is_direct(copy.deepcopy(module).train(), x)
        with torch.autocast("cpu"):
            assert not is_direct(module, x)
            assert_close(module(x), with_rounded_weights(module, "bfloat16")(x), "bfloat16")
        for parameter in module.parameters():
            for change in (torch.neg_, lambda w: w.view(-1)[-1:].neg_()):
                change(parameter.data)
                assert not is_direct(module, x)
                expected = with_rounded_weights(module, "bfloat16")(x)
                assert_close(module(x), expected, "bfloat16")
                assert is_direct(module, x)
        module._packed._kept.streams.pop()
        assert not is_direct(module, x)
        module.freeze("int8")(x)
        module._packed._kept.streams[1] = module.stream(4)
        assert not is_direct(module, x)
        module.freeze("int8")(x)
        module.weight_ih_l1 = torch.nn.Parameter(torch.zeros(140, 34))
        assert not is_direct(module, x)
    module = make().freeze("bfloat16")
    module(x.requires_grad_())
    with torch.no_grad():
        module(x)
    assert is_direct(module, x)  # it records gradients, with the weights as they are


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_uses_the_weights_as_they_are(dtype):
    module, x = make(), torch.randn(9, 2, 21)
    y = module(x)[0]
    y.sum().backward()
    frozen = copy.deepcopy(module).freeze(dtype)
    frozen.zero_grad()
    assert torch.equal(frozen(x)[0], y)
    frozen(x)[0].sum().backward()
    for one, other in zip(module.parameters(), frozen.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert list(frozen.state_dict()) == list(module.state_dict())
    with torch.no_grad():
        assert not torch.equal(frozen(x)[0], y)
        assert torch.equal(frozen.unfreeze()(x)[0], module(x)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ch_l0", "weight_hr_l0"],
)
@pytest.mark.parametrize("B", [1, 6])
def test_every_write_is_seen(B, name, dtype):
    module, x = make(peephole=True, proj_size=9).freeze(dtype), torch.randn(9, B, 21)
    with torch.no_grad():
        before = module(x)[0]
        getattr(module, name).data.numpy()[..., -1] += 0.5
        assert_close(module(x), with_rounded_weights(module, dtype)(x), dtype)
        assert not torch.equal(module(x)[0], before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled(dtype):
    module, x = make(bidirectional=True).freeze(dtype), torch.randn(9, 2, 21)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert_close(compiled(x), with_rounded_weights(module, dtype)(x), dtype)
    torch.testing.assert_close(compiled(x)[0], copy.deepcopy(module).unfreeze()(x)[0])


def test_other_weights_and_dtypes():
    module, x = make().freeze("int8"), torch.randn(9, 2, 21)
    with torch.no_grad():
        module(x)
        module.load_state_dict(make(1).state_dict(), assign=True)
        assert_close(module(x), with_rounded_weights(module, "int8")(x), "int8")
        module.double()
        assert_close(module(x.double()), with_rounded_weights(module, "int8")(x.double()), "int8")


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_and_pickles(dtype):
    module, x = make().freeze(dtype), torch.randn(9, 2, 21)
    with torch.no_grad():
        y = module(x)[0]
        for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert torch.equal(other(x)[0], y)


def test_threads():
    """Calls at the same time have the results of the same weights."""
    module, x = make().freeze("bfloat16"), torch.randn(300, 2, 21)
    with torch.no_grad():
        expected = module(x)[0]
    found = []

    def call():
        with torch.no_grad():
            found.extend(module(x)[0] for _ in range(5))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20
    assert all(torch.allclose(y, expected, atol=1e-5) for y in found)


def test_an_unknown_dtype_is_refused():
    with pytest.raises(ValueError, match="dtype: expected bfloat16, int8 or None, got 'int4'"):
        make().freeze("int4")
