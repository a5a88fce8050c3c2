"""Optimisers, parametrizations and other tools of torch work as with ``nn.LSTM``."""

import copy
import io
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastlstm

T, B, I, H = 5, 4, 3, 6
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def _pair(**options):
    """nn.LSTM in float64 and ours with the same parameters."""
    torchs = nn.LSTM(I, H, dtype=torch.float64, **options)
    return fastlstm.LSTM.from_torch(torchs), torchs


def _input():
    return torch.randn(T, B, I, dtype=torch.float64)


def _gradients(module, x):
    loss = module(x)[0].sin().sum()
    return dict(
        zip(
            (name for name, _ in module.named_parameters()),
            torch.autograd.grad(loss, list(module.parameters())),
            strict=True,
        )
    )


def _assert_same(ours, torchs):
    """Outputs, gradients and names."""
    x = _input()
    torch.testing.assert_close(ours(x)[0], torchs(x)[0], **TOLERANCE)
    torch.testing.assert_close(_gradients(ours, x), _gradients(torchs, x), **TOLERANCE)
    assert list(ours.state_dict()) == list(torchs.state_dict())


class _Double(nn.Module):
    def forward(self, weight):
        return 2 * weight


WRAPPERS = {
    "parametrize": lambda m: parametrize.register_parametrization(m, "weight_hh_l0", _Double()),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "weight_norm of old": lambda m: nn.utils.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m.eval(), "weight_hh_l0"),
    "spectral_norm of old": lambda m: nn.utils.spectral_norm(m.eval(), "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "prune": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.3),
    "prune by chance": lambda m: prune.random_unstructured(m, "weight_ih_l0", amount=0.3),
    "prune rows": lambda m: prune.ln_structured(m, "weight_ih_l0", amount=0.3, n=2, dim=0),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("wrap", WRAPPERS)
def test_weights_that_are_computed(wrap):
    ours, torchs = _pair(num_layers=2)
    for module in (ours, torchs):
        torch.manual_seed(5)
        WRAPPERS[wrap](module)
    _assert_same(ours, torchs)
    optimizers = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (ours, torchs)]
    x = _input()
    for module, optimizer in zip((ours, torchs), optimizers, strict=True):
        module(x)[0].sin().sum().backward()
        optimizer.step()
    _assert_same(ours, torchs)
    if wrap.startswith("prune"):
        for module in (ours, torchs):
            (mask,) = (name for name, _ in module.named_buffers())
            prune.remove(module, mask.removesuffix("_mask"))
        _assert_same(ours, torchs)


def test_a_parametrized_copy():
    ours, _ = _pair()
    parametrizations.weight_norm(ours, "weight_hh_l0")
    again, x = copy.deepcopy(ours), _input()
    torch.testing.assert_close(again(x)[0], ours(x)[0])
    nn.init.zeros_(again.parametrizations.weight_hh_l0.original0)
    assert not torch.allclose(again(x)[0], ours(x)[0])


def test_state_dict_through_a_file():
    ours, torchs = _pair(num_layers=2)
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    torchs.load_state_dict(torch.load(file, weights_only=True))
    _assert_same(ours, torchs)


@pytest.mark.parametrize("shared", [False, True])
def test_safetensors(shared, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model = nn.ModuleDict({"one": nn.LSTM(I, H), "two": nn.LSTM(I, H)})
    if shared:
        model["two"] = model["one"]
    fastlstm.replace(model)
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    safetensors.save_model(model, tmp_path / "model.safetensors")
    safetensors.load_model(again, tmp_path / "model.safetensors")
    x = torch.randn(T, B, I)
    for name in model:
        torch.testing.assert_close(again[name](x)[0], model[name](x)[0])


def test_parameters_as_a_vector():
    ours, torchs = _pair(num_layers=2, bidirectional=True)
    vector = nn.utils.parameters_to_vector(ours.parameters())
    torch.testing.assert_close(vector, nn.utils.parameters_to_vector(torchs.parameters()))
    for module in (ours, torchs):
        nn.utils.vector_to_parameters(-vector, module.parameters())
    _assert_same(ours, torchs)


def test_functional_call_with_tied_weights():
    pair = []
    for lstm in _pair(num_layers=2):
        model = nn.ModuleDict({"lstm": lstm})
        model["lstm"].bias_ih_l1 = model["lstm"].bias_ih_l0
        pair.append(model["lstm"])
    _assert_same(*pair)
    bias = torch.randn(4 * H, dtype=torch.float64, requires_grad=True)
    x, results = _input(), []
    for module in pair:
        y = torch.func.functional_call(module, {"bias_ih_l0": bias}, (x,), tie_weights=True)[0]
        results.append((y, *torch.autograd.grad(y.sum(), bias)))
    torch.testing.assert_close(*results, **TOLERANCE)
    assert not torch.allclose(results[0][0], pair[0](x)[0])


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "foreach AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimisers(name):
    ours, torchs = _pair(num_layers=2)
    x = _input()
    for module in (ours, torchs):
        optimizer = OPTIMIZERS[name](module.parameters())

        def closure(module=module, optimizer=optimizer):
            optimizer.zero_grad()
            loss = module(x)[0].sin().sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
    torch.testing.assert_close(
        list(ours.parameters()), list(torchs.parameters()), rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize(
    "options", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}], ids=["mean", "exponential"]
)
def test_averages_of_weights(options):
    averages = []
    x = _input()
    for module in _pair():
        average = AveragedModel(module, **options)
        for factor in (1, 2, 3):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(factor)
            average.update_parameters(module)
        averages.append(average(x)[0])
    torch.testing.assert_close(*averages, **TOLERANCE)


def test_half_and_back():
    ours, torchs = _pair(num_layers=2)
    for change in (nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.double):
        assert change(ours) is ours
        change(torchs)
        dtype = ours.weight_hh_l1.dtype
        assert dtype == torchs.weight_hh_l1.dtype
        x = _input().to(dtype)
        torch.testing.assert_close(ours(x)[0], torchs(x)[0], rtol=0.02, atol=0.02)
    _assert_same(ours, torchs)


@pytest.mark.parametrize("layout", ["transposed", "expanded", "gaps", "shifted"])
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_of_any_memory_layout(layout, frozen):
    """No copy of the user's weights, and no warning."""
    torch.set_num_threads(1)
    ours, torchs = _pair(num_layers=2, bidirectional=True)
    for name, weight in list(ours.named_parameters()):
        value = weight.detach()
        if layout == "transposed":
            value = value.t().contiguous().t()
        elif layout == "expanded":
            value = value[:1].expand_as(value)
        elif layout == "gaps":
            value = torch.stack([value, value], dim=-1)[..., 0]
        else:  # a different offset for each, as in one flat buffer of odd sizes
            flat = torch.zeros(value.numel() + len(name), dtype=value.dtype)
            value = flat[len(name) :].view_as(value).copy_(value)
        setattr(ours, name, nn.Parameter(value))
        setattr(torchs, name, nn.Parameter(value.clone(memory_format=torch.contiguous_format)))
    x = torch.randn(20, B, I, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if frozen:
            ours.freeze()
            with torch.no_grad():
                y = ours(x)[0]
        else:
            y = ours(x)[0]
        mine = _gradients(ours, x)
    torch.testing.assert_close(y, torchs(x)[0], **TOLERANCE)
    torch.testing.assert_close(mine, _gradients(torchs, x), **TOLERANCE)
