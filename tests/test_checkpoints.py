"""``checkpoint_every`` and ``return_sequence``: the same numbers from less memory."""

import pickle
import subprocess
import sys
from dataclasses import replace

import pairwise
import pytest
import torch
from helpers import DUPLICATES, Case, assert_close, run_case, skip_unless_supported
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import lstm_sequence

ALL = ("y", "hy", "cy", "cells")
CASES = {
    "igates": Case(T=30, B=5, H=17, uses=ALL),
    "peepholes, both directions": Case(T=30, B=5, H=33, I=9, reverse=(False, True)),
    "lengths": Case(T=30, B=5, H=20, I=3, reverse=(True, False), lengths=True, uses=ALL),
    "packed": Case(T=30, B=5, H=20, I=3, reverse=(False, True), packed=True, uses=ALL),
    "reset": Case(T=30, B=5, H=20, I=3, reverse=(False, True), reset=True, lengths=True),
    "projection": Case(T=30, B=5, H=20, I=3, reverse=(False, True), proj_size=7, uses=ALL),
    "two decoders": Case(T=30, B=5, H=20, I=3, reverse=(False, False), shared=False, reset=True),
    "one row": Case(T=70, B=1, H=40, I=10, peephole=False, biases=("bias_hh",)),
    "several_blocks": Case(T=300, B=3, H=20, I=33, lengths=True, uses=("y",)),
    "nothing packed": Case(T=3, B=2, H=20, I=3, uses=("hy", "cy")),
    "broadcast input": Case(T=40, B=4, H=20, broadcast=(0, 1)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """Each of the options above in turn."""
    return request.param


def _assert_same_bits(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_bits_for_every_k(case, dtype, threads):
    torch.set_num_threads(threads)
    inputs, cotangents = case.inputs(), case.cotangents()
    plain = run_case(case, inputs, cotangents, "cpu", dtype)
    for k in (1, 2, 7, case.T + 1, "auto"):
        ours = run_case(case, inputs, cotangents, "cpu", dtype, checkpoint_every=k)
        _assert_same_bits(ours, plain)


@pytest.mark.parametrize("k", [1, 7, 100])
def test_every_backend_equals_the_reference(backend, case, k):
    if backend == "torch":
        pytest.skip("torch: keeps every step")
    if backend == "triton":  # under the interpreter a step takes milliseconds
        case = replace(case, T=min(case.T, 8))
    skip_unless_supported(backend, case.problem(torch.float64))
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference")
    ours = run_case(case, inputs, cotangents, backend, checkpoint_every=k)
    assert_close(ours, truth, case.tolerance)


def test_float16_is_as_good():
    case = Case(T=30, B=5, H=17, I=4, peephole=True)
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference")
    ours = run_case(case, inputs, cotangents, "cpu", torch.float16, checkpoint_every=7)
    assert_close(ours, truth, 8 * torch.finfo(torch.float16).eps)


OPTIONS = [
    {"num_layers": 2, "bidirectional": True, "peephole": True},
    {"num_layers": 2, "dropout": 0.5, "batch_first": True},
    {"proj_size": 3, "learn_initial_state": True},
]
T, B, I, H = 23, 3, 4, 9


def _gradients(module, x, cotangent, **options):
    """The last states and all gradients; the loss includes y if y was returned."""
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    lengths = options.pop("packed", None)
    input = leaf
    if lengths is not None:
        input = pack_padded_sequence(leaf, lengths, module.batch_first, enforce_sorted=False)
    output, state, *cells = module(input, **options)
    loss = sum(s.sin().sum() for s in (*state, *cells))
    if output is not None:
        data = output if lengths is None else output.data
        loss = loss + data.flatten().dot(cotangent[: data.numel()])
    return [*state, *torch.autograd.grad(loss, [leaf, *module.parameters()])]


@pairwise.parametrize(
    {
        "options": OPTIONS,
        "call": [
            {},
            {"lengths": torch.tensor([5, T, 1])},
            {"packed": torch.tensor([5, T, 1])},
            {"return_all_cells": True},
        ],
        "returned": [True, False],
    }
)
def test_modules(options, call, returned):
    if "return_all_cells" in call and "batch_first" in options:
        call = call | {"reset": torch.rand(B, T) < 0.2}
    plain = fastlstm.LSTM(I, H, backend="cpu", **options)
    x = torch.randn(B, T, I) if plain.batch_first else torch.randn(T, B, I)
    cotangent = torch.randn(T * B * 2 * H)
    expected = _gradients(plain, x, cotangent, return_sequence=returned, **call)
    plain.checkpoint_every = 4
    for value, other in zip(
        _gradients(plain, x, cotangent, return_sequence=returned, **call), expected, strict=True
    ):
        assert torch.equal(value, other)


@pytest.mark.parametrize("backend", ["cpu", "torch", "reference"])
@pytest.mark.parametrize("train", [False, True])
def test_without_the_sequence(backend, train):
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, backend=backend).requires_grad_(train)
    for x in (torch.randn(T, B, I), torch.randn(T, I)):
        _, state = module(x)
        nothing, same = module(x, return_sequence=False)
        assert nothing is None
        for one, other in zip(same, state, strict=True):
            torch.testing.assert_close(one, other)
    igates, weights = torch.randn(T, B, 1, 4 * H), [torch.randn(4 * H, H)]
    y, hy, _ = lstm_sequence(igates, weights, return_sequence=False)
    assert y is None
    assert torch.equal(hy, lstm_sequence(igates, weights)[1])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_compiled_in_one_graph(compiled, backend):
    module = fastlstm.LSTM(I, H, peephole=True, checkpoint_every=3, backend=backend)
    x = torch.randn(5, B, I)
    expected = torch.autograd.grad(module(x)[0].sin().sum(), list(module.parameters()))
    function = compiled(lambda x: module(x)[0].sin().sum())
    found = torch.autograd.grad(function(x), list(module.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives_and_batches_of_gradients():
    def run(module, x):
        y, (h, c) = module(x)
        first = torch.autograd.grad((y.sin().sum() + h.sum()), x, create_graph=True)[0]
        second = torch.autograd.grad(first.square().sum(), x, retain_graph=True)[0]
        batch = torch.randn(2, *c.shape, generator=torch.Generator().manual_seed(2))
        return [second, *torch.autograd.grad(c, x, batch.double(), is_grads_batched=True)]

    module = fastlstm.LSTM(I, H, peephole=True, dtype=torch.float64)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    expected = run(module, x)
    module.checkpoint_every = 4
    torch.testing.assert_close(run(module, x), expected)


@pytest.mark.parametrize("returned", [False, True])
@pytest.mark.parametrize("over", ["input", "weights", "packed rows"])
def test_under_vmap(over, returned):
    N, weight = 3, torch.randn(3, 4 * H, H) / 3
    packed = over == "packed rows"
    x = torch.randn(N, *((14,) if packed else (T, B)), 1, 4 * H)
    layout = {"batch_sizes": torch.tensor([3, 3, 2, 2, 1, 1, 1, 1])} if packed else {}

    def loss(k, x, weight):
        y, h, c = lstm_sequence(x, [weight], checkpoint_every=k, return_sequence=returned, **layout)
        return h.sin().sum() + c.sum() + (y.square().sum() if returned else 0)

    def gradients(k):
        dims = (0, None) if over == "input" else (0, 0)
        derivative = torch.func.grad(lambda x, w: loss(k, x, w), argnums=(0, 1))
        return torch.func.vmap(derivative, dims)(x, weight[0] if over == "input" else weight)

    for one, other in zip(gradients(4), gradients(None), strict=True):
        if over == "input":
            # 9 rows forward, and 3 groups of 3 rows backward, where the steps run again: kernels
            # for AVX2 add up products in another order where there are few rows.
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(one, other)


@pytest.mark.parametrize("conditional", [False, True])
def test_video_models(conditional):
    options = {"num_layers": 2, "conditional_future": conditional, "readout_bias": -1.0}
    plain = fastlstm.CompositeLSTM(6, 8, **options)
    ours = fastlstm.CompositeLSTM(6, 8, checkpoint_every=3, **options)
    ours.load_state_dict(plain.state_dict())
    frames, future = torch.rand(10, 2, 6), torch.rand(7, 2, 6)
    for model in (plain, ours):
        model.loss(frames, future).total.backward()
    for one, other in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    assert ours.config["checkpoint_every"] == 3
    assert {
        module.checkpoint_every for module in ours.modules() if hasattr(module, "peephole")
    } == {3}


@pytest.mark.parametrize("copy", DUPLICATES)
@pytest.mark.parametrize("value", [5, "auto"])
def test_the_option_is_kept_and_shown(copy, value):
    module = copy(fastlstm.LSTM(3, 4, checkpoint_every=value))
    assert module.checkpoint_every == value
    assert f"checkpoint_every={value!r}" in repr(module)
    assert "checkpoint_every" not in repr(fastlstm.LSTM(3, 4))
    assert fastlstm.LSTM.from_torch(module.to_torch(), checkpoint_every=value).extra_repr() == (
        module.extra_repr()
    )


def test_modules_from_before_the_option():
    state = vars(fastlstm.LSTM(3, 4))
    del state["checkpoint_every"]
    old = fastlstm.LSTM.__new__(fastlstm.LSTM)
    old.__setstate__(state)
    assert pickle.loads(pickle.dumps(old)).checkpoint_every is None
    model = nn.Sequential(nn.LSTM(3, 4))
    fastlstm.replace(model)
    assert model[0](torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


@pytest.mark.parametrize(
    "value, error",
    [(0, ValueError), (-3, ValueError), ("all", ValueError), (2.5, TypeError), (True, TypeError)],
)
def test_errors(value, error):
    match = f'checkpoint_every: expected None, "auto" or an integer of at least 1, got .*{value!r}'
    match = match if error is ValueError else "checkpoint_every: expected .* got (float|bool)"
    with pytest.raises(error, match=match):
        fastlstm.LSTM(3, 4, checkpoint_every=value)
    with pytest.raises(error, match=match):
        fastlstm.CompositeLSTM(3, 4, checkpoint_every=value)
    with pytest.raises(error, match=match):
        lstm_sequence(torch.zeros(5, 2, 1, 16), [torch.zeros(16, 4)], checkpoint_every=value)


def test_torch_keeps_every_step():
    module = fastlstm.LSTM(3, 4, backend="torch", checkpoint_every=2)
    with pytest.raises(ValueError, match=r"backend='torch' cannot run .*keeps every step"):
        module(torch.zeros(5, 2, 3))
    with torch.no_grad():  # without gradients nothing is kept
        module(torch.zeros(5, 2, 3))
    module.backend = "auto"
    assert "no: keeps every step" in fastlstm.explain(module)


_PEAK = """
import re, torch, fastlstm
torch.set_num_threads(1)
T, B, H = 10_000, 4, 128
x = torch.randn(T, B, 8)
module = fastlstm.LSTM(8, H)
module(x[:300])[0].sum().backward()

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024

def grown(every, **options):
    module.checkpoint_every = every
    before = peak()
    y, (h, _) = module(x, **options)
    (h.sum() if y is None else y[-1].sum()).backward()
    return peak() - before

y = T * B * H * 4
print(grown("auto", return_sequence=False) / y, grown("auto") / y, grown(None) / y)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_peak_memory_of_a_long_sequence():
    """Peak memory, in units of the size of y.

    Without the sequence it grows by none, with it by y and its gradient, without checkpoints by all
    steps. Each number is what a run adds to the peak of the runs before it.
    """
    printed = subprocess.run(
        [sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True
    )
    alone, with_y, plain = map(float, printed.stdout.split())
    assert alone < 0.5
    assert alone + with_y < 2.5
    assert alone + with_y + plain > 6  # y, its gradient, and a reserve of 5H
