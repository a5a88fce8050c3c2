"""``LSTM(num_heads=n)`` is an ``nn.LSTM`` whose weight_hh is block-diagonal, on every backend."""

import copy

import pytest
import torch
from dense_heads import Dense, H, N, heads
from helpers import assert_as_close_as_torch, assert_close, skip_unless_supported
from pairs import TOLERANCE, B, I, T, double, input_of, leaves_of, results, states_of
from torch import nn

import fastlstm
from fastlstm import _C, backends

LENGTHS = torch.tensor([3, 5, 1, 4])


@pytest.mark.parametrize("layout", ["padded", "packed", "unbatched", "batch_first"])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"num_layers": 2, "bidirectional": True}])
@pytest.mark.parametrize("num_heads", [1, 2, 6])
def test_equals_a_dense_lstm(num_heads, options, layout):
    module = heads(num_heads=num_heads, batch_first=layout == "batch_first", **options)
    batched = layout != "unbatched"
    input, hx = input_of(module, batched=batched), states_of(module, *[B] * batched)
    how = {"leaves": leaves_of(input, hx), "packed": LENGTHS if layout == "packed" else None}
    mine, theirs = (results(m, input, hx, **how) for m in (module, Dense(module)))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("options", [{}, {"peephole": True, "num_layers": 2}], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_backend_equals_a_dense_lstm(backend, bidirectional, options):
    module = heads(backend=backend, bidirectional=bidirectional, **options)
    skip_unless_supported(backend, module.problem())
    peephole = {"peephole": True, "backend": "reference"}
    dense = Dense(module, fastlstm.LSTM, **peephole) if options else Dense(module)
    input, hx = input_of(module), states_of(module, B)
    how = {"leaves": leaves_of(input, hx)}
    mine, theirs = (results(m, input, hx, **how) for m in (module, dense))
    assert_close(mine, theirs, TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(fused_backend, dtype):
    """Heads err at most twice as much as the reference in the same dtype."""
    module = fastlstm.LSTM(8, 64, num_heads=2, dtype=dtype, backend=fused_backend)
    skip_unless_supported(fused_backend, module.problem())
    x = torch.randn(6, 3, 8).to(dtype)
    exact = Dense(copy.deepcopy(module).double())
    plain = copy.deepcopy(module)
    plain.backend = "reference"
    found = [
        results(m, y.requires_grad_(), None, leaves={"input": y})
        for m, y in ((module, x.clone()), (plain, x.clone()), (exact, x.double()))
    ]
    assert_as_close_as_torch(*found)


OPTIONS = [
    {"lengths": LENGTHS},
    {"reset": torch.arange(T * B).view(T, B) % 5 == 2},
    {"lengths": LENGTHS, "reset": torch.arange(T * B).view(T, B) % 5 == 2},
]


@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=["lengths", "reset", "both"])
def test_lengths_resets_and_checkpoints(options, checkpoint_every):
    module = heads(
        num_layers=2, bidirectional=True, peephole=True, checkpoint_every=checkpoint_every
    )
    dense = Dense(module, fastlstm.LSTM, peephole=True, backend="reference")
    input, hx = input_of(module), states_of(module, B)
    how = {"leaves": leaves_of(input, hx)} | options
    mine, theirs = (results(m, input, hx, **how) for m in (module, dense))
    assert_close(mine, theirs, TOLERANCE)


def test_cells_of_every_step_and_no_sequence():
    module = heads(bidirectional=True)
    dense, x = Dense(module, fastlstm.LSTM), double(T, B, I)
    for ours, theirs in zip(
        module(x, return_all_cells=True), dense(x, return_all_cells=True), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert module(x, return_sequence=False)[0] is None


def test_learnt_initial_states():
    module = heads(num_layers=2, learn_initial_state=True)
    assert module.h_0.shape == module.c_0.shape == (2, H)
    for state in (module.h_0, module.c_0):
        nn.init.normal_(state)
    dense = Dense(module, fastlstm.LSTM, learn_initial_state=True)
    x = double(T, B, I)
    mine, theirs = (results(m, x, None, leaves={}) for m in (module, dense))
    assert_close(mine, theirs, TOLERANCE)


def test_dropout_drops_what_a_dense_lstm_drops():
    module = heads(num_layers=2, dropout=0.5)
    dense, x = Dense(module, fastlstm.LSTM, dropout=0.5), double(T, B, I)
    found = []
    for m in (module, dense):
        torch.manual_seed(1)
        found.append(m(x)[0])
    torch.testing.assert_close(*found)
    assert not torch.allclose(found[0], module(x)[0])


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_autocast(mode):
    module = heads(dtype=torch.float32)
    x = torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16), torch.set_grad_enabled(mode == "training"):
        y, (h, c) = module(x)
    assert {y.dtype, h.dtype, c.dtype} == {torch.bfloat16}
    torch.testing.assert_close(y.float(), Dense(module)(x)[0], rtol=0.05, atol=0.05)
    if mode == "training":
        y.float().sum().backward()
        assert module.weight_hh_l0.grad.shape == (4 * H, H // N)


def test_parameters():
    module, plain = fastlstm.LSTM(I, 12, 2, True, num_heads=4), fastlstm.LSTM(I, 12, 2, True)
    sizes = {name: tuple(p.shape) for name, p in plain.named_parameters()}
    sizes |= {name: (48, 3) for name in sizes if "weight_hh" in name}
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == sizes
    assert list(module.state_dict()) == list(plain.state_dict())
    for _ in range(2):
        assert all(0 < p.abs().max() <= 12**-0.5 for p in module.parameters())
        module.reset_parameters()
    assert all(ours is p for ours, p in zip(module._flat_weights, module.parameters(), strict=True))
    assert repr(module) == "LSTM(3, 12, num_layers=2, num_heads=4)"


def test_one_head_is_torchs():
    torch.manual_seed(2)
    ours = fastlstm.LSTM(I, H, 2, num_heads=1)
    torch.manual_seed(2)
    torchs = nn.LSTM(I, H, 2)
    assert repr(ours) == repr(torchs)
    for name, weight in torchs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weight)
    torchs.load_state_dict(ours.state_dict())
    ours.load_state_dict(torchs.state_dict())
    assert fastlstm.LSTM.from_torch(torchs).num_heads == 1
    model = nn.ModuleList([torchs])
    fastlstm.replace(model)
    assert model[0].num_heads == 1
    with fastlstm.patched():
        assert nn.LSTM(I, H).num_heads == 1


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"num_heads": 4}, ValueError, "num_heads: expected a divisor of hidden_size=6, got 4"),
        ({"num_heads": 0}, ValueError, "num_heads: expected at least 1, got 0"),
        ({"num_heads": -2}, ValueError, "num_heads: expected at least 1, got -2"),
        ({"num_heads": True}, TypeError, "num_heads: expected an int, got bool"),
        ({"num_heads": 2.0}, TypeError, "num_heads: expected an int, got float"),
        ({"num_heads": 2, "proj_size": 3}, ValueError, "num_heads: expected 1 with a projection"),
    ],
)
def test_refused(options, error, message):
    with pytest.raises(error, match=message):
        fastlstm.LSTM(I, H, **options)
    if "proj_size" not in options:
        weights = fastlstm.LSTM(I, H).weights()
        with pytest.raises(error, match=message):
            fastlstm.lstm(torch.randn(T, B, I), None, weights, **options)


def test_weights_of_other_heads_are_refused():
    x, weights = torch.randn(T, B, I), fastlstm.LSTM(I, H, num_heads=2).weights()
    with pytest.raises(RuntimeError, match=r"weight_hh: expected size \(24, 2\), got \(24, 3\)"):
        fastlstm.lstm(x, None, weights, num_heads=3)
    with pytest.raises(RuntimeError, match=r"weight_hh: expected size \(24, 6\), got \(24, 3\)"):
        fastlstm.lstm(x, None, weights)
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        fastlstm.LSTM(I, H, num_heads=2).load_state_dict(fastlstm.LSTM(I, H).state_dict())


@pytest.mark.parametrize("change", [{"num_heads": 1}, {"num_heads": 6}, {"hidden_size": 3}])
def test_an_attribute_changed_by_hand(change):
    """Neither path reads weights by the sizes that attributes promise."""
    module, x = heads(dtype=torch.float32), torch.randn(T, B, I)
    vars(module).update(change)
    with pytest.raises(RuntimeError, match=r"weight_.._l0: expected size"):
        module(x)


def test_direct_calls_turn_heads_down():
    module, x = heads(dtype=torch.float32), torch.randn(T, B, I)
    for num_heads, is_answered in ((N, False), (1, False)):
        module.num_heads = num_heads
        outputs = _C.direct_lstm(module, None, x.clone(), None, None, None, None, None)
        assert (outputs is not None) == is_answered
    plain = fastlstm.LSTM(I, H)
    with torch.no_grad():
        assert _C.direct_lstm(plain, None, x, None, None, None, None, None) is not None


def test_pytorchs_own_lstm_never_runs_heads():
    """Two heads are two groups, but no two directions."""
    module = heads(num_heads=2)
    assert "has no heads" in backends.torch.why_not(module.problem())
    with pytest.raises(ValueError, match="backend='torch' cannot run this LSTM: has no heads"):
        heads(num_heads=2, backend="torch")(double(T, B, I))


def test_explain():
    text = fastlstm.explain(heads(bidirectional=True))
    assert "T=100 B=32 G=6 H=2 float64 on cpu, 3 heads: runs on 'cpu'" in text
    assert "has no heads" in text and "num_heads=3" in text
