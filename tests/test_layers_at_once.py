"""Which LSTMs run their layers at once, and that nothing else about them changes."""

import re

import emulation
import pytest
import torch
from helpers import assert_close
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm.backends import select
from fastlstm.backends.cuda import wavefront
from fastlstm.problem import Problem

T, B, I, H, L = 4, 3, 5, 8, 2
TOLERANCE = 1e-5  # relative, in float32: above rounding, far below any mistake


@pytest.fixture
def kernels(monkeypatch):
    return emulation.install(monkeypatch, seed=3)


@pytest.fixture
def at_once(kernels, monkeypatch):
    """Layers run at once wherever they can; returns the list of passes that did."""
    went = []
    launch = wavefront._launch

    def noted(kernels, direction, *arguments):
        went.append(direction)
        return launch(kernels, direction, *arguments)

    monkeypatch.setattr(wavefront, "_launch", noted)
    monkeypatch.setattr(wavefront, "_why_slower", lambda *_: None)
    return went


def module(**options):
    return fastlstm.LSTM(I, H, num_layers=L, backend="cuda", **options)


def reference_of(lstm):
    """The same module in float64 on the reference backend."""
    options = {"peephole": lstm.peephole, "batch_first": lstm.batch_first, "bias": lstm.bias}
    options["learn_initial_state"] = lstm.learn_initial_state
    twin = fastlstm.LSTM(I, H, num_layers=L, backend="reference", dtype=torch.float64, **options)
    twin.load_state_dict(lstm.state_dict())
    return twin


def results(lstm, x, **options):
    """Outputs and gradients by name, of a call with an input of the module's dtype."""
    x = x.detach().to(lstm.weight_hh_l0.dtype).requires_grad_()
    y, (h, c) = lstm(x, **options)
    found = {"h": h, "c": c} | ({} if y is None else {"y": y})
    sum(value.sin().sum() for value in found.values()).backward()
    parameters = {f"d{name}": p.grad for name, p in lstm.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in (found | {"dx": x.grad} | parameters).items()}


@pytest.mark.parametrize(
    "options, size, how",
    [
        ({"peephole": True}, (T, B, I), {}),
        ({"batch_first": True, "bias": False}, (B, T, I), {}),
        ({"learn_initial_state": True}, (T, I), {}),
        ({"peephole": True}, (T, B, I), {"return_sequence": False}),
        ({}, (T, B, I), {"lengths": torch.tensor([4, 1, 3])}),
    ],
    ids=str,
)
def test_module(at_once, options, size, how):
    lstm, x = module(**options), torch.randn(size)
    assert_close(results(lstm, x, **how), results(reference_of(lstm), x, **how), TOLERANCE)
    assert at_once == ["forward", "backward"]


def test_inference_keeps_no_gates(at_once):
    lstm, x = module().eval(), torch.randn(T, B, I)
    with torch.no_grad():
        y, (h, c) = lstm(x)
        expected, states = reference_of(lstm)(x.double())
    found = {"y": y, "h": h, "c": c}
    assert_close(found, {"y": expected, "h": states[0], "c": states[1]}, TOLERANCE)
    assert not y.requires_grad and at_once == ["forward"]
    assert y.untyped_storage().nbytes() == y.nbytes  # outputs of other layers are not kept


def test_backward_one_after_the_other(at_once, monkeypatch):
    """If the model expects only the backward pass to be faster layer by layer."""
    monkeypatch.setattr(
        wavefront, "_why_slower", lambda _, way, *__: "slow" if way == "backward" else None
    )
    lstm, x = module(peephole=True), torch.randn(T, B, I)
    how = {"lengths": torch.tensor([4, 1, 3])}
    assert_close(results(lstm, x, **how), results(reference_of(lstm), x, **how), TOLERANCE)
    assert at_once == ["forward"]
    text = fastlstm.explain(lstm, x)
    assert "layers in one launch, backward one after the other: slow" in text


def test_only_what_is_asked_for_has_a_gradient(at_once):
    """One weight of one layer; one of the two biases, whose gradients are equal."""
    for name in ("weight_hh_l1", "weight_ih_l0", "bias_hh_l1"):
        lstm, x = module(), torch.randn(T, B, I)
        full = results(reference_of(lstm), x)
        lstm.requires_grad_(False).get_parameter(name).requires_grad_()
        lstm(x)[0].sin().sum().backward()
        asked = {n for n, p in lstm.named_parameters() if p.grad is not None}
        assert asked == {name} and full[f"d{name}"].shape == lstm.get_parameter(name).shape
    assert at_once == ["forward", "backward"] * 3


def test_bias_gradients_share_no_memory(at_once):
    lstm = module()
    lstm(torch.randn(T, B, I))[0].sum().backward()
    for layer in range(L):
        one, other = (getattr(lstm, f"bias_{of}_l{layer}").grad for of in ("ih", "hh"))
        assert torch.equal(one, other) and one.data_ptr() != other.data_ptr()


def test_padding_may_be_anything(at_once):
    lstm, x, lengths = module(), torch.randn(T, B, I), torch.tensor([4, 1, 3])
    past = torch.arange(T)[:, None] >= lengths
    clean = results(lstm, x.masked_fill(past[..., None], 0.0), lengths=lengths)
    lstm.zero_grad()
    assert_close(
        results(lstm, x.masked_fill(past[..., None], torch.nan), lengths=lengths), clean, 0.0
    )
    assert at_once == ["forward", "backward"] * 2


def test_second_derivative(at_once):
    lstm, x = module(peephole=True), torch.randn(T, B, I)

    def twice(lstm):
        z = x.detach().to(lstm.weight_hh_l0.dtype).requires_grad_()
        y, (h, _) = lstm(z)
        first = torch.autograd.grad((y.sin().sum() + h.cos().sum()), z, create_graph=True)[0]
        first.square().sum().backward()
        return {name: p.grad for name, p in lstm.named_parameters()} | {"x": z.grad}

    assert_close(twice(lstm), twice(reference_of(lstm)), 10 * TOLERANCE)
    assert at_once == ["forward", "backward"]  # of y, which the first derivative depends on too


def test_batched_gradients(at_once):
    lstm = module()
    x = torch.randn(T, B, I, requires_grad=True)
    y = lstm(x)[0]
    cotangents = torch.randn(3, *y.shape)
    (all_at_once,) = torch.autograd.grad(y, x, cotangents, retain_graph=True, is_grads_batched=True)
    each = [torch.autograd.grad(y, x, d, retain_graph=True)[0] for d in cotangents]
    assert_close({"x": all_at_once}, {"x": torch.stack(each)}, TOLERANCE)
    assert at_once == ["forward", *["backward"] * 3]


def test_retained_graph_gives_the_same_bits(at_once):
    lstm = module()
    y = lstm(torch.randn(T, B, I))[0].sum()
    first, second = (
        torch.autograd.grad(y, list(lstm.parameters()), retain_graph=True) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


def test_output_written_in_place_is_noticed(at_once):
    y, _ = module()(torch.randn(T, B, I))
    loss = y.square().sum()
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autocast(at_once):
    lstm, x = module(), torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = lstm(x)
    y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and lstm.weight_hh_l1.grad.dtype == torch.float32
    assert_close({"y": y}, {"y": reference_of(lstm)(x.double())[0]}, 0.02)
    assert at_once == ["forward", "backward"]


def watched(lstm, x):
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    with Mode():
        return lstm(x)


@pytest.mark.parametrize(
    "options, call",
    [
        ({"bidirectional": True}, lambda lstm, x: lstm(x)),
        ({"dropout": 0.5}, lambda lstm, x: lstm(x)),
        ({"checkpoint_every": 2}, lambda lstm, x: lstm(x)),
        ({}, lambda lstm, x: lstm(x[:1])),
        ({}, lambda lstm, x: lstm(x, return_all_cells=True)),
        ({}, lambda lstm, x: lstm(pack_padded_sequence(x, torch.tensor([4, 3, 1])))),
        ({}, lambda lstm, x: torch.func.vmap(lambda x: lstm(x)[0])(x[None])),
        ({}, lambda lstm, x: torch.func.grad(lambda x: lstm(x)[0].sum())(x)),
        ({}, watched),
    ],
    ids=[
        "bidirectional",
        "dropout",
        "checkpoint_every",
        "one step",
        "all cells",
        "packed",
        "vmap",
        "grad",
        "dispatch mode",
    ],
)
def test_what_goes_one_after_the_other(at_once, options, call):
    call(module(**options), torch.randn(T, B, I))
    assert at_once == []


def problem(**changes):
    sizes = {"T": 100, "B": 16, "G": 1, "H": 256, "I": 256, "L": 2, "requires_grad": True}
    return Problem("cpu", changes.pop("dtype", torch.bfloat16), **sizes | changes)


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"L": 4}, None),
        ({"H": 1024, "B": 1}, None),
        ({"L": 1}, "there is a single layer"),
        ({"G": 2}, "second direction"),
        ({"T": 1}, "single step"),
        ({"dropout": True}, "dropout"),
        ({"H": 1024, "B": 128}, "a model expects .* us for a step of all layers, "),
        ({"H": 1024, "L": 3}, "W_ih and W_hh of H=1024, L=3 in bfloat16 take"),
        ({"dtype": torch.float64}, "float64"),
    ],
    ids=str,
)
def test_reasons(kernels, changes, reason):
    found = select.why_not_stacked(fastlstm.backends.cuda, problem(**changes))
    assert found is None if reason is None else re.search(reason, found)


def test_explain(kernels):
    x = torch.randn(100, 16, 64)
    lstm = fastlstm.LSTM(64, 256, num_layers=2, peephole=True, dropout=0.5, backend="cuda")
    assert "layers one after the other: there is dropout between them" in fastlstm.explain(lstm, x)
    lstm.eval()
    assert "layers in one launch" in fastlstm.explain(lstm, x)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_plans_of_layers_are_their_own(kernels, direction):
    """They are ranked, and none is a plan of independent groups, nor the other way around."""
    shape, how = ("bfloat16", 9, 2, 200), {"products": "tf32"}
    device = kernels.device(0)
    lists = {
        layered: kernels.plans(direction, *shape, layered=layered, device=device, **how)[0]
        for layered in (False, True)
    }

    def ns(plan, layered):
        costs = kernels.costs()
        return kernels.step_ns(direction, *shape, layered=layered, plan=plan, costs=costs, **how)

    for layered, plans in lists.items():
        expected = [ns(plan, layered) for plan in plans]
        assert expected == sorted(expected) and len(plans) > 3
        assert all(plan["slices"] * plan["tiles"] * 2 <= 132 for plan in plans)
    of = f"of the {direction} pass of layers in bfloat16 B=9 G=2 H=200"
    with pytest.raises(ValueError, match=f"^plan: .*expected .* {of}, got "):
        ns(lists[False][0], True)
    with pytest.raises(ValueError, match=r"^plan: "):
        ns(lists[True][0], False)
