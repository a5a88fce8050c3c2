"""Direct calls give what the general path gives, to the bit, and leave to it what they do not know.

Every call here is made three times: by the compiled function with tensors read through DLPack, by
the same with tensors read by their attributes, as with older versions of torch, and by the general
path alone.
"""

import random
from types import SimpleNamespace

import numpy as np
import pairwise
import pytest
import torch
from direct_calls import READINGS, B, H, I, T, assert_same, is_direct, trained

import fastlstm
from fastlstm.backends import cpu


@pairwise.parametrize(
    {
        "num_layers": [1, 3],
        "bidirectional": [False, True],
        "bias": [False, True],
        "peephole": [False, True],
        "dtype": [torch.float32, torch.float64, torch.bfloat16],
    }
)
def test_lstm(num_layers, bidirectional, bias, peephole, dtype):
    options = {"bidirectional": bidirectional, "bias": bias, "peephole": peephole, "dtype": dtype}
    for batch_first in (False, True):
        module = fastlstm.LSTM(I, H, num_layers, batch_first=batch_first, **options)
        for batch in ((), (B,)):
            steps = (*batch, T) if batch_first else (T, *batch)
            rows = (num_layers * (1 + bidirectional), *batch, H)
            hx = tuple(torch.randn(rows, dtype=dtype, requires_grad=True) for _ in range(2))
            input = torch.randn(*steps, I, dtype=dtype, requires_grad=True)
            keywords = {"reset": torch.rand(steps) < 0.3}
            if batch:
                keywords["lengths"] = torch.tensor([2, 5, 2])
            for given, own in ((None, {}), (hx, {}), (hx, keywords), (None, keywords)):
                with torch.no_grad():
                    assert is_direct(module, input, given, **own)
                    assert_same(module, input, given, **own)
                assert is_direct(module, input, given, **own)
                assert_same(trained, module, input, given, **own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_cell(bias, peephole, dtype):
    cell = fastlstm.LSTMCell(I, H, bias=bias, peephole=peephole, dtype=dtype)
    for batch in ((), (1,), (B,)):
        input = torch.randn(*batch, I, dtype=dtype, requires_grad=True)
        hx = tuple(torch.randn(*batch, H, dtype=dtype, requires_grad=True) for _ in range(2))
        for given in (None, hx):
            with torch.no_grad():
                assert is_direct(cell, input, given)
                assert_same(cell, input, given)
            assert is_direct(cell, input, given)
            assert_same(trained, cell, input, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("I, H", [(300, 260), (64, 128), (1000, 200), (33, 515)])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_one_step_of_a_few_rows_does_not_depend_on_the_threads(I, H, options, dtype):
    """So a call may use fewer threads where other programs keep the cores busy."""
    module = fastlstm.LSTM(I, H, dtype=dtype, **options)
    for rows in range(1, 7):
        x, found = torch.randn(1, rows, I, dtype=dtype), []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                y, (h, c) = module(x)
            found.append(torch.cat([y.flatten(), h.flatten(), c.flatten()]))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


class _Subclass(torch.Tensor):
    pass


def _misaligned(x):
    """The same numbers one byte further on than their type asks for."""
    bytes_ = np.zeros(x.numel() * x.element_size() + 1, np.uint8)[1:]
    array = bytes_.view(x.numpy().dtype).reshape(x.shape)
    array[...] = x.numpy()
    return torch.from_numpy(array)


# Ways in which a tensor comes.
TENSORS = {
    "plain": lambda x: x,
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "offset": lambda x: torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "expanded": lambda x: x[:1].expand_as(x),
    "negated": lambda x: torch._neg_view(-x) if x.is_floating_point() else x,
    "zero": lambda x: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "subclass": lambda x: x.as_subclass(_Subclass),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
    "meta": lambda x: x.to("meta"),
    "empty": lambda x: x[:0],
    "short": lambda x: x[..., :-1],
    "double": lambda x: x.double(),
    "half": lambda x: x.half(),
    "int": lambda x: x.int(),
    "sparse": lambda x: x.to_sparse(),
    "one more": lambda x: x[None],
    "numpy": lambda x: x.numpy() if x.dtype != torch.bfloat16 else x,
    "list": lambda x: x.tolist(),
    "misaligned": lambda x: _misaligned(x) if x.dtype == torch.float32 else x,
}
USUAL = ["plain", "strided", "offset", "transposed", "expanded", "parameter"]


def _some(draw, x):
    kind = draw.choice(list(TENSORS)) if draw.random() < 0.3 else draw.choice(USUAL)
    return TENSORS[kind](x), kind


def _random_call(draw, modules):
    module = draw.choice(modules)
    is_cell = isinstance(module, fastlstm.LSTMCell)
    steps, rows = draw.randint(1, 6), draw.randint(1, 4)
    dtype = module.weight_ih.dtype if is_cell else module.weight_ih_l0.dtype
    is_batched = draw.random() < 0.8
    batch = (rows,) if is_batched else ()
    if is_cell:
        time, states = batch, (*batch, module.hidden_size)
    else:
        time = (*batch, steps) if module.batch_first else (steps, *batch)
        layers = module.num_layers * (1 + module.bidirectional)
        states = (layers, *batch, module.hidden_size)
    input, kind = _some(draw, torch.randn(*time, module.input_size).to(dtype))
    kinds, hx, keywords = [kind], None, {}
    if draw.random() < 0.6:
        given = [_some(draw, torch.randn(states).to(dtype)) for _ in range(2)]
        kinds += [k for _, k in given]
        hx = draw.choice([tuple, tuple, tuple, list])(x for x, _ in given)
        if draw.random() < 0.02:
            hx = draw.choice([hx[:1], (*hx, hx[0]), {"h": hx[0]}, 3])
    if not is_cell and draw.random() < 0.3:
        lengths = torch.randint(draw.choice([0, 1, 1, 1, 1, 1]), steps + 1, (rows,))
        lengths = lengths.to(draw.choice([torch.int64, torch.int64, torch.int32, torch.int16]))
        keywords["lengths"], kind = _some(draw, lengths)
        kinds.append(kind)
    if not is_cell and draw.random() < 0.3:
        keywords["reset"], kind = _some(draw, torch.rand(time) < 0.3)
        kinds.append(kind)
    about = (module, time, kinds, list(keywords))
    return module, input, hx, keywords, about


def _modules():
    for options in (
        {},
        {"num_layers": 2, "batch_first": True},
        {"bidirectional": True, "peephole": True},
        {"num_layers": 3, "bidirectional": True, "bias": False, "batch_first": True},
        {"proj_size": 3},
        {"dtype": torch.float64, "peephole": True},
        {"dtype": torch.bfloat16, "num_layers": 2},
        {"dropout": 0.5, "num_layers": 2},
        {"learn_initial_state": True},
        {"checkpoint_every": 2},
    ):
        module = fastlstm.LSTM(I, H, **options)
        yield module.eval() if "dropout" in options else module
    yield fastlstm.LSTM(I, 17).freeze()
    yield fastlstm.LSTM(I, H, 2).freeze(dtype="bfloat16")
    for options in ({}, {"bias": False}, {"peephole": True, "dtype": torch.float64}):
        yield fastlstm.LSTMCell(I, H, **options)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("calls", [5000, pytest.param(15000, marks=pytest.mark.slow)])
def test_random_calls(calls):
    """Calls with whatever may come: outputs, or the error, are those of the general path."""
    draw, modules, direct = random.Random(1), list(_modules()), 0
    torch.set_num_threads(1)
    for number in range(calls):
        readings = READINGS[: 1 + (number % 20 == 0)]
        module, input, hx, keywords, about = _random_call(draw, modules)
        can_train = isinstance(input, torch.Tensor) and input.is_floating_point()
        if number % 10 == 0 and can_train and isinstance(hx, (tuple, type(None))):
            needs = [x for x in (input, *(hx or ())) if isinstance(x, torch.Tensor)]
            needs = [x.detach().requires_grad_() for x in needs if x.is_floating_point()]
            if len(needs) != 1 + len(hx or ()):
                continue
            input, hx = needs[0], None if hx is None else tuple(needs[1:])
            assert_same(trained, module, input, hx, **keywords, about=about, readings=readings)
            continue
        with torch.no_grad():
            assert_same(module, input, hx, **keywords, about=about, readings=readings)
            direct += is_direct(module, input, hx, **keywords)
    assert direct > calls / 3


@pytest.mark.parametrize(
    ("T", "B", "I", "H"),
    [
        (8, 2, 512, 8),
        (9, 2, 512, 8),
        (8, 2, 511, 8),
        (8, 2, 512, 9),
        (64, 2, 128, 4),
        (65, 2, 128, 4),
        (64, 2, 127, 4),
        (64, 2, 128, 5),
        (2, 5000, 128, 4),
        (2, 5001, 128, 4),
        (1, 64, 512, 4),
        (1, 65, 512, 4),
    ],
)
def test_where_torch_is_faster_its_function_runs_the_call(T, B, I, H):
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)

    def is_ours(module, input=x, **keywords):
        assert is_direct(module, input, **keywords)
        return "_LSTM" in type(module(input, **keywords)[0].grad_fn).__name__

    for dtype in (torch.bfloat16, torch.float32):
        problem = SimpleNamespace(requires_grad=True, dtype=dtype, T=T, B=B, I=I, H=H)
        is_slower = cpu.why_slower(problem) is not None
        assert is_ours(module.to(dtype), x.to(dtype)) is not is_slower
    assert is_ours(module, reset=torch.zeros(T, B, dtype=torch.bool))
    assert is_ours(fastlstm.LSTM(I, H, peephole=True))
    assert is_ours(fastlstm.LSTM(I, H, backend="cpu"))
    for other in (module, fastlstm.LSTM(I, H, 2, bidirectional=True, batch_first=True)):
        states = torch.randn(2, other.num_layers * (1 + other.bidirectional), B, H)
        steps = x.transpose(0, 1) if other.batch_first else x
        for hx in (None, tuple(states.requires_grad_())):
            assert_same(trained, other, steps.detach().requires_grad_(), hx)
        assert_same(other, steps)
        assert_same(trained, other, steps[0].detach().requires_grad_(), None)
        assert_same(other, steps, lengths=torch.full((B,), T))
