"""``fastlstm.Stream``: steps against float64, chunks against steps, state, errors, threads."""

import copy
import os
import threading

import pairwise
import pytest
import torch

import fastlstm
from fastlstm.backends import cpu

ISAS = cpu.isas()
TYPES = ("float32", "bfloat16", "int8")
# Relative error of 50 steps with weights as nn.LSTM draws them. Measured, at most: bfloat16 0.0050,
# int8 0.0082 with H = 35, two layers and a projection; 0.0019 and 0.0044 with H from 64 to 1024.
LIMITS = {"bfloat16": 0.006, "int8": 0.01}
T = 50


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads on a busy machine make these short calls a hundred times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def make(I, H, seed=0, **options):
    torch.manual_seed(seed)
    return fastlstm.LSTM(I, H, **options).eval()


def exact(lstm, x):
    """The output in float64 of the module's float32 weights."""
    lstm = copy.deepcopy(lstm).double()
    lstm.backend = "reference"
    with torch.no_grad():
        return lstm(x.double())[0]


@pairwise.parametrize(
    {
        "num_layers": [1, 2],
        "peephole": [False, True],
        "proj_size": [0, 11],
        "bias": [True, False],
        "B": [1, 3, 8],
        "dtype": TYPES,
    }
)
def test_steps(num_layers, peephole, proj_size, bias, B, dtype):
    """A step at a time is as exact as torch in float32, and within the bounds in other types."""
    options = {"num_layers": num_layers, "proj_size": proj_size, "bias": bias}
    lstm = make(21, 35, peephole=peephole, learn_initial_state=peephole, **options)
    if peephole:
        torch.nn.init.uniform_(lstm.h_0), torch.nn.init.uniform_(lstm.c_0)
    x = torch.randn(T, B, 21)
    expected = exact(lstm, x)
    limit = LIMITS.get(dtype)
    if limit is None:
        plain = torch.nn.LSTM(21, 35, **options)
        plain.load_state_dict(lstm.state_dict(), strict=False)
        with torch.no_grad():
            limit = 2 * relative_error(plain(x)[0], exact(fastlstm.LSTM.from_torch(plain), x))
    for isa in ISAS:
        stream = fastlstm.Stream(lstm, B, dtype, isa)
        found = torch.stack([stream.step(xt).clone() for xt in x])
        assert relative_error(found, expected) <= limit, isa


@pairwise.parametrize(
    {
        "I, H, B": [(1, 1, 1), (5, 3, 2), (300, 64, 1), (64, 257, 4), (33, 17, 30)],
        "dtype": TYPES,
        "isa": ISAS,
    }
)
def test_sizes(I, H, B, dtype, isa):
    lstm = make(I, H)
    x = torch.randn(12, B, I)
    found = fastlstm.Stream(lstm, B, dtype, isa).run(x)
    limit = {"float32": 2e-6, "bfloat16": 0.01, "int8": 0.02}[dtype]  # of 12 steps, small H
    assert relative_error(found, exact(lstm, x)) <= limit


@pairwise.parametrize(
    {
        "I": [20, 32],  # 32: x is read in place
        "B": [1, 2, 7, 30],
        "options": [{}, {"num_layers": 3, "proj_size": 9, "peephole": True}],
        "dtype": TYPES,
        "isa": ISAS,
    }
)
def test_chunks_have_the_bits_of_steps(I, B, options, dtype, isa):
    lstm = make(I, 70, **options)
    x = torch.randn(40, B, I)
    stream = fastlstm.Stream(lstm, B, dtype, isa)
    steps = torch.stack([stream.step(xt).clone() for xt in x])
    state = stream.state
    for sizes in ([40], [1, 39], [13, 27], [0, 5, 25, 10]):
        stream.reset()
        chunks = torch.cat([stream.run(chunk) for chunk in x.split(sizes)])
        assert torch.equal(chunks, steps), sizes
        assert all(map(torch.equal, stream.state, state))


@pytest.mark.parametrize("dtype", TYPES)
def test_two_threads_give_the_bits_of_one(dtype):
    lstm, x = make(200, 300, num_layers=2), torch.randn(9, 3, 200)  # enough weights for int8 too
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        stream = lstm.stream(3, dtype)
        assert stream._num_threads() == threads
        found.append(torch.stack([stream.step(xt).clone() for xt in x]))
    assert torch.equal(*found)


@pytest.mark.parametrize("I", [6, 16])
def test_strides_do_not_change_the_result(I):
    lstm = make(I, 8)
    x = torch.randn(5, 3, I)
    expected = lstm.stream(3).run(x)
    for strided in (
        x.transpose(0, 1).contiguous().transpose(0, 1),
        torch.stack([x, x], -1)[..., 0],
        x.flip(0, 1, 2).flip(0, 1, 2),
        torch.cat([x, x], -1)[..., I:],
        torch.cat([x[..., :1], x], -1)[..., 1:],  # rows that are not aligned
    ):
        assert torch.equal(lstm.stream(3).run(strided), expected)
        stream = lstm.stream(3)
        assert torch.equal(torch.stack([stream.step(xt).clone() for xt in strided]), expected)
    same = lstm.stream(3).run(x[:1].expand(4, 3, I))
    assert torch.equal(same, lstm.stream(3).run(x[:1].repeat(4, 1, 1)))


def test_step_returns_one_tensor_that_is_overwritten():
    stream = make(4, 6).stream(2)
    first = stream.step(torch.randn(2, 4))
    kept = first.clone()
    second = stream.step(torch.randn(2, 4))
    assert second is first and not torch.equal(kept, second)
    assert not first.requires_grad and not stream.run(torch.randn(1, 2, 4)).requires_grad
    with pytest.raises(RuntimeError):
        first.resize_(100, 100)  # its memory is the stream's
    stream.step(torch.randn(2, 4))


def test_output_outlives_the_stream():
    stream = make(4, 6).stream(2)
    y = stream.step(torch.randn(2, 4))
    kept = y.clone()
    del stream
    assert torch.equal(y, kept)


@pytest.mark.parametrize("proj_size", [0, 5])
def test_state(proj_size):
    lstm = make(4, 6, num_layers=2, proj_size=proj_size)
    x = torch.randn(8, 3, 4)
    with torch.no_grad():
        _, (h, c) = lstm(x[:5])
    stream = lstm.stream(3)
    stream.run(x[:5])
    for found, expected in zip(stream.state, (h, c), strict=True):
        torch.testing.assert_close(found, expected)
    saved = stream.state
    rest = stream.run(x[5:])
    other = lstm.stream(3)
    other.state = saved
    assert torch.equal(other.run(x[5:]), rest)
    other.state = (saved[0].transpose(0, 1).contiguous().transpose(0, 1), saved[1])
    assert torch.equal(other.run(x[5:]), rest)


def test_reset():
    lstm = make(4, 6, learn_initial_state=True)
    torch.nn.init.uniform_(lstm.h_0), torch.nn.init.uniform_(lstm.c_0)
    x = torch.randn(5, 4, 4)
    for rows in ([1, 3], torch.tensor([False, True, False, True]), (1, 3, 3)):
        stream = lstm.stream(4)
        whole = stream.run(x)
        stream.reset(rows)
        again = stream.run(x)
        assert torch.equal(again[:, [1, 3]], whole[:, [1, 3]])
        assert not torch.equal(again[:, 0], whole[:, 0])
        stream.reset([])
        assert not torch.equal(stream.run(x), whole)
        stream.reset()
        assert torch.equal(stream.run(x), whole)


def test_refresh_packs_the_weights_of_now_and_keeps_the_state():
    lstm, x = make(4, 6), torch.randn(3, 2, 4)
    stream = lstm.stream(2)
    before = stream.run(x)
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)
    stream.reset()
    assert torch.equal(stream.run(x), before)
    state = stream.state
    stream.refresh()
    with torch.no_grad():
        torch.testing.assert_close(stream.run(x), lstm(x, state)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_of_half_precision(dtype):
    lstm, x = make(4, 6).to(dtype), torch.randn(3, 2, 4)
    assert torch.equal(lstm.stream(2).run(x), copy.deepcopy(lstm).float().stream(2).run(x))


def test_dropout_is_off():
    lstm, x = make(4, 6, num_layers=2, dropout=0.5).train(), torch.randn(3, 2, 4)
    found = lstm.stream(2).run(x)
    torch.testing.assert_close(found, lstm.eval()(x)[0].detach())


@pairwise.parametrize(
    {"value": [float("nan"), float("inf"), 1e30, 1e-40], "dtype": TYPES, "isa": ISAS}
)
def test_extreme_inputs(value, dtype, isa):
    """NaN goes through; large and small numbers are computed; other rows are as before."""
    lstm = make(5, 20)
    x = torch.randn(3, 2, 5)
    expected = fastlstm.Stream(lstm, 2, dtype, isa).run(x)
    x[1, 0, 0] = value
    found = fastlstm.Stream(lstm, 2, dtype, isa).run(x)
    assert torch.equal(found[:, 1], expected[:, 1])
    if value != value:
        assert found[1:, 0].isnan().all()
    elif value > 1e38:  # int8 may return NaN
        assert dtype == "int8" or found.isfinite().all()
    elif dtype == "int8" and value > 1:  # the sign of a gate may be that of a rounded weight
        assert found.isfinite().all()
    else:
        assert relative_error(found, exact(lstm, x)) <= LIMITS.get(dtype, 1e-6)


def test_two_threads_at_once():
    """One of two calls at the same time raises; the other is done."""
    stream = make(400, 400).stream(1)
    x, outcomes = torch.randn(50, 1, 400), []

    def steps():
        for _ in range(20):
            try:
                outcomes.append(stream.run(x).shape)
            except RuntimeError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=steps) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {(50, 1, 400), "the stream is in use by another thread"}
    assert (50, 1, 400) in outcomes and len(outcomes) == 40


@pytest.mark.filterwarnings("ignore")
def test_fork():
    """A stream goes on in a forked process, on threads of its own."""
    lstm = make(300, 300)
    x = torch.randn(6, 1, 300)
    torch.set_num_threads(2)
    stream = lstm.stream(1)
    stream.run(x[:3])
    state = stream.state
    expected = stream.run(x[3:])
    stream.state = state
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if torch.equal(stream.run(x[3:]), expected) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert torch.equal(stream.run(x[3:]), expected)
