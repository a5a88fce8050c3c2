"""``LSTM.freeze`` does what its docstring says; test_prepacked.py tests writes to the weights."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pairwise
import pytest
import torch
from helpers import DUPLICATES, assert_as_close_as_torch, assert_close
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm.backends.cpu.prepacked import PrepackedWeights

I, H = 7, 33  # not multiples of a vector's length
KINDS = {
    "plain": {},
    "two layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "two layers, bidirectional": {"num_layers": 2, "bidirectional": True},
    "no bias": {"bias": False},
    "peephole": {"peephole": True},
    "everything": {"num_layers": 2, "bidirectional": True, "peephole": True, "batch_first": True},
}
SIZES = [(1, 1), (1, 70), (2, 3), (300, 1), (60, 40)]


def _module(dtype=torch.float32, backend="cpu", **options):
    return fastlstm.LSTM(I, H, dtype=dtype, backend=backend, **options)


def _reference(module, dtype):
    """A copy with the same parameters on the reference backend."""
    copied = copy.deepcopy(module).to(dtype)
    copied.backend = "reference"
    return copied


@torch.no_grad()
def _infer(module, *args, **kwargs):
    output, (hy, cy) = module(*args, **kwargs)
    return {"output": output, "hy": hy, "cy": cy}


def _memory(module):
    """The memory of the packed weights of each layer; None for a layer without."""
    return [layer._kept.memory for layer in module._packed]


def _assert_live(module, x, *args, **kwargs):
    """Assert that the frozen module gives what a copy without packed weights gives."""
    assert None not in _memory(module)
    live = copy.deepcopy(module).unfreeze()
    assert_close(_infer(module, x, *args, **kwargs), _infer(live, x, *args, **kwargs), 1e-5)


def _negate(module):
    for parameter in module.parameters():
        parameter.data.neg_()


@pairwise.parametrize(
    {"dtype": [torch.float32, torch.float64, torch.bfloat16], "kind": KINDS, "T, B": SIZES}
)
def test_same_results(dtype, kind, T, B):
    module = _module(dtype, **KINDS[kind])
    x = torch.randn(T, B, I, dtype=dtype)
    if module.batch_first:
        x = x.transpose(0, 1)
    truth = _infer(_reference(module, torch.float64), x.double())
    torchs = _infer(_reference(module, dtype), x)
    assert module.freeze() is module
    frozen = _infer(module, x)
    if dtype == torch.float64:
        assert_close(frozen, truth, 8 * torch.finfo(dtype).eps * (T + I + H))
    else:
        assert_as_close_as_torch(frozen, torchs, truth)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_another_number_of_threads_than_when_it_was_frozen(threads):
    torch.set_num_threads(2)
    module = _module(torch.float64, num_layers=2, bidirectional=True)
    x = torch.randn(9, 60, I, dtype=torch.float64)
    expected = _infer(module, x)
    module.freeze()
    torch.set_num_threads(threads)
    assert_close(_infer(module, x), expected, 1e-14)


def test_few_rows_and_many_use_the_same_packed_weights():
    """With AMX, a float is multiplied in pieces if there are many rows, else whole."""
    module = fastlstm.LSTM(I, 260, backend="cpu").freeze()
    live = copy.deepcopy(module).unfreeze()
    _infer(module, torch.randn(30, 1, I))
    kept = _memory(module)[0]
    for B in (40, 1, 17):
        x = torch.randn(30, B, I)
        assert_close(_infer(module, x), _infer(live, x), 1e-5)
        assert _memory(module)[0] is kept


@pytest.mark.parametrize("given", ["unbatched", "lengths", "packed sequence", "hx", "no steps"])
def test_every_kind_of_input(given):
    module = _module(torch.float64, num_layers=2, bidirectional=True)
    x, arguments, options = torch.randn(6, 4, I, dtype=torch.float64), (), {}
    lengths = torch.tensor([3, 6, 1, 4])
    if given == "unbatched":
        x = x[:, 0]
    elif given == "lengths":
        options["lengths"] = lengths
    elif given == "packed sequence":
        x = pack_padded_sequence(x, lengths, enforce_sorted=False)
    elif given == "hx":
        arguments = (tuple(torch.randn(4, 4, H, dtype=torch.float64) for _ in "hc"),)
    else:
        x = x[:, :0]
    expected, frozen = (_infer(m, x, *arguments, **options) for m in (module, module.freeze()))
    if given == "packed sequence":
        expected["output"], frozen["output"] = expected["output"].data, frozen["output"].data
    assert_close(frozen, expected, 1e-14)


def test_inference_mode():
    """Frozen inside inference mode and used outside, and the other way around."""
    module = _module().requires_grad_(False)
    x = torch.randn(3, 2, I)
    expected = module(x)[0]
    with torch.inference_mode():
        module.freeze()
        torch.testing.assert_close(module(x)[0], expected)
    torch.testing.assert_close(module(x)[0], expected)
    module.freeze()
    with torch.inference_mode():
        torch.testing.assert_close(module(x)[0], expected)


def test_threads_may_share_packed_weights():
    """Packing in one thread does not disturb another that reads."""
    packed, x = PrepackedWeights(), torch.randn(30, 2, I, dtype=torch.float64)
    weights = [torch.randn(4 * H, n, dtype=torch.float64) / H**0.5 for n in (I, H)]

    def call(index, packed=packed):
        w_ih, w_hh = (weight * (index % 3 - 1) for weight in weights)
        return fastlstm.lstm_sequence(x, [w_hh], weight_ih=[w_ih], packed=packed, backend="cpu")[0]

    expected = [call(index, None) for index in range(3)]
    with ThreadPoolExecutor(4) as pool:
        for index, y in enumerate(pool.map(call, range(300))):
            assert (y - expected[index % 3]).abs().max() < 1e-12


def test_unfreeze():
    module = _module().freeze()
    x = torch.randn(60, 2, I)
    expected = _infer(module.eval().train().requires_grad_(False), x)
    assert None not in _memory(module)
    assert module.unfreeze() is module and module._packed is None
    assert_close(_infer(module, x), expected, 1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.share_memory(),
        lambda m: m._apply(lambda t: t.clone()),
    ],
    ids=["double", "to-dtype", "share", "apply"],
)
def test_moving_and_casting(change):
    module = _module(num_layers=2).freeze()
    x = torch.randn(60, 2, I)
    _infer(module, x)
    change(nn.ModuleList([module]))
    _assert_live(module, x.to(module.weight_hh_l0.dtype))


def _training_results(module, x, hx=None, run=None):
    """Outputs and gradients by name, of the module or of its compiled form ``run``."""
    output, (hy, cy) = (module if run is None else run)(x, hx)
    leaves = {"x": x} | dict(module.named_parameters())
    leaves |= {} if hx is None else {"hx": hx[0], "cx": hx[1]}
    leaves = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    loss = output.sin().sum() + hy.cos().sum() + (cy * cy).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"output": output, "hy": hy, "cy": cy} | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("learns", ["everything", "x", "hx", "weight_hh_l0", "bias_ih_l1"])
@pytest.mark.parametrize("kind", ["two layers", "everything"])
def test_calls_that_need_gradients(kind, learns):
    """After a write, gradients of any input or parameter are correct.

    A gradient of the second layer's bias alone needs none in the first layer.
    """
    module = _module(torch.float64, **KINDS[kind]).freeze()
    x = torch.randn(5, 5, I, dtype=torch.float64)
    _infer(module, x)
    _negate(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(learns in ("everything", name))
    hx = tuple(torch.randn(len(module.weights()), 5, H, dtype=torch.float64) for _ in "hc")
    for name, tensor in (("x", x), ("hx", hx[0]), ("hx", hx[1])):
        tensor.requires_grad_(learns in ("everything", name))
    truth = _training_results(_reference(module, torch.float64), x, hx)
    assert_close(_training_results(module, x, hx), truth, 1e-12)


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_copies_are_frozen_and_pack_for_themselves(duplicate):
    module, x = _module(num_layers=2).freeze(), torch.randn(60, 2, I)
    _infer(module, x)
    for again in (duplicate(module), duplicate(nn.ModuleList([module]))[0]):
        assert _memory(again) == [None, None]
        _negate(again)
        _infer(again, x)
        _assert_live(again, x)
    _assert_live(module, x)


def test_state_dicts_and_torchs_modules_are_as_ever():
    module = _module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    shown = repr(module)
    size = len(pickle.dumps(module.freeze()))
    _infer(module, torch.randn(60, 2, I))
    assert len(pickle.dumps(module)) == size
    assert_close(dict(module.state_dict()), before, 0)
    assert repr(module) == shown
    assert not list(module.buffers())
    assert_close(dict(module.to_torch().state_dict()), before, 0)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_other_backends_are_unaffected(backend):
    module = _module(backend=backend, num_layers=2, bidirectional=True)
    x = torch.randn(40, 5, I)
    expected = _infer(module, x)
    assert_close(_infer(module.freeze(), x), expected, 0)
    assert _memory(module) == [None, None]


def test_what_the_cpu_kernels_cannot_run():
    module = _module(torch.float16, backend="auto", num_layers=2, bidirectional=True)
    x = torch.randn(40, 5, I, dtype=torch.float16)
    expected = _infer(module, x)
    assert_close(_infer(module.freeze(), x), expected, 0)
    module.to("meta").freeze()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast(dtype):
    module = _module(dtype, num_layers=2, bidirectional=True)
    x = torch.randn(40, 5, I, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            expected = _infer(copy.deepcopy(module).unfreeze(), x)
            frozen = _infer(module.freeze(), x)
            assert [v.dtype for v in frozen.values()] == [v.dtype for v in expected.values()]
            assert_close(frozen, expected, 8 * torch.finfo(expected["output"].dtype).eps)
            _negate(module)
            again = _infer(copy.deepcopy(module).unfreeze(), x)
            assert_close(_infer(module, x), again, 8 * torch.finfo(again["output"].dtype).eps)


@pytest.mark.parametrize("options", [{}, {"proj_size": 5}, {"num_layers": 2, "peephole": True}])
def test_compiled(compiled, options):
    """Freezing before and after compilation, writes, unfreezing, and training."""
    module = _module(torch.float64, backend="auto", **options)
    run = compiled(module)
    x = torch.randn(40, 5, I, dtype=torch.float64)

    @torch.no_grad()
    def same():
        torch.testing.assert_close(run(x)[0], module(x)[0], rtol=1e-12, atol=1e-12)

    same()
    module.freeze()
    same()
    _negate(module)
    same()
    assert_close(_training_results(module, x, run=run), _training_results(module, x), 1e-12)
    for change in (module.freeze, module.unfreeze):
        change()
        same()


def test_exported():
    module = _module(num_layers=2).eval().requires_grad_(False).freeze()
    x = torch.randn(40, 5, I)
    _infer(module, x)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x)[0], module(x)[0])
