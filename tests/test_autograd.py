"""What autograd promises of any differentiable function.

Each test with the fixture ``path`` runs by each path to the kernels.
"""

import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastlstm
from fastlstm import backends

T, B, I, H = 4, 2, 3, 5
TOLERANCE = {"rtol": 1e-11, "atol": 1e-13}


def _randn(*size, **options):
    return torch.randn(*size, dtype=torch.float64, **options)


def _lstm(*args, **options):
    return fastlstm.LSTM(*(args or (I, H)), dtype=torch.float64, **{"backend": "cpu"} | options)


def _leaves(*sizes):
    return [_randn(*size).mul_(0.7).requires_grad_() for size in sizes]


def test_anomaly_mode(path):
    """Anomaly mode looks for NaN in every gradient; uninitialised memory is NaN in these tests."""
    module, (x,) = _lstm(peephole=True, bidirectional=True), _leaves((T, B, I))
    module.weight_hh_l0.requires_grad_(False)
    with torch.autograd.set_detect_anomaly(True):
        y, _ = module(x, lengths=torch.tensor([T, 1]))
        y.sum().backward()
        y, _ = module(x)
        y[1:].backward(torch.full_like(y[1:], 1.0))
        with (
            pytest.warns(UserWarning, match="Error detected in"),
            pytest.raises(RuntimeError, match=r"(?i)lstm.*Backward.*returned nan"),
        ):
            module(x)[0].backward(torch.full_like(y, float("inf")))


def test_hooks(path):
    ours, theirs = _lstm(), nn.LSTM(I, H, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    heard = []
    for module in (ours, theirs):
        (x,) = _leaves((T, B, I))
        x.data.fill_(0.5)
        module.register_full_backward_hook(
            lambda module, dinputs, doutputs: heard.extend([*dinputs, *doutputs])
        )
        y, _ = module(x)
        y.register_hook(lambda dy: dy * 2)
        x.register_hook(heard.append)
        module.weight_hh_l0.register_hook(heard.append)
        y.sum().backward()
    half = len(heard) // 2
    assert half >= 4
    for mine, their in zip(heard[:half], heard[half:], strict=True):
        torch.testing.assert_close(mine, their, **TOLERANCE)


def test_the_graph_can_be_kept(path):
    module, (x,) = _lstm(num_layers=2), _leaves((T, B, I))
    y, _ = module(x)
    leaves = [x, *module.parameters()]
    first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(y.sum(), leaves)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), leaves)


@pytest.mark.parametrize("changed", ["x", "weight", "y"])
def test_changes_in_place_are_noticed(path, changed):
    module, x = _lstm(), _randn(T, B, I)
    y, _ = module(x)
    with torch.no_grad():
        {"x": x, "weight": module.weight_hh_l0, "y": y}[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    "asked", ["x", "weight_ih_l0", "bias_hh_l0", "weight_hh_l0", "weight_ch_l0"]
)
def test_only_what_is_asked_for_is_computed(path, monkeypatch, asked):
    needs = []
    original = backends.cpu.backward

    def spy(*args):
        needs.append(list(args[3]))
        return original(*args)

    monkeypatch.setattr(backends.cpu, "backward", spy)
    module, x = _lstm(peephole=True).requires_grad_(False), _randn(T, B, I)
    leaf = {"x": x, **dict(module.named_parameters())}[asked].requires_grad_()
    module(x)[0].sum().backward()
    order = ["x", "weight_ih_l0", "bias_hh_l0", "weight_hh_l0", "weight_ch_l0", "weight_hr_l0"]
    if path != "direct":  # which is one call of a compiled function
        assert needs == [[name == asked for name in order]]
    assert leaf.grad is not None
    grads = [x.grad, *(p.grad for p in module.parameters())]
    assert sum(grad is not None for grad in grads) == 1


def test_gradients_of_some_inputs(path):
    module, (x, h, c) = _lstm(), _leaves((T, B, I), (1, B, H), (1, B, H))
    y, _ = module(x, (h, c))
    whole = torch.autograd.grad(y.sum(), [x, h, c, *module.parameters()], retain_graph=True)
    for index, leaf in enumerate((x, h, c)):
        (alone,) = torch.autograd.grad(y.sum(), leaf, retain_graph=True)
        assert torch.equal(alone, whole[index])
    unused = _randn(2, requires_grad=True)
    assert torch.autograd.grad(y.sum(), [x, unused], allow_unused=True)[1] is None
    assert all(p.grad is None for p in module.parameters())


def test_evaluation_and_accumulation(path):
    """Backward in eval mode; gradients accumulate, and are set anew after set_to_none."""
    module, x = _lstm(num_layers=2, dropout=0.5).eval(), _randn(T, B, I)
    module(x)[0].sum().backward()
    once = [p.grad.clone() for p in module.parameters()]
    (module(x)[0] + module(x)[0]).sum().backward()
    for parameter, gradient in zip(module.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * gradient, **TOLERANCE)
    module.zero_grad(set_to_none=True)
    module(x)[0].sum().backward()
    for parameter, gradient in zip(module.parameters(), once, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_shared_weights(path):
    """The same parameter in both directions, and the same module twice in a graph."""
    module, x = _lstm(H, H, bidirectional=True), _randn(T, B, H)
    for name in [name for name, _ in module.named_parameters() if name.endswith("_reverse")]:
        setattr(module, name, getattr(module, name.removesuffix("_reverse")))
    apart = _lstm(H, H, bidirectional=True)
    apart.load_state_dict(module.state_dict())
    for each in (module, apart):
        y = each(x)[0]
        (y.sin().sum() + each(y[..., :H])[0].sum()).backward()
    gradients = {name: p.grad for name, p in apart.named_parameters()}
    for name, parameter in module.named_parameters():
        both = gradients[name] + gradients[f"{name}_reverse"]
        torch.testing.assert_close(parameter.grad, both, **TOLERANCE)


def test_saved_tensors_hooks(path):
    """A hook may return saved tensors with other strides."""
    module, (x,) = _lstm(peephole=True), _leaves((T, B, I))
    leaves = [x, *module.parameters()]
    truth = torch.autograd.grad(module(x)[0].sum(), leaves)
    with torch.autograd.graph.save_on_cpu():
        y = module(x)[0]
    assert all(map(torch.equal, torch.autograd.grad(y.sum(), leaves), truth))

    def strided(tensor):
        return torch.stack([tensor, tensor], -1)[..., 0]

    with torch.autograd.graph.saved_tensors_hooks(strided, lambda tensor: tensor):
        y = module(x)[0]
    torch.testing.assert_close(torch.autograd.grad(y.sum(), leaves), truth, **TOLERANCE)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(path, use_reentrant):
    module, (x,) = _lstm(num_layers=2), _leaves((T, B, I))

    def gradients(y):
        module.zero_grad()
        x.grad = None
        y.sin().sum().backward()
        return [leaf.grad for leaf in (x, *module.parameters())]

    truth = gradients(module(x)[0])
    found = gradients(checkpoint(lambda x: module(x)[0], x, use_reentrant=use_reentrant))
    assert all(map(torch.equal, found, truth))


@pytest.mark.parametrize("cls", [fastlstm.LSTM, nn.LSTM])
def test_tensors_of_other_modes(path, cls):
    module = cls(I, H, dtype=torch.float64)
    with torch.no_grad():
        x = _randn(T, B, I) * 2
    module(x)[0].sum().backward()
    with torch.inference_mode():
        z = _randn(T, B, I)
        assert not module(z)[0].requires_grad
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        module(z)
    assert not module.requires_grad_(False)(z)[0].requires_grad


def test_threads_at_once():
    """Each thread has its own graph; all compute gradients of one parameter."""
    module = _lstm(8, 16, num_layers=2)
    inputs = [_randn(10, 3, 8, requires_grad=True) for _ in range(6)]
    truth = [torch.autograd.grad(module(x)[0].sum(), x)[0] for x in inputs]
    found = [None] * len(inputs)
    start = threading.Barrier(len(inputs))

    def work(index):
        start.wait()
        for _ in range(20):
            (found[index],) = torch.autograd.grad(module(inputs[index])[0].sum(), inputs[index])

    workers = [threading.Thread(target=work, args=(index,)) for index in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(map(torch.equal, found, truth))
