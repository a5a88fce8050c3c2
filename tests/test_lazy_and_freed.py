"""Tensors with torch's negative bit, zero tensors without memory, and freed tensors.

Kernels take addresses. They must not lose a sign, and address 0 must not mean "not given".
"""

import pytest
import torch
from helpers import skip_unless_supported

import fastlstm
from fastlstm import lstm_sequence
from fastlstm.problem import Problem

T, B, I, H = 5, 3, 4, 6
TENSORS = ["input", "hx", "cx", "weight_ih", "bias_ih", "bias_hh", "weight_hh", "weight_ch"]
SIZES = {
    "input": (T, B, I),
    "hx": (2, B, H),
    "cx": (2, B, H),
    "weight_ih": (4 * H, I),
    "bias_ih": (4 * H,),
    "bias_hh": (4 * H,),
    "weight_hh": (4 * H, H),
    "weight_ch": (3 * H,),
}


def arguments():
    """The arguments of a call of two groups; lists have a tensor for each group."""
    one = ("input", "hx", "cx")
    return {
        name: torch.randn(size) if name in one else [torch.randn(size) for _ in range(2)]
        for name, size in SIZES.items()
    }


def changed(values, name, change):
    """The arguments with one of them changed; of a list, the second tensor."""
    value = values[name]
    new = [value[0], change(value[1])] if isinstance(value, list) else change(value)
    return values | {name: new}


def run(backend, values, train):
    leaves = {
        name: [v.requires_grad_(train) for v in value] if isinstance(value, list) else value
        for name, value in values.items()
    }
    with torch.set_grad_enabled(train):
        y, hy, cy = lstm_sequence(**leaves, reverse=[False, True], backend=backend)
        gradients = []
        if train:
            loss = y.sin().sum() + hy.sum() + cy.sum()
            weights = [w for name in TENSORS[3:] for w in leaves[name]]
            gradients = torch.autograd.grad(loss, weights)
    return [y, hy, cy, *gradients]


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TENSORS)
def test_negated_by_a_flag(fused_backend, name, train):
    """Such as ``imag`` of a conjugate; torch's own tests give such tensors to every op."""
    values = arguments()
    lazy = changed(values, name, lambda tensor: torch._neg_view(tensor.neg()))
    found, expected = (run(fused_backend, each, train) for each in (lazy, values))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["input", "hx", "cx"])
def test_zero_by_a_flag(fused_backend, name, train):
    values = arguments()
    lazy = changed(values, name, lambda tensor: torch._efficientzerotensor(tensor.shape))
    plain = changed(values, name, torch.zeros_like)
    found, expected = (run(fused_backend, each, train) for each in (lazy, plain))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("train", [False, True])
def test_part_of_what_is_zero_by_a_flag(fused_backend, train):
    """Its address is the offset in no memory, which is not 0."""
    values = arguments()
    lazy, plain = (
        values | {"hx": make((4, B, H))[2:], "cx": make((3, B, H))[1:]}
        for make in (torch._efficientzerotensor, torch.zeros)
    )
    found, expected = (run(fused_backend, each, train) for each in (lazy, plain))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["hx", "weight_hh"])
def test_part_of_freed_memory(fused_backend, name):
    """As FSDP frees a parameter that holds many."""

    def change(tensor):
        part = torch.stack([tensor, tensor])[1]
        part.untyped_storage().resize_(0)
        return part

    with pytest.raises(RuntimeError, match=r"freed|not allocated"):
        run(fused_backend, changed(arguments(), name, change), False)


@pytest.mark.parametrize("lazy", [torch._neg_view, lambda t: torch._efficientzerotensor(t.shape)])
@pytest.mark.parametrize("output", [0, 1, 2], ids=["dy", "dhy", "dcy"])
def test_gradients_that_arrive_in_a_flag(fused_backend, output, lazy):
    values = arguments()
    weight = values["weight_hh"][0].requires_grad_()
    outputs = lstm_sequence(**values, backend=fused_backend)
    arriving = lazy(torch.randn(outputs[output].shape))
    results = [
        torch.autograd.grad(outputs[output], weight, gradient, retain_graph=True)[0]
        for gradient in (arriving, arriving.clone().resolve_neg())
    ]
    assert torch.equal(*results)


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TENSORS)
def test_freed_memory_is_an_error(fused_backend, name, train):
    values = changed(arguments(), name, freed)
    with pytest.raises(RuntimeError, match=rf"{name}(\[1\])?: expected .* it was freed"):
        run(fused_backend, values, train)


@pytest.mark.parametrize("train", [False, True])
def test_freed_memory_of_a_dtype_that_is_computed_wider(train):
    values = {
        k: [w.half() for w in v] if isinstance(v, list) else v for k, v in arguments().items()
    }
    values = {k: v.half() if isinstance(v, torch.Tensor) else v for k, v in values.items()}
    with pytest.raises(RuntimeError, match=r"weight_hh\[1\]: expected .* it was freed"):
        run("cpu", changed(values, "weight_hh", freed), train)


@pytest.mark.parametrize("name", ["lengths", "reset"])
def test_freed_memory_of_what_says_where_rows_begin_and_end(fused_backend, name):
    """A reset without memory must not be taken for no reset."""
    options = {"lengths": torch.full((B,), T), "reset": torch.zeros(T, B, dtype=torch.bool)}
    device = torch.get_default_device().type
    problem = Problem(device, torch.float32, T, B, 2, H, I, has_reset=name == "reset")
    skip_unless_supported(fused_backend, problem)
    with pytest.raises(RuntimeError, match=r"freed|not allocated"):
        lstm_sequence(**arguments(), **{name: freed(options[name])}, backend=fused_backend)


def test_memory_that_is_freed_between_the_passes(fused_backend):
    """FSDP frees parameters after the forward pass, and restores them for the backward pass."""
    values = arguments()
    weight = values["weight_hh"][1].requires_grad_()
    y = lstm_sequence(**values, backend=fused_backend)[0]
    kept, storage = weight.detach().clone(), weight.untyped_storage()
    expected = torch.autograd.grad(y.sum(), weight, retain_graph=True)[0]
    size = storage.nbytes()
    storage.resize_(0)
    with pytest.raises(RuntimeError, match=r"weight_hh\[1\]: expected .* it was freed"):
        torch.autograd.grad(y.sum(), weight, retain_graph=True)
    storage.resize_(size)
    weight.data.copy_(kept)
    assert torch.equal(torch.autograd.grad(y.sum(), weight)[0], expected)


@pytest.mark.parametrize("kind", ["compiled", "exported", "traced"])
def test_programs(compiled, kind):
    """A recorded program learns at each call what its tensors are."""
    lstm = fastlstm.LSTM(I, H, peephole=True, backend="cpu").requires_grad_(False)
    x = torch.randn(T, B, I)
    program = {
        "compiled": lambda: compiled(lstm),
        "exported": lambda: torch.export.export(lstm, (x,)).module(),
        "traced": lambda: torch.jit.trace(lstm, (x,)),
    }[kind]()
    expected = lstm(-x)[0]
    assert torch.equal(program(-x)[0], expected)
    assert torch.equal(program(torch._neg_view(x))[0], expected)
    with pytest.raises(RuntimeError, match=r"freed|not allocated|out of bounds"):
        program(freed(x))


def test_modules():
    """Each parameter of each module, by name."""
    for module, x in (
        (fastlstm.LSTM(I, H, 2, peephole=True), torch.randn(T, B, I)),
        (fastlstm.LSTMCell(I, H, peephole=True), torch.randn(B, I)),
    ):
        for parameter in module.parameters():
            size = parameter.untyped_storage().nbytes()
            parameter.untyped_storage().resize_(0)
            with pytest.raises(RuntimeError, match="it was freed"):
                module(x)
            parameter.untyped_storage().resize_(size)
            parameter.data.zero_()
        module(x)
