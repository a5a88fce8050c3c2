"""Under ``torch.autocast`` ours takes, computes and returns what torch's LSTMs do."""

import copy
import itertools

import pairwise
import pytest
import torch
from helpers import assert_as_close_as_torch, needs_bfloat16_of_torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm
from fastlstm import lstm_sequence

pytestmark = needs_bfloat16_of_torch
T, B, I, H, P = 5, 3, 4, 6, 2
CASTABLE = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {
    "plain": {},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "projected": {"proj_size": P, "num_layers": 2},
    "packed": {},
}


def pair(shape, backend="auto", **options):
    torchs = nn.LSTM(I, H, **SHAPES[shape], **options)
    return fastlstm.LSTM.from_torch(torchs, backend=backend), torchs


def arguments(shape, dtype, state_dtype, module):
    x = torch.randn(T, B, I).to(dtype)
    if shape == "packed":
        x = pack_padded_sequence(x, torch.tensor([5, 3, 1]))
    rows = module.num_layers * (2 if module.bidirectional else 1)
    if state_dtype is None:
        return x, None
    sizes = (module.proj_size or H, H)
    return x, tuple(torch.randn(rows, B, size).to(state_dtype) for size in sizes)


def outputs(module, x, hx, **options):
    y, (h, c) = module(x, hx, **options)
    return {"y": getattr(y, "data", y), "h": h, "c": c}


def dtypes(results):
    return {name: value.dtype for name, value in results.items()}


@pairwise.parametrize({"shape": SHAPES, "dtype": CASTABLE, "state_dtype": [None, *CASTABLE]})
def test_any_dtypes_that_autocast_casts(backend, shape, dtype, state_dtype):
    """Any dtypes of input, state and weights give torch's dtypes, and values as exact."""
    for weight_dtype in CASTABLE:
        ours, torchs = (module.to(weight_dtype) for module in pair(shape, backend))
        x, hx = arguments(shape, dtype, state_dtype, ours)
        try:
            with torch.autocast(x.data.device.type, torch.bfloat16):
                found, expected = outputs(ours, x, hx), outputs(torchs, x, hx)
        except ValueError as error:
            if "cannot run this LSTM" in str(error):
                pytest.skip(str(error))
            raise
        assert dtypes(found) == dtypes(expected)
        exact = nn.LSTM(I, H, **SHAPES[shape]).double()
        exact.load_state_dict(torchs.state_dict())
        x, hx = x.to(torch.float64), None if hx is None else tuple(s.double() for s in hx)
        assert_as_close_as_torch(
            *({name: value.bfloat16() for name, value in r.items()} for r in (found, expected)),
            outputs(exact, x, hx),
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_a_state_is_fed_back(backend, shape):
    """Each chunk of a stream starts from the state that the call before returned."""
    ours, torchs = pair(shape, backend, bias=False)
    if shape == "bidirectional" or (shape == "projected" and backend in ("cuda", "triton")):
        pytest.skip("no stream, or no projection")
    state = their_state = None
    for _ in range(4):
        x, _ = arguments("plain", torch.float32, None, ours)
        with torch.autocast(x.device.type, torch.bfloat16):
            y, state = ours(x, state)
            their_y, their_state = torchs(x, their_state)
    assert [s.dtype for s in (y, *state)] == [s.dtype for s in (their_y, *their_state)]
    for mine, theirs in zip((y, *state), (their_y, *their_state), strict=True):
        assert (mine.float() - theirs.float()).abs().max() < 0.02
    sum(s.float().sum() for s in (y, *state)).backward()  # through all four
    assert ours.weight_hh_l0.grad.dtype == torch.float32


@pytest.mark.parametrize("state_dtype", [None, *CASTABLE], ids=str)
@pytest.mark.parametrize("dtype", CASTABLE, ids=str)
def test_cell(backend, dtype, state_dtype):
    torchs = nn.LSTMCell(I, H)
    ours = fastlstm.LSTMCell(I, H, backend=backend)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(B, I).to(dtype)
    hx = None if state_dtype is None else tuple(torch.randn(2, B, H).to(state_dtype))
    with torch.autocast(x.device.type, torch.bfloat16):
        found, expected = ours(x, hx), torchs(x, hx)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert (mine.float() - theirs.float()).abs().max() < 0.03


@pytest.mark.parametrize("peephole", [False, True])
def test_a_cell_loses_no_small_change_of_its_state(fused_backend, peephole):
    """Each of a hundred steps adds less to c than bfloat16 can represent."""
    cell = fastlstm.LSTMCell(1, 1, peephole=peephole, backend=fused_backend)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.bias_ih.copy_(torch.tensor([-7.0, 20.0, 20.0, 0.0]))  # c grows by sigmoid(-7)
    state, x = (torch.zeros(1, 1), torch.ones(1, 1)), torch.zeros(1, 1)
    with torch.autocast(x.device.type, torch.bfloat16), torch.no_grad():
        for _ in range(100):
            state = cell(x, state)
    assert abs(state[1].item() - (1 + 100 * torch.sigmoid(torch.tensor(-7.0)).item())) < 1e-3


@pytest.mark.parametrize("what", ["input", "state", "weights"])
@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_float64_meets_only_float64(kind, what):
    """Autocast does not cast float64, so torch's products refuse it beside another dtype."""
    torchs = getattr(nn, kind)(I, H)
    ours = getattr(fastlstm, kind)(I, H)
    rows = () if kind == "LSTMCell" else (1,)
    x = torch.randn(*rows, B, I)
    hx = torch.randn(*rows, B, H), torch.randn(*rows, B, H)
    if what == "input":
        x = x.double()
    elif what == "state":
        hx = hx[0].double(), hx[1].double()
    else:
        ours.double(), torchs.double()
    with torch.autocast("cpu", torch.bfloat16):
        for module in (torchs, ours):
            with pytest.raises(RuntimeError, match=r"dtype|data type"):
                module(x, hx)
        assert ours.double()(x.double(), (hx[0].double(), hx[1].double()))[0].dtype == torch.float64


def cast(value, dtype):
    return [v.to(dtype) for v in value] if isinstance(value, list) else value.to(dtype)


def test_lstm_sequence(fused_backend):
    """Every dtype that autocast casts is accepted; float64 beside another dtype is an error."""
    values = {
        "input": torch.randn(T, B, I),
        "weight_hh": [torch.randn(4 * H, H)],
        "hx": torch.randn(1, B, H),
        "cx": torch.randn(1, B, H),
        "weight_ih": [torch.randn(4 * H, I)],
    }
    with torch.autocast(values["input"].device.type, torch.bfloat16):
        expected = lstm_sequence(**values, backend=fused_backend)
        assert {output.dtype for output in expected} == {torch.bfloat16}
        for name in values:
            changed = values | {name: cast(values[name], torch.bfloat16)}
            found = lstm_sequence(**changed, backend=fused_backend)
            assert all(map(torch.equal, found, expected))
            wide = values | {name: cast(values[name], torch.float64)}
            with pytest.raises((RuntimeError, ValueError), match="float64"):
                lstm_sequence(**wide, backend=fused_backend)


def test_segmented_loss():
    """Its states go from segment to segment, and the first state may be float32."""
    ours, _ = pair("plain")
    x, hx = arguments("plain", torch.float32, torch.float32, ours)
    with torch.autocast("cpu", torch.bfloat16):
        loss, state = fastlstm.segmented_loss(
            ours, x, lambda y, first: y.float().square().sum(), segment=2, hx=hx
        )
        whole = ours(x, hx)[0].float().square().sum()
    assert state[0].dtype == torch.bfloat16
    torch.testing.assert_close(loss, whole, rtol=0.02, atol=0.02)
    loss.backward()


def test_byte_lstm():
    model = fastlstm.ByteLSTM(H, 2, embedding_size=I)
    text = torch.randint(256, (12, B))
    with torch.autocast("cpu", torch.bfloat16):
        whole, _ = model(text)
        state, parts = None, []
        for part in text.split(4):
            logits, state = model(part, state)
            parts.append(logits)
        sample = model.sample(b"a", 3)
    assert (torch.cat(parts).float() - whole.float()).abs().max() < 0.02
    assert len(sample) == 3


@pytest.mark.parametrize("shape", ["plain", "projected"])
def test_compiled_exported_traced_and_transformed(compiled, shape):
    """Dtypes and values equal those of eager calls, with a state of another dtype."""
    ours, _ = pair(shape)
    x, hx = arguments(shape, torch.float32, torch.bfloat16, ours)
    rows = {"h": ours.proj_size or H}

    def call(x, h, c):
        with torch.autocast("cpu", torch.bfloat16):
            y, (h, c) = ours(x, (h, c))
        return y, h, c

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = ours

        def forward(self, x, h, c):
            return call(x, h, c)

    expected = call(x, *hx)
    assert expected[1].shape[-1] == rows["h"]
    with torch.no_grad():
        exported = torch.export.export(Program(), (x, *hx)).module()
        traced = torch.jit.trace(Program(), (x, *hx), check_trace=False)
    ways = [compiled(call), exported, traced]
    if shape == "plain":
        stacked = torch.func.vmap(call)(*(t.unsqueeze(0) for t in (x, *hx)))
        ways.append(lambda *_: [t.squeeze(0) for t in stacked])
    for way in ways:
        for mine, eager in zip(way(x, *hx), expected, strict=True):
            assert mine.dtype == eager.dtype
            torch.testing.assert_close(mine, eager, rtol=0.02, atol=0.01)


def bytes_kept(calls, **autocast):
    """Bytes that some one-step calls keep for their backward pass, and the results of the calls."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    lstm, x = fastlstm.LSTM(64, 128), torch.ones(1, 2, 64)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, **autocast),
    ):
        alive = [lstm(x) for _ in range(calls)]
    return sum(seen.values()), alive


def test_one_copy_of_the_weights_for_all_calls_of_a_block():
    weights = 2 * 4 * 128 * (64 + 128)  # bytes in bfloat16
    one, many = bytes_kept(1)[0], bytes_kept(20)[0]
    assert many - one < weights
    assert bytes_kept(20, cache_enabled=False)[0] > 19 * weights  # as in torch, nothing is shared


def test_copies_end_with_the_block_and_notice_writes():
    lstm, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    exact = copy.deepcopy(lstm)

    def check():
        exact.load_state_dict(lstm.state_dict())
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            expected = exact(x)[0]
        assert torch.equal(lstm(x)[0], expected)

    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            check()
            with torch.no_grad():
                lstm.weight_hh_l0.mul_(-1)  # an optimiser's write, inside the block
            check()
            with torch.autocast("cpu", enabled=False):
                pass
            check()
        lstm.weight_hh_l0.data.mul_(-2)  # no version counter moves, but the block is over


def test_copies_whatever_the_default_dtype_is():
    lstm, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    for default in (torch.float64, torch.float32, torch.float64):
        torch.set_default_dtype(default)
        try:
            with torch.autocast("cpu", torch.bfloat16):
                first, second = lstm(x)[0], lstm(x)[0]
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.equal(first, second) and first.dtype == torch.bfloat16


def test_gradients_reach_the_parameters_of_shared_copies():
    lstm, x = fastlstm.LSTM(I, H), torch.randn(T, B, I)
    reference = copy.deepcopy(lstm).double()
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            lstm(x)  # leaves no copy without a gradient
        loss = sum(lstm(x)[0].float().sum() for _ in range(3))
    loss.backward()
    (3 * reference(x.double())[0].sum()).backward()
    for mine, exact in zip(lstm.parameters(), reference.parameters(), strict=True):
        assert mine.grad.dtype == torch.float32
        assert (mine.grad - exact.grad).abs().max() <= 0.03 * exact.grad.abs().max()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_video_models(precision):
    frames, future = torch.rand(4, 2, 6), torch.rand(3, 2, 6)
    for conditional, steps in itertools.product((False, True), (1, 3)):
        model = fastlstm.CompositeLSTM(6, H, conditional_future=conditional)
        with torch.autocast("cpu", precision):
            loss = model.loss(frames, future)
            loss.total.backward()
            h, _ = model.encode(frames)
            predicted = model.predict(frames, steps=steps)
        assert h.dtype == precision and predicted.shape == (steps, 2, 6)
        exact = model.loss(frames, future).total
        torch.testing.assert_close(loss.total, exact, rtol=0.02, atol=0.02)
