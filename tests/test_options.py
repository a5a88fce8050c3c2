"""The options of LSTM and LSTMCell: their equations, what combines, and what is refused."""

import itertools
from functools import partial

import pytest
import torch
from option_cases import OPTIONS, OTHERS, B, H, I, T, make
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import masks
from fastlstm.nn.convert import HasteNorms, from_kernels

REFUSED = {
    frozenset(pair)
    for pair in [
        ("layer_norm", "num_heads"),
        ("forget_bias", "bias"),
        ("hidden_size", "proj_size"),
        ("hidden_size", "num_heads"),
        ("hidden_size", "learn_initial_state"),
    ]
}
PAIRS = [
    pair
    for pair in itertools.combinations([*OPTIONS, *OTHERS], 2)
    if pair[0] in OPTIONS and frozenset(pair) not in REFUSED
]


def _flat(outputs):
    """The tensors of a result, in order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    return [tensor for each in outputs for tensor in _flat(each)]


def _seeded(module, names, x, *parameters):
    """The outputs of the module with these parameters, with the masks of one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        values = dict(zip(names, parameters, strict=True))
        return tuple(_flat(torch.func.functional_call(module, values, (x,))))


def _function(module, T=T):
    names, parameters = zip(*module.named_parameters(), strict=True)
    size = (T, B, module.input_size)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    parameters = [p.detach().requires_grad_() for p in parameters]
    return partial(_seeded, module, names), (x, *parameters)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_pair_equals_the_reference(pair, training):
    """Outputs and gradients of the fastest backend, and of the reference, from the same masks."""
    found = []
    for backend in ("auto", "reference"):
        run, arguments = _function(make(pair, backend=backend).train(training))
        torch.manual_seed(2)
        x = torch.randn_like(arguments[0], requires_grad=True)
        outputs = run(x, *arguments[1:])
        loss = sum((output * torch.randn_like(output)).sum() for output in outputs)
        found.append((*outputs, *torch.autograd.grad(loss, (x, *arguments[1:]))))
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


# All pairs take four minutes.
SLOW = [pytest.param(p, marks=() if i % 9 == 0 else pytest.mark.slow) for i, p in enumerate(PAIRS)]


@pytest.mark.parametrize("pair", SLOW, ids="-".join)
def test_gradients_of_both_orders(pair):
    size = {} if "hidden_size" in pair else {"hidden_size": 4}
    run, arguments = _function(make(pair, input_size=2, **size), T=3)
    assert torch.autograd.gradcheck(run, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, arguments, fast_mode=True)


def _haste(x, kernel, recurrent_kernel, bias, norms, zoneout, mask):
    """Haste's LayerNormLSTM, written out: gates i, g, f, o; zoneout of h by a mask."""

    def norm(z, gain):
        mean, variance = z.mean(-1, keepdim=True), z.var(-1, keepdim=True, correction=0)
        return (z - mean) / (variance + 1e-5).sqrt() * gain

    h = c = x.new_zeros(B, H)
    outputs = []
    for t in range(T):
        z = norm(x[t] @ kernel, norms.gamma[0]) + norm(h @ recurrent_kernel, norms.gamma[1])
        i, g, f, o = (z + bias).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        new = o.sigmoid() * (norm(c, norms.gamma_h) + norms.beta_h).tanh()
        keep = zoneout if mask is None else mask[t]
        h = keep * h + (1 - keep) * new
        outputs.append(h)
    return torch.stack(outputs)


@pytest.mark.parametrize("training", [True, False])
def test_layer_norm_and_zoneout_are_those_of_haste(training):
    def randn(*size):
        return torch.randn(*size, dtype=torch.float64)

    kernel, recurrent_kernel, bias = randn(I, 4 * H), randn(H, 4 * H), randn(4 * H)
    norms = HasteNorms(randn(2, 4 * H), randn(H), randn(H))
    ours = fastlstm.LSTM(I, H, layer_norm=True, zoneout=(0.25, 0.0), dtype=torch.float64)
    state = from_kernels(kernel, recurrent_kernel, bias, gate_order="igfo", norms=norms)
    ours.load_state_dict(state)
    ours.train(training)
    x = randn(T, B, I)
    torch.manual_seed(5)
    y = ours(x)[0]
    torch.manual_seed(5)
    mask = masks._share_kept((T, B, 1, H), 0.25, x, True)[:, :, 0] if training else None
    if training:
        assert set(mask.unique().tolist()) == {0.0, 1.0}
    truth = _haste(x, kernel, recurrent_kernel, bias, norms, 0.25, mask)
    torch.testing.assert_close(y, truth, rtol=1e-10, atol=1e-12)


def test_masks_are_the_same_in_all_steps_of_a_sequence():
    """With W_hh = identity blocks and saturated gates, h shows which units were dropped."""
    ones = masks.drop_between_layers(torch.ones(T, B, 64), 0.0, 0.5, None, B)
    assert torch.equal(ones, ones[:1].expand(T, -1, -1))
    assert set(ones.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(ones[0, 0], ones[0, 1])  # rows differ
    batch_sizes = torch.tensor([3, 3, 2, 1, 1])
    packed = masks.drop_between_layers(torch.ones(10, 64), 0.0, 0.5, batch_sizes, B)
    padded = pad_packed_sequence(torch.nn.utils.rnn.PackedSequence(packed, batch_sizes))[0]
    for b, length in enumerate([5, 3, 2]):
        assert torch.equal(padded[:length, b], padded[:1, b].expand(length, -1))


def test_recurrent_dropout_drops_h_on_its_way_to_the_gates():
    lstm = make(["recurrent_dropout"], num_layers=1, recurrent_dropout=1.0)
    x = torch.randn(T, B, I, dtype=torch.float64)
    dropped = lstm(x)[0]
    with torch.no_grad():
        lstm.weight_hh_l0.zero_()
    torch.testing.assert_close(dropped, lstm.eval()(x)[0])


def test_weight_dropout_drops_w_hh_and_gradients_arrive_at_it():
    lstm = make(["weight_dropout"], num_layers=1, weight_dropout=1.0)
    x = torch.randn(T, B, I, dtype=torch.float64)
    lstm(x)[0].sum().backward()
    assert lstm.weight_hh_l0.grad.count_nonzero() == 0
    lstm.cell_options = lstm.cell_options._replace(weight_dropout=0.5)
    lstm(x)[0].sum().backward()
    share = lstm.weight_hh_l0.grad.count_nonzero() / lstm.weight_hh_l0.numel()
    assert 0.3 < share < 0.7


def test_zoneout_of_everything_keeps_the_first_state():
    lstm = make(["zoneout"], num_layers=1, zoneout=(1.0, 1.0))
    h, c = torch.randn(2, 1, B, H, dtype=torch.float64)
    for training in (True, False):
        y, (h_n, c_n) = lstm.train(training)(torch.randn(T, B, I, dtype=torch.float64), (h, c))
        assert torch.equal(y, h.expand(T, -1, -1))
        assert torch.equal(h_n, h)
        assert torch.equal(c_n, c)


def test_cell_clip_bounds_every_cell_state():
    lstm = make(["cell_clip"], num_layers=1, cell_clip=0.01)
    *_, cells = lstm(torch.randn(T, B, I, dtype=torch.float64), return_all_cells=True)
    assert cells.abs().max() == 0.01


def test_forget_bias_is_where_it_starts_and_starts_again():
    lstm = make(["forget_bias"], bidirectional=True)
    for _ in range(2):
        for name, bias in lstm.named_parameters():
            if name.startswith("bias"):
                forget = bias.detach().chunk(4)[1]
                expected = 1.0 if "ih" in name else 0.0
                assert torch.equal(forget, torch.full_like(forget, expected)), name
        with torch.no_grad():
            for parameter in lstm.parameters():
                parameter.zero_()
        lstm.reset_parameters()
    cell = fastlstm.LSTMCell(I, H, forget_bias=2.0)
    assert cell.bias_ih.detach().chunk(4)[1].eq(2.0).all()


def test_gains_start_at_one_and_start_again():
    lstm = make(["layer_norm"])
    for _ in range(2):
        for name, parameter in lstm.named_parameters():
            if "_ln_" in name:
                assert parameter.eq(float(name.startswith("weight"))).all(), name
        lstm.reset_parameters()


def test_layers_of_different_sizes_are_a_stack_of_modules():
    lstm = make([], hidden_size=[6, 5, 7], num_layers=3, bidirectional=True, peephole=True)
    x = torch.randn(T, B, I, dtype=torch.float64)
    lengths = torch.tensor([2, 5, 3])
    y, (h_n, c_n) = lstm(x, lengths=lengths)
    assert [tuple(h.shape) for h in h_n] == [(2, B, 6), (2, B, 5), (2, B, 7)]
    below = x
    for layer, size in enumerate([6, 5, 7]):
        own = fastlstm.LSTM(
            below.shape[2], size, bidirectional=True, peephole=True, dtype=torch.float64
        )
        state = {k: v for k, v in lstm.state_dict().items() if f"_l{layer}" in k}
        own.load_state_dict({k.replace(f"_l{layer}", "_l0"): v for k, v in state.items()})
        below, (h, c) = own(below, lengths=lengths)
        assert torch.equal(h, h_n[layer])
        assert torch.equal(c, c_n[layer])
    assert torch.equal(below, y)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    again, (h_packed, _) = lstm(packed)
    torch.testing.assert_close(pad_packed_sequence(again)[0], y)
    torch.testing.assert_close(h_packed, h_n)
    single, (h, _) = lstm(x[:, 0], (h := [s[:, 0] for s in h_n], h))
    assert single.shape == (T, 14)
    assert h[2].shape == (2, 7)
    lstm.batch_first = True
    torch.testing.assert_close(lstm(x.transpose(0, 1), lengths=lengths)[0].transpose(0, 1), y)


def test_equal_sizes_are_one_size():
    lstm = fastlstm.LSTM(I, [H, H], num_layers=2)
    assert lstm.hidden_size == H
    assert lstm(torch.randn(T, B, I))[1][0].shape == (2, B, H)


@pytest.mark.parametrize("names", [("recurrent_dropout",), ("zoneout",), ("layer_norm", "zoneout")])
def test_vmap_grad_and_forward_mode(names):
    lstm = make(names)
    x = torch.randn(2, T, B, I, dtype=torch.float64)
    lstm.eval()
    together = torch.func.vmap(lambda x: lstm(x)[0])(x)
    for own, y in zip(x, together, strict=True):
        torch.testing.assert_close(y, lstm(own)[0])
    lstm.train()
    y = torch.func.vmap(lambda x: lstm(x)[0], randomness="different")(torch.stack([x[0], x[0]]))
    assert names == ("layer_norm",) or not torch.equal(y[0], y[1])
    lstm.eval()
    gradient = torch.func.grad(lambda x: lstm(x)[0].sum())(x[0])
    direct = x[0].clone().requires_grad_()
    lstm(direct)[0].sum().backward()
    torch.testing.assert_close(gradient, direct.grad)
    tangent = torch.func.jvp(lambda x: lstm(x)[0].sum(), (x[0],), (torch.ones_like(x[0]),))[1]
    torch.testing.assert_close(tangent, gradient.sum())


@pytest.mark.parametrize("training", [True, False])
def test_compiled(training):
    names = ("layer_norm", "recurrent_dropout", "zoneout", "cell_clip", "weight_dropout")
    lstm = make(names).train(training)
    x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    found = []
    for module in (lstm, compiled):
        torch.manual_seed(4)
        y, (h, c) = module(x)
        found.append(
            (y, h, c, *torch.autograd.grad((y + 1).square().sum(), [x, lstm.weight_hh_l0]))
        )
    for ours, truth in zip(*found, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-12)


def test_exported():
    lstm = make(("layer_norm", "zoneout", "cell_clip", "recurrent_dropout")).eval()
    x = torch.randn(T, B, I, dtype=torch.float64)
    program = torch.export.export(lstm, (x,))
    torch.testing.assert_close(program.module()(x), lstm(x))


def test_autocast():
    lstm = make(("layer_norm", "zoneout"), dtype=torch.float32)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = lstm(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in lstm.parameters())


def test_a_cell_is_a_step_of_the_sequence():
    options = {"layer_norm": True, "zoneout": (0.2, 0.3), "cell_clip": 0.3, "peephole": True}
    lstm = fastlstm.LSTM(I, H, **options, dtype=torch.float64).eval()
    cell = fastlstm.LSTMCell(I, H, **options, dtype=torch.float64).eval()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in lstm.state_dict().items()})
    x = torch.randn(T, B, I, dtype=torch.float64)
    state = None
    for t in range(T):
        state = cell(x[t], state)
    _, (h, c) = lstm(x)
    torch.testing.assert_close(state, (h[0], c[0]))
    assert torch.equal(cell(x[0, 0])[0], cell(x[0, :1])[0][0])


def test_lengths_resets_and_packed_sequences_agree():
    lstm = make(("layer_norm", "zoneout", "recurrent_dropout"), bidirectional=True).eval()
    x, lengths = torch.randn(T, B, I, dtype=torch.float64), torch.tensor([5, 2, 4])
    y, (h, c) = lstm(x, lengths=lengths)
    packed, states = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
    torch.testing.assert_close(pad_packed_sequence(packed)[0], y)
    torch.testing.assert_close(states, (h, c))
    reset = torch.zeros(T, B, dtype=torch.bool)
    reset[2] = True
    whole = lstm(x, reset=reset)[0]
    torch.testing.assert_close(whole, torch.cat([lstm(x[:2])[0], lstm(x[2:])[0]]), rtol=1, atol=1)
    forward = make(("layer_norm", "zoneout"), num_layers=1).eval()
    parts = torch.cat([forward(x[:2])[0], forward(x[2:])[0]])
    torch.testing.assert_close(forward(x, reset=reset)[0], parts)
