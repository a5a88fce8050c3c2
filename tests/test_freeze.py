"""``LSTM.freeze``: every sentence of its docstring."""

import copy
import pickle

import pytest
import torch
from helpers import DUPLICATES, assert_as_close_as_torch, assert_close
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm

I, H = 7, 33  # no multiples of a vector
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
    """A copy on the reference backend with the same numbers."""
    copied = copy.deepcopy(module).to(dtype)
    copied.backend = "reference"
    return copied


@torch.no_grad()
def _infer(module, *args, **kwargs):
    output, (hy, cy) = module(*args, **kwargs)
    return {"output": output, "hy": hy, "cy": cy}


def _overwrite(module, names=""):
    """Other weights, in the parameters with such names, unnoticed by version counters."""
    for name, parameter in module.named_parameters():
        if names in name:
            parameter.data.mul_(-1)


def _is_frozen(module, T=3, B=2):
    """Whether inference still sees the weights from before a write; leaves other ones behind."""
    x = torch.randn(T, B, I, dtype=module.weight_hh_l0.dtype)
    before = _infer(module, x)["output"]
    _overwrite(module)
    return torch.equal(_infer(module, x)["output"], before)


@pytest.mark.parametrize("T, B", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
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
    """Frozen inside it and used outside, and the other way around."""
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


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_is_unseen_until_the_next_freeze(kind):
    module = _module(**KINDS[kind])
    assert not _is_frozen(module)
    assert _is_frozen(module.freeze())
    x = torch.randn(4, 5, I)
    written = _infer(copy.deepcopy(module), x)
    assert not torch.equal(_infer(module, x)["output"], written["output"])
    assert_close(_infer(module.freeze(), x), written, 1e-5)
    assert _is_frozen(module)


@pytest.mark.parametrize("T, B", SIZES)
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "weight_ch", "bias_ih", "bias_hh"])
def test_a_write_to_any_parameter_is_unseen(name, T, B):
    """No call mixes old weights with new ones."""
    module = _module(num_layers=2, bidirectional=True, peephole=True).freeze()
    x, hx = torch.randn(T, B, I), tuple(torch.randn(4, B, H) for _ in "hc")
    before = _infer(module, x, hx)
    _overwrite(module, name)
    assert_close(_infer(module, x, hx), before, 0)
    assert not torch.equal(_infer(module.unfreeze(), x, hx)["output"], before["output"])


def test_replaced_parameters_are_unseen_too():
    module = _module().freeze()
    x = torch.randn(4, 5, I)
    before = _infer(module, x)
    module.weight_hh_l0 = nn.Parameter(-module.weight_hh_l0)
    module.bias_hh_l0 = nn.Parameter(-module.bias_hh_l0)
    assert_close(_infer(module, x), before, 0)
    assert not torch.equal(_infer(module.freeze(), x)["output"], before["output"])


def test_unfreeze():
    module = _module().freeze()
    assert _is_frozen(module.eval().train().requires_grad_(False))
    assert module.unfreeze() is module
    assert not _is_frozen(module)


@pytest.mark.parametrize("inside", [False, True], ids=["itself", "inside another"])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.load_state_dict(m.state_dict()),
        lambda m: m.load_state_dict(m.state_dict(), assign=True),
        lambda m: m.double(),
        lambda m: m.to("cpu"),
        lambda m: m.to(torch.bfloat16),
        lambda m: m.share_memory(),
        lambda m: m._apply(lambda t: t.clone()),
    ],
    ids=["load", "load-assign", "double", "to-device", "to-dtype", "share", "apply"],
)
def test_loading_moving_and_casting_unfreeze(change, inside):
    module, other = _module(num_layers=2).freeze(), _module().freeze()
    change(nn.ModuleList([module]) if inside else module)
    assert not _is_frozen(module)
    assert _is_frozen(other)


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
def test_calls_that_need_gradients_read_the_parameters(kind, learns):
    """All of them, whatever the gradient is asked of, after a write that inference does not see.

    A bias of the second layer needs none in the first, which must read its parameters even so.
    """
    module = _module(torch.float64, **KINDS[kind]).freeze()
    _overwrite(module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(learns in ("everything", name))
    x = torch.randn(5, 5, I, dtype=torch.float64)
    hx = tuple(torch.randn(len(module.weights()), 5, H, dtype=torch.float64) for _ in "hc")
    for name, tensor in (("x", x), ("hx", hx[0]), ("hx", hx[1])):
        tensor.requires_grad_(learns in ("everything", name))
    truth = _training_results(_reference(module, torch.float64), x, hx)
    assert_close(_training_results(module, x, hx), truth, 1e-12)
    assert _is_frozen(module)


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_copies_are_not_frozen(duplicate):
    module = _module(num_layers=2).freeze()
    assert not _is_frozen(duplicate(module))
    assert not _is_frozen(duplicate(nn.ModuleList([module]))[0])
    assert _is_frozen(module)


def test_state_dicts_and_torchs_modules_are_as_ever():
    module = _module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    size, shown = len(pickle.dumps(module)), repr(module)
    module.freeze()
    assert_close(dict(module.state_dict()), before, 0)
    assert (len(pickle.dumps(module)), repr(module)) == (size, shown)
    assert not list(module.buffers())
    assert_close(dict(module.to_torch().state_dict()), before, 0)
    assert not _is_frozen(fastlstm.LSTM.from_torch(module.to_torch(), backend="cpu"))


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_other_backends_are_unaffected(backend):
    module = _module(backend=backend, num_layers=2, bidirectional=True)
    x = torch.randn(4, 5, I)
    expected = _infer(module, x)
    assert_close(_infer(module.freeze(), x), expected, 0)
    assert not _is_frozen(module)
    module.backend = "cpu"
    assert _is_frozen(module)


@pytest.mark.parametrize("options", [{"proj_size": 5}, {"dtype": torch.float16}], ids=str)
def test_what_the_cpu_kernels_cannot_run_freezes_to_nothing(options):
    module = _module(backend="auto", num_layers=2, bidirectional=True, **options)
    x = torch.randn(4, 5, I, dtype=options.get("dtype"))
    expected = _infer(module, x)
    assert_close(_infer(module.freeze(), x), expected, 0)
    assert not _is_frozen(module)
    module.to("meta").freeze()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_autocast(dtype):
    """In another dtype than theirs it reads the parameters; float64 it leaves as it is."""
    module = _module(dtype, num_layers=2, bidirectional=True)
    x = torch.randn(4, 5, I, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        expected = _infer(module, x)
        frozen = _infer(module.freeze(), x)
        assert [v.dtype for v in frozen.values()] == [v.dtype for v in expected.values()]
        assert_close(frozen, expected, 8 * torch.finfo(expected["output"].dtype).eps)
        _overwrite(module)
        seen = _infer(copy.deepcopy(module), x) if dtype == torch.float32 else frozen
        assert_close(_infer(module, x), seen, 0)
    assert _is_frozen(module)


@pytest.mark.parametrize("options", [{}, {"proj_size": 5}, {"num_layers": 2, "peephole": True}])
def test_compiled(compiled, options):
    """Freezing before and after compilation, writes, unfreezing, and training."""
    module = _module(torch.float64, backend="auto", **options)
    run = compiled(module)
    x = torch.randn(4, 5, I, dtype=torch.float64)

    @torch.no_grad()
    def same():
        torch.testing.assert_close(run(x)[0], module(x)[0], rtol=1e-12, atol=1e-12)

    same()
    module.freeze()
    same()
    _overwrite(module)
    same()
    assert_close(_training_results(module, x, run=run), _training_results(module, x), 1e-12)
    for change in (module.freeze, module.unfreeze):
        change()
        same()


def test_exported():
    module = _module(num_layers=2).eval().requires_grad_(False).freeze()
    x = torch.randn(4, 5, I)
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x)[0], module(x)[0])
