"""Heads with all of torch that sees a module: copies, compilers, exporters, transforms."""

import pickle

import pytest
import torch
from dense_heads import Dense, H, N, expanded, heads
from helpers import DUPLICATES, assert_close, skip_unless_supported
from pairs import TOLERANCE, B, I, T, double, results
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

import fastlstm


@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_copies(duplicate):
    module = heads(num_layers=2, peephole=True)
    again, x = duplicate(module), double(T, B, I)
    assert again.num_heads == N and torch.equal(again(x)[0], module(x)[0])


def test_a_pickle_without_the_attribute():
    module = fastlstm.LSTM(I, H)
    state = {name: value for name, value in vars(module).items() if name != "num_heads"}
    again = fastlstm.LSTM.__new__(fastlstm.LSTM)
    again.__setstate__(state)
    assert again.num_heads == 1 and repr(again) == repr(module)
    x = torch.randn(T, B, I)
    assert torch.equal(again(x)[0], module(x)[0])
    del module.num_heads
    assert torch.equal(pickle.loads(pickle.dumps(module))(x)[0], again(x)[0])


def test_to_torch_and_back():
    module = heads(num_layers=2, bidirectional=True)
    torchs, x = module.to_torch(), double(T, B, I)
    assert type(torchs) is nn.LSTM
    torch.testing.assert_close(torchs(x)[0], module(x)[0])
    assert torch.equal(torchs.weight_hh_l1, expanded(module.weight_hh_l1, N))
    again = fastlstm.LSTM.from_torch(module)
    assert again.num_heads == N and torch.equal(again(x)[0], module(x)[0])


def test_scripts_and_kernels_of_other_libraries_are_refused():
    with pytest.raises(ValueError, match="num_heads: expected 1 for TorchScript"):
        torch.jit.script(heads())
    state = heads().state_dict()
    with pytest.raises(ValueError, match=r"expected weight_hh_l0 \(24, 6\), without heads"):
        fastlstm.nn.convert.to_kernels(state, gate_order="ifgo")


@pytest.mark.parametrize("kind", [None, "bfloat16", "int8"])
def test_frozen(kind):
    module = heads(num_heads=2, dtype=torch.float32, num_layers=2).eval()
    dense = fastlstm.LSTM(I, H, 2).eval()
    dense.load_state_dict(module.to_torch().state_dict())
    x = torch.randn(T, 2, I)
    with torch.no_grad():
        for _ in range(2):
            frozen, expected = module.freeze(kind)(x)[0], dense.freeze(kind)(x)[0]
            torch.testing.assert_close(frozen, expected, rtol=1e-3, atol=1e-3)
            module.weight_hh_l0.data.mul_(2)
            dense.weight_hh_l0.data.mul_(2)


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_stream(kind):
    module = heads(dtype=torch.float32, num_layers=2, learn_initial_state=True).eval()
    x, stream = torch.randn(T, B, I), module.stream(B, kind)
    tolerance = 1e-5 if kind == "float32" else 0.02
    for _ in range(2):
        torch.testing.assert_close(stream.run(x), module(x)[0].detach(), rtol=0, atol=tolerance)
        nn.init.zeros_(module.weight_hh_l0)
        stream.refresh()
        stream.reset()


@pytest.mark.parametrize("options", [{"peephole": True}, {"num_layers": 2, "bidirectional": True}])
def test_compiled(compiled, options):
    module = heads(**options)
    run, x = compiled(module), double(T, B, I)
    for rows in (B, 7):
        x = double(T, rows, I)
        mine, theirs = (results(m, x, None, leaves={"x": x}) for m in (_With(module, run), module))
        assert_close(mine, theirs, TOLERANCE)


class _With(nn.Module):
    """``run`` with the parameters of ``module``."""

    def __init__(self, module, run):
        super().__init__()
        self.named_parameters, self.run = module.named_parameters, run

    def forward(self, *args):
        return self.run(*args)


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict):
    module, dynamic = heads(num_layers=2, bidirectional=True), torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 1: dynamic}, None)
    program = torch.export.export(
        module, (double(T, B, I), None), dynamic_shapes=shapes, strict=strict
    )
    x = double(9, 7, I)
    torch.testing.assert_close(program.module()(x, None)[0], module(x)[0])


@pytest.mark.filterwarnings("ignore")
def test_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module = heads(dtype=torch.float32, peephole=True, bidirectional=True).eval()
    dynamic = torch.export.Dim.DYNAMIC
    path, shapes = tmp_path / "heads.onnx", ({0: dynamic, 1: dynamic},)
    torch.onnx.export(
        module, (torch.randn(T, B, I),), path, dynamo=True, dynamic_shapes=shapes, verbose=False
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(9, 7, I)
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    y, (h, c) = module.double()(x.double())
    for ours, truth in zip(found, (y, h, c), strict=True):
        torch.testing.assert_close(torch.from_numpy(ours).double(), truth, rtol=1e-5, atol=1e-6)


def test_traced():
    module, x = heads(), double(T, B, I)
    traced = torch.jit.trace(module, x)
    y = double(9, 7, I)
    torch.testing.assert_close(traced(y)[0], module(y)[0])


def test_vmap_and_gradients_of_each_sample():
    module = heads(peephole=True)
    weights, x = dict(module.named_parameters()), double(4, T, 2, I)

    def loss(weights, x):
        return functional_call(module, weights, (x,))[0].sin().sum()

    together = vmap(grad(loss), (None, 0))(weights, x)
    for sample in range(4):
        apart = torch.autograd.grad(loss(weights, x[sample]), list(weights.values()))
        for name, gradient in zip(weights, apart, strict=True):
            torch.testing.assert_close(together[name][sample], gradient)


def test_ensemble():
    modules = [heads() for _ in range(3)]
    weights, buffers = stack_module_state(modules)
    x = double(T, B, I)
    y = vmap(lambda w, b: functional_call(modules[0], (w, b), (x,))[0])(weights, buffers)
    torch.testing.assert_close(y, torch.stack([module(x)[0] for module in modules]))


def test_forward_mode():
    module, x = heads(bidirectional=True), double(T, B, I)
    tangent = torch.randn_like(x)
    mine, theirs = (jvp(lambda x, m=m: m(x)[0], (x,), (tangent,)) for m in (module, Dense(module)))
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_differentiates_twice(check):
    module = fastlstm.LSTM(2, 4, num_heads=2, peephole=True, dtype=torch.float64)
    names = [name for name, _ in module.named_parameters()]

    def run(x, *weights):
        y, (h, c) = functional_call(module, dict(zip(names, weights, strict=True)), (x,))
        return y, h, c

    assert check(run, (double(3, 2, 2), *module.parameters()), fast_mode=True)


def test_meta_device():
    module = heads(num_layers=2, bidirectional=True, device="meta")
    output, (hy, cy) = module(torch.empty(T, B, I, device="meta", dtype=torch.float64))
    assert output.shape == (T, B, 2 * H) and hy.shape == cy.shape == (4, B, H)
    real = heads(num_layers=2, bidirectional=True)
    module.load_state_dict(real.state_dict(), assign=True)
    x = double(T, B, I)
    torch.testing.assert_close(module(x)[0], real(x)[0])


def test_flatten_parameters_leaves_heads_alone(monkeypatch):
    """cuDNN would lay them out by the sizes of an LSTM without heads."""
    called = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda self: called.append(self))
    module = heads()
    called.clear()
    module.flatten_parameters()
    module.float()
    assert not called
    fastlstm.LSTM(I, H).flatten_parameters()
    assert called


def test_operations_are_counted():
    module = heads(dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        module(torch.randn(T, B, I))
    assert counter.get_total_flops() == 2 * T * B * 4 * H * (I + H // N)


def test_segmented_loss():
    module = heads(num_layers=2)
    x = torch.randn(11, B, I, dtype=torch.float64)
    loss, _ = fastlstm.segmented_loss(module, x, lambda y, _: y.sin().sum(), segment=4)
    expected = module(x)[0].sin().sum()
    for mine, theirs in zip(
        torch.autograd.grad(loss, list(module.parameters())),
        torch.autograd.grad(expected, list(module.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_batch_of_none(backend):
    module = heads(backend=backend)
    skip_unless_supported(backend, module.problem())
    y, (h, _) = module(double(T, 0, I))
    assert y.shape == (T, 0, H) and h.shape == (1, 0, H)
    y.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())
