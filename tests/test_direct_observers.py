"""Direct calls beside modes, hooks, transforms, threads: whatever else takes part in a call."""

import contextlib
import threading

import pytest
import torch
from direct_calls import B, H, I, T, assert_same, is_direct, outcome
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastlstm


def _vmapped(module, x):
    return torch.func.vmap(module, in_dims=1)(x)


def _grad_of(module, x):
    return torch.func.grad(lambda x: module(x)[0].sum())(x)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


class _Ops(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


# Blocks in which no call is direct.
BLOCKS = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "function mode": _Functions,
    "dispatch mode": _Ops,
    "default device": lambda: torch.device("cpu"),
    "forward mode": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("is_cell", [False, True])
def test_blocks_that_watch(name, is_cell):
    module = fastlstm.LSTMCell(I, H) if is_cell else fastlstm.LSTM(I, H)
    x = torch.randn(B, I) if is_cell else torch.randn(T, B, I)
    with BLOCKS[name]():
        assert not is_direct(module, x)
        assert_same(module, x)
    assert is_direct(module, x)


@pytest.mark.parametrize("function", [_vmapped, _grad_of])
def test_functions_of_torch_func(function):
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    assert_same(function, module, x)


def _parametrized():
    return parametrizations.weight_norm(fastlstm.LSTM(I, H), "weight_hh_l0")


def _replaced():
    module = fastlstm.LSTM(I, H)
    module._flat_weights = [2 * weight for weight in module._flat_weights]
    return module


class _Doubled(fastlstm.LSTM):
    def weights(self):
        return [type(w)(*(None if p is None else 2 * p for p in w)) for w in super().weights()]


class _DoubledCell(fastlstm.LSTMCell):
    def weights(self):
        weights = super().weights()
        return type(weights)(*(None if p is None else 2 * p for p in weights))


# Modules whose calls are not direct.
MODULES = {
    "projection": lambda: fastlstm.LSTM(I, H, proj_size=2),
    "dropout": lambda: fastlstm.LSTM(I, H, 2, dropout=0.5),
    "initial state": lambda: fastlstm.LSTM(I, H, learn_initial_state=True),
    "another backend": lambda: fastlstm.LSTM(I, H, backend="reference"),
    "checkpoints": lambda: fastlstm.LSTM(I, H, checkpoint_every=2),
    "parametrized": _parametrized,
    "other weights": _replaced,
    "half": lambda: fastlstm.LSTM(I, H, dtype=torch.float16),
    "own weights": lambda: _Doubled(I, H),
    "own weights of a cell": lambda: _DoubledCell(I, H),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_the_general_path(name):
    module = MODULES[name]()
    dtype = torch.float16 if name == "half" else torch.float32
    x = torch.randn(*(() if isinstance(module, fastlstm.LSTMCell) else (T,)), B, I, dtype=dtype)
    assert not is_direct(module, x)

    def call():
        torch.manual_seed(0)
        return module(x)

    assert_same(call)


def test_other_inputs_of_the_general_path():
    module = fastlstm.LSTM(I, H)
    packed = pack_sequence([torch.randn(4, I), torch.randn(2, I)])
    assert not is_direct(module, packed)
    assert_same(lambda: module(packed)[0].data)
    x = torch.randn(T, B, I)
    assert_same(module, x, return_all_cells=True)
    assert_same(lambda: module(x, return_sequence=False)[1])


def test_a_subclassis_direct():
    class Named(fastlstm.LSTM):
        pass

    assert is_direct(Named(I, H), torch.randn(T, B, I))


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("keywords", [{}, {"bidirectional": True, "batch_first": True}])
def test_second_derivatives(num_layers, keywords):
    module = fastlstm.LSTM(I, H, num_layers, dtype=torch.float64, **keywords)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    states = torch.randn(2, len(module.weights()), T if "batch_first" in keywords else B, H)
    hx = tuple(states.double().requires_grad_())

    def call():
        y, (h, c) = module(x, hx)
        loss = y.sin().sum() + (h * c).sum()
        leaves = [x, *hx, *module.parameters()]
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        return (*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    general = outcome(call, "off")
    mine = outcome(call, "dlpack")
    for a, b in zip(mine, general, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_second_derivatives_of_a_cell():
    cell = fastlstm.LSTMCell(3, 2, peephole=True, dtype=torch.float64)
    for batch in ((), (2,)):
        x = torch.randn(*batch, 3, dtype=torch.float64, requires_grad=True)
        hx = tuple(torch.randn(2, *batch, 2, dtype=torch.float64).requires_grad_())
        assert torch.autograd.gradgradcheck(lambda x, h, c: cell(x, (h, c)), (x, *hx))


def test_batched_gradients():
    module, x = fastlstm.LSTM(I, H, 2), torch.randn(T, B, I, requires_grad=True)
    grads = torch.randn(4, T, B, H)

    def call():
        return torch.autograd.grad(module(x)[0], x, grads, is_grads_batched=True)

    general, mine = outcome(call, "off"), outcome(call, "dlpack")
    torch.testing.assert_close(mine[0], general[0])


@pytest.mark.parametrize("num_layers", [1, 2])
def test_flops_of_a_backward_pass(num_layers):
    module, x = fastlstm.LSTM(I, H, num_layers), torch.randn(T, B, I)

    def call():
        loss = module(x)[0].sum()
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        return (counter.get_total_flops(),)

    assert outcome(call, "dlpack") == outcome(call, "off")


def test_backward_inside_autocast():
    module, x = fastlstm.LSTM(I, H, 2), torch.randn(T, B, I, requires_grad=True)

    def call():
        y = module(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            return torch.autograd.grad(y.float().sum(), [x, *module.parameters()])

    assert_same(call)


def test_some_gradients_only():
    module, x = fastlstm.LSTM(I, H, 2, bidirectional=True), torch.randn(T, B, I)
    hx = tuple(torch.randn(2, 4, B, H))
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name.endswith("l1") and "bias" in name)
    for names in (["bias_ih_l1"], ["bias_hh_l1_reverse", "weight_ih_l0"], ["weight_hh_l1"]):
        for name in names:
            parameters[name].requires_grad_()
        leaves = [parameters[name] for name in names]
        for output in (lambda y, h, c: y, lambda y, h, c: h, lambda y, h, c: c[:1]):

            def call(output=output, leaves=leaves):
                y, (h, c) = module(x, hx)
                return torch.autograd.grad(output(y, h, c).sin().sum(), leaves, allow_unused=True)

            assert_same(call)


def test_hooks():
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I, requires_grad=True)
    module.register_full_backward_hook(lambda module, dinput, doutput: (2 * dinput[0],))
    module.weight_hh_l0.register_hook(lambda grad: 3 * grad)

    def call():
        module.zero_grad()
        (dx,) = torch.autograd.grad(module(x)[0].sum(), x)
        module(x)[0].sum().backward()
        return dx, module.weight_hh_l0.grad.clone()

    assert_same(call)


def test_saved_tensors():
    module, x, seen = fastlstm.LSTM(I, H), torch.randn(T, B, I), []

    def pack(tensor):
        seen.append(tensor.shape)
        return tensor.numpy(force=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        y = module(x)[0]
    assert is_direct(module, x)
    y.sum().backward()
    assert {(T, B, H), (T, B, 1, 5 * H), (T, B, I), (4 * H, H)} <= {*map(tuple, seen)}
    y = module(x)[0]
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_freed_parameters():
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    module.weight_hh_l0.untyped_storage().resize_(0)
    assert not is_direct(module, x)
    assert_same(module, x)


def test_outputs_are_ordinary_tensors():
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    for block in (torch.no_grad, torch.inference_mode, contextlib.nullcontext):
        with block():
            assert_same(module, x)
    with torch.no_grad():
        y = module(x)[0]
        assert y.resize_(100, 100).shape == (100, 100)


def test_default_dtype():
    module, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(module, x)
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_module_in_many_threads():
    module, inputs = fastlstm.LSTM(I, H, 2), torch.randn(8, 40, T, B, I)
    found = [None] * len(inputs)

    def work(number):
        found[number] = torch.stack([module(x)[0].detach() for x in inputs[number]])

    with torch.no_grad():
        expected = [torch.stack([module(x)[0] for x in some]) for some in inputs]
    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found, expected))
