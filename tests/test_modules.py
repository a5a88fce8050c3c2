"""``fastlstm.LSTM`` and ``LSTMCell`` are ``nn.LSTM`` and ``nn.LSTMCell``, with peepholes."""

import copy

import pytest
import torch
from helpers import DUPLICATES, assert_close, skip_unless_supported
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import backends

T, B, I, H = 5, 4, 3, 6
LENGTHS = torch.tensor([3, 5, 1, 4])
TOLERANCE = 1e-10  # relative, in float64: far above rounding, far below any mistake
CONFIGURATIONS = [
    {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first}
    for num_layers in (1, 2, 3)
    for bidirectional in (False, True)
    for batch_first in (False, True)
]


def _double(*size):
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


def _pair(cls, *args, backend="auto", **kwargs):
    """A torch module in float64 and ours with the same parameters."""
    torchs = getattr(nn, cls)(*args, dtype=torch.float64, **kwargs)
    ours = getattr(fastlstm, cls)(*args, dtype=torch.float64, backend=backend, **kwargs)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def _states(module, *batch):
    D = 2 if module.bidirectional else 1
    P = module.proj_size or module.hidden_size
    return tuple(_double(module.num_layers * D, *batch, size) for size in (P, module.hidden_size))


def _results(module, input, hx, *, leaves, packed=None, **kwargs):
    """Outputs, states and all gradients by name; ``packed`` are the lengths to pack by."""
    if packed is not None:
        input = pack_padded_sequence(input, packed, module.batch_first, enforce_sorted=False)
    output, (hy, cy) = module(input, hx, **kwargs)
    if isinstance(output, PackedSequence):
        output = pad_packed_sequence(output, module.batch_first, total_length=T)[0]
    leaves = leaves | dict(module.named_parameters())
    loss = output.sin().sum() + hy.cos().sum() + (cy * cy).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"d{name}": value for name, value in zip(leaves, gradients, strict=True)}
    return {"output": output, "hy": hy, "cy": cy} | named


def _input(module, *, batched=True):
    size = [B, T] if module.batch_first else [T, B]
    return _double(*(size if batched else [T]), module.input_size)


def _leaves(input, hx):
    return {"input": input} | ({} if hx is None else {"hx": hx[0], "cx": hx[1]})


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("layout", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_equals_torch(configuration, bias, proj_size, layout, given):
    ours, torchs = _pair("LSTM", I, H, bias=bias, proj_size=proj_size, **configuration)
    input = _input(ours, batched=layout != "unbatched")
    hx = _states(ours, *([] if layout == "unbatched" else [B])) if given else None
    options = {"leaves": _leaves(input, hx), "packed": LENGTHS if layout == "packed" else None}
    mine, theirs = (_results(module, input, hx, **options) for module in (ours, torchs))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_backend_equals_torch(backend, bidirectional, proj_size, layout):
    ours, torchs = _pair(
        "LSTM", I, H, 2, bidirectional=bidirectional, proj_size=proj_size, backend=backend
    )
    skip_unless_supported(backend, ours.problem())
    input, hx = _input(ours), _states(ours, B)
    options = {"leaves": _leaves(input, hx), "packed": LENGTHS if layout == "packed" else None}
    mine, theirs = (_results(module, input, hx, **options) for module in (ours, torchs))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_output_is_packed_as_torchs(backend, enforce_sorted):
    ours, torchs = _pair("LSTM", I, H, 2, bidirectional=True, backend=backend)
    lengths = LENGTHS.sort(descending=True)[0] if enforce_sorted else LENGTHS
    packed = pack_padded_sequence(_input(ours), lengths, enforce_sorted=enforce_sorted)
    mine, theirs = ours(packed)[0], torchs(packed)[0]
    assert type(mine) is PackedSequence
    for field, expected in theirs._asdict().items():
        torch.testing.assert_close(getattr(mine, field), expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_lengths_equal_a_packed_sequence(backend, batch_first):
    ours, torchs = _pair(
        "LSTM", I, H, 2, bidirectional=True, batch_first=batch_first, backend=backend
    )
    input, hx = _input(ours), _states(ours, B)
    leaves = _leaves(input, hx)
    mine = _results(ours, input, hx, leaves=leaves, lengths=LENGTHS)
    assert_close(mine, _results(torchs, input, hx, leaves=leaves, packed=LENGTHS), TOLERANCE)


def test_batch_of_none_as_torch():
    ours, torchs = _pair("LSTM", I, H, 2, bidirectional=True)
    input = _double(T, 0, I)
    (y, (hy, cy)), (y_torch, states_torch) = ours(input), torchs(input)
    assert [s.shape for s in (y, hy, cy)] == [s.shape for s in (y_torch, *states_torch)]


@pytest.mark.parametrize("peephole", [False, True])
def test_batch_of_none_has_gradients_of_zero(backend, peephole):
    module = fastlstm.LSTM(I, H, peephole=peephole, backend=backend)
    skip_unless_supported(backend, module.problem())
    module(torch.randn(T, 0, I))[0].sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


def test_same_initial_parameters_from_the_same_seed():
    for options in ({}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}):
        torch.manual_seed(7)
        theirs = nn.LSTM(I, H, **options).state_dict()
        torch.manual_seed(7)
        mine = fastlstm.LSTM(I, H, **options).state_dict()
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_state_dict_both_ways():
    options = {"num_layers": 2, "bidirectional": True}
    ours, torchs = fastlstm.LSTM(I, H, **options), nn.LSTM(I, H, **options)
    torchs.load_state_dict(ours.state_dict(), strict=True)
    fresh = fastlstm.LSTM(I, H, **options)
    fresh.load_state_dict(torchs.state_dict(), strict=True)
    x = torch.randn(T, B, I)
    torch.testing.assert_close(fresh(x)[0], torchs(x)[0])
    with pytest.raises(RuntimeError, match="weight_ch_l0"):
        torchs.load_state_dict(fastlstm.LSTM(I, H, **options, peephole=True).state_dict())


def test_to_torch_and_back():
    options = {"bias": False, "batch_first": True, "dropout": 0.25, "proj_size": 2}
    ours = fastlstm.LSTM(I, H, 2, bidirectional=True, dtype=torch.float64, **options).eval()
    torchs = ours.to_torch()
    again = fastlstm.LSTM.from_torch(torchs, backend="torch")
    assert type(torchs) is nn.LSTM and not torchs.training and not again.training
    assert again.backend == "torch" and again.dropout == 0.25
    x = _input(ours)
    for other in (torchs, again):
        torch.testing.assert_close(other(x)[0], ours(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    torchs.weight_ih_l0.data.zero_()
    assert ours.weight_ih_l0.abs().min() > 0  # copies, not views
    with pytest.raises(ValueError, match="peephole"):
        fastlstm.LSTM(I, H, peephole=True).to_torch()


def test_dropout():
    module = fastlstm.LSTM(I, 50, 2, dropout=0.4, dtype=torch.float64)
    x = _input(module)

    def run(seed):
        torch.manual_seed(seed)
        return module(x)[0]

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    torch.testing.assert_close(
        module.eval()(x)[0], module.to_torch()(x)[0], rtol=TOLERANCE, atol=TOLERANCE
    )


def test_dropout_zeroes_that_share_of_what_layers_pass_on(monkeypatch):
    seen = []
    original = backends.reference.lstm_sequence

    def lstm_sequence(x, *arguments):
        seen.append(x)
        return original(x, *arguments)

    monkeypatch.setattr(backends.reference, "lstm_sequence", lstm_sequence)
    module = fastlstm.LSTM(I, 200, 3, dropout=0.4, backend="reference")
    with torch.no_grad():
        output, _ = module(torch.randn(T, B, I))
        whole = seen.copy()
        seen.clear()
        module.eval()(torch.randn(T, B, I))
    assert [(x == 0).any().item() for x in (whole[0], output)] == [False, False]
    for x in whole[1:]:
        assert (x == 0).double().mean().item() == pytest.approx(0.4, abs=0.04)
    assert not any((x == 0).any() for x in seen)


def test_dropout_keeps_the_mean():
    module = fastlstm.LSTM(I, 4, 2, dropout=0.5)
    for name, parameter in module.named_parameters():  # a second layer that is nearly linear
        parameter.data.mul_(0.02 if name.endswith("l1") else 1)
    with torch.no_grad():
        x = torch.randn(1, 1, I).expand(1, 20000, I)
        mean = module(x)[0].mean(1)
        expected = module.eval()(x)[0].mean(1)
    deviation = module.train()(x)[0].std(1) / 20000**0.5
    assert ((mean - expected).abs() < 5 * deviation + 1e-6).all()


def test_peephole_parameters():
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, peephole=True)
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    plain = [name for name, _ in fastlstm.LSTM(I, H, 2, bidirectional=True).named_parameters()]
    names = [name for name, _ in module.named_parameters()]
    assert names == plain + [f"weight_ch_{suffix}" for suffix in suffixes]
    for suffix in suffixes:
        weight_ch = getattr(module, f"weight_ch_{suffix}")
        assert weight_ch.shape == (3 * H,)
        assert 0 < weight_ch.abs().max() <= H**-0.5
    assert not hasattr(fastlstm.LSTM(I, H), "weight_ch_l0")


def _by_hand(module, x, hx):
    """One layer, one direction, gate by gate."""
    h, c = hx[0][0], hx[1][0]
    w_ci, w_cf, w_co = module.weight_ch_l0.split(module.hidden_size)
    outputs = []
    for x_t in x:
        gates = x_t @ module.weight_ih_l0.t() + module.bias_ih_l0
        gates = gates + h @ module.weight_hh_l0.t() + module.bias_hh_l0
        a_i, a_f, a_g, a_o = gates.split(module.hidden_size, dim=1)
        c_next = torch.sigmoid(a_f + w_cf * c) * c + torch.sigmoid(a_i + w_ci * c) * a_g.tanh()
        h = torch.sigmoid(a_o + w_co * c_next) * c_next.tanh()
        c = c_next
        outputs.append(h)
    return torch.stack(outputs), (h[None], c[None])


def test_peephole_lstm_equals_a_loop_by_hand(backend):
    module = fastlstm.LSTM(I, H, peephole=True, dtype=torch.float64, backend=backend)
    skip_unless_supported(backend, module.problem())
    input, hx = _input(module), _states(module, B)

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, input, hx):
            return _by_hand(self.module, input, hx)

        def named_parameters(self):
            return self.module.named_parameters()

    leaves = _leaves(input, hx)
    mine = _results(module, input, hx, leaves=leaves)
    assert_close(mine, _results(ByHand(), input, hx, leaves=leaves), TOLERANCE)


def test_zero_peepholes_change_nothing():
    ours, torchs = fastlstm.LSTM(I, H, 2, peephole=True), nn.LSTM(I, H, 2)
    torchs.load_state_dict({k: v for k, v in ours.state_dict().items() if "_ch_" not in k})
    x = torch.randn(T, B, I)
    assert not torch.allclose(ours(x)[0], torchs(x)[0])
    for name, parameter in ours.named_parameters():
        if "_ch_" in name:
            parameter.data.zero_()
    torch.testing.assert_close(ours(x)[0], torchs(x)[0])


def test_peepholes_learn():
    """A teacher that differs from the student by its peepholes only is found again."""
    teacher = fastlstm.LSTM(I, 4, peephole=True)
    student = copy.deepcopy(teacher)
    nn.init.zeros_(student.weight_ch_l0)
    teacher.weight_ch_l0.data.mul_(3)
    optimizer = torch.optim.Adam([student.weight_ch_l0], lr=0.1)
    x = 2 * torch.randn(12, 16, I)
    target = teacher(x)[0].detach()
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(student(x)[0], target).backward()
        optimizer.step()
    torch.testing.assert_close(student.weight_ch_l0, teacher.weight_ch_l0, rtol=0.05, atol=0.05)


def _cell_results(cell, input, hx):
    hy, cy = cell(input, hx)
    leaves = _leaves(input, hx) | dict(cell.named_parameters())
    gradients = torch.autograd.grad(hy.sin().sum() + cy.cos().sum(), list(leaves.values()))
    return {"hy": hy, "cy": cy} | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("batch", [(), (B,), (0,)], ids=["1-D", "2-D", "empty"])
@pytest.mark.parametrize("bias", [False, True])
def test_cell_equals_torch(backend, bias, batch, given):
    ours, torchs = _pair("LSTMCell", I, H, bias=bias, backend=backend)
    input = _double(*batch, I)
    hx = (_double(*batch, H), _double(*batch, H)) if given else None
    mine, theirs = (_cell_results(cell, input, hx) for cell in (ours, torchs))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("bias", [False, True])
def test_peephole_cell_is_one_step_of_the_lstm(backend, bias):
    options = {"bias": bias, "peephole": True, "dtype": torch.float64, "backend": backend}
    cell, module = fastlstm.LSTMCell(I, H, **options), fastlstm.LSTM(I, H, **options)
    skip_unless_supported(backend, cell.problem())
    module.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    input, hx = _double(B, I), (_double(B, H), _double(B, H))
    _, (hy, cy) = module(input[None], (hx[0][None], hx[1][None]))
    found = _cell_results(cell, input, hx)
    assert_close({k: found[k] for k in ("hy", "cy")}, {"hy": hy[0], "cy": cy[0]}, TOLERANCE)
    leaves = [input, *hx, *module.parameters()]
    expected = torch.autograd.grad(hy.sin().sum() + cy.cos().sum(), leaves)
    for mine, theirs in zip(list(found.values())[2:], expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE)


def test_cell_parameters_and_seed():
    torch.manual_seed(7)
    theirs = nn.LSTMCell(I, H).state_dict()
    torch.manual_seed(7)
    mine = fastlstm.LSTMCell(I, H).state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert fastlstm.LSTMCell(I, H, peephole=True).weight_ch.shape == (3 * H,)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.LSTMCell])
@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_copies_are_equal_and_independent(duplicate, cls, peephole):
    module = cls(I, H, peephole=peephole, backend="cpu")
    again = duplicate(module)
    x = torch.randn(*([T, B] if cls is fastlstm.LSTM else [B]), I)
    assert repr(again) == repr(module)
    assert torch.equal(again(x)[0], module(x)[0])
    for parameter in again.parameters():
        parameter.data.zero_()
    assert not torch.equal(again(x)[0], module(x)[0])


@pytest.mark.parametrize("peephole", [False, True])
def test_moves_between_dtypes(peephole):
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, peephole=peephole)
    x = torch.randn(T, B, I)
    expected = module(x)[0]
    torch.testing.assert_close(module.double()(x.double())[0].float(), expected)
    assert all(parameter.dtype == torch.float64 for parameter in module.parameters())
    for dtype in (torch.bfloat16, torch.float16):
        found = module.to(dtype)(x.to(dtype))[0]
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("peephole", [False, True])
def test_bfloat16_trains(peephole):
    module = fastlstm.LSTM(I, H, peephole=peephole, dtype=torch.bfloat16)
    module(torch.randn(T, B, I, dtype=torch.bfloat16))[0].sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(g.dtype == torch.bfloat16 and g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("cls", [fastlstm.LSTM, fastlstm.LSTMCell])
def test_autocast(cls, peephole):
    """bfloat16 multiplications, gradients in the parameters' own dtype, close to float32's."""
    module = cls(I, H, peephole=peephole)
    x = torch.randn(*([T, B] if cls is fastlstm.LSTM else [B]), I)

    def run():
        output, state = module(x)
        cy = state[1] if cls is fastlstm.LSTM else state
        loss = output.float().sin().sum() + cy.sum()
        gradients = torch.autograd.grad(loss, module.parameters())
        return [output.float(), cy.float(), *gradients]

    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        found = run()
    assert all(gradient.dtype == torch.float32 for gradient in found[2:])
    for mine, exact in zip(found, expected, strict=True):
        assert (mine - exact).abs().max() <= 0.05 * exact.abs().max()
    assert not torch.equal(found[0], expected[0])


def test_repr():
    assert repr(fastlstm.LSTM(3, 4, num_layers=2)) == repr(nn.LSTM(3, 4, num_layers=2))
    assert repr(fastlstm.LSTMCell(3, 4)) == repr(nn.LSTMCell(3, 4))
    assert repr(fastlstm.LSTM(3, 4, peephole=True)) == "LSTM(3, 4, peephole=True)"
    assert repr(fastlstm.LSTM(3, 4, backend="cpu")) == "LSTM(3, 4, backend='cpu')"
    assert repr(fastlstm.LSTMCell(3, 4, peephole=True)) == "LSTMCell(3, 4, peephole=True)"
    assert repr(fastlstm.LSTMCell(3, 4, backend="cpu")) == "LSTMCell(3, 4, backend='cpu')"


def test_replaced_weights_are_honoured():
    ours, torchs = _pair("LSTM", I, H)
    x = _input(ours)
    replacement = _double(4 * H, H)
    for module in (ours, torchs):
        module.weight_hh_l0 = nn.Parameter(replacement.detach().clone())
    torch.testing.assert_close(ours(x)[0], torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    del ours.weight_hh_l0
    ours.weight_hh_l0 = 2 * replacement  # a plain tensor, as a hypernetwork sets
    torchs.weight_hh_l0.data.mul_(2)
    y = ours(x)[0]
    torch.testing.assert_close(y, torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    (gradient,) = torch.autograd.grad(y.sum(), replacement)
    assert gradient.abs().max() > 0


def test_parametrized_weights():
    ours, torchs = _pair("LSTM", I, H)
    x = _input(ours)
    expected = torchs(x)[0]
    weight_norm(ours, "weight_hh_l0")
    torch.testing.assert_close(ours(x)[0], expected, rtol=TOLERANCE, atol=TOLERANCE)
    ours.parametrizations.weight_hh_l0.original0.data.mul_(2)
    torchs.weight_hh_l0.data.mul_(2)
    torch.testing.assert_close(ours(x)[0], torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    ours(x)[0].sum().backward()
    assert ours.parametrizations.weight_hh_l0.original1.grad.abs().max() > 0


def test_functional_call_and_in_place_updates_are_honoured():
    ours, torchs = _pair("LSTM", I, H)
    x = _input(ours)
    doubled = {name: 2 * value for name, value in ours.state_dict().items()}
    before = ours(x)[0]
    found = torch.func.functional_call(ours, doubled, (x,))[0]
    for module in (ours, torchs):
        for parameter in module.parameters():
            parameter.data.mul_(2)  # bumps no version counter: nothing may be cached by one
    torch.testing.assert_close(found, torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(ours(x)[0], torchs(x)[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert not torch.allclose(before, found)


@pytest.mark.parametrize("peephole", [False, True])
def test_backward_in_eval_mode(backend, peephole):
    module = fastlstm.LSTM(I, H, peephole=peephole, dtype=torch.float64, backend=backend)
    skip_unless_supported(backend, module.problem())
    x = _input(module)
    expected = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    found = torch.autograd.grad(module.eval()(x)[0].sum(), list(module.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_reserve_is_kept_for_training_only(monkeypatch):
    reserves = []
    original = backends.cpu.forward

    def forward(*args, **kwargs):
        results = original(*args, **kwargs)
        reserves.append(results[3].numel())
        return results

    monkeypatch.setattr(backends.cpu, "forward", forward)
    module = fastlstm.LSTM(I, H, backend="cpu")
    x = torch.randn(T, B, I)
    assert module(x)[0].requires_grad
    with torch.no_grad():
        assert not module(x)[0].requires_grad
    with torch.inference_mode():
        module(x)
    assert not module.requires_grad_(False)(x)[0].requires_grad
    assert reserves == [T * B * 5 * H, 0, 0, 0]


def test_gradients_accumulate_and_a_graph_can_be_kept():
    module = fastlstm.LSTM(I, H, peephole=True, backend="cpu")
    loss = module(torch.randn(T, B, I))[0].sin().sum()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in module.parameters()]
    loss.backward()
    for parameter, gradient in zip(module.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


@pytest.mark.parametrize("peephole", [False, True])
def test_meta_device(peephole):
    """Sizes without numbers, as nn.LSTM infers them."""
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, peephole=peephole, device="meta")
    output, (hy, cy) = module(torch.empty(T, B, I, device="meta"))
    assert output.shape == (T, B, 2 * H) and hy.shape == cy.shape == (4, B, H)
    cell = fastlstm.LSTMCell(I, H, peephole=peephole, device="meta")
    assert [state.shape for state in cell(torch.empty(B, I, device="meta"))] == [(B, H)] * 2
