"""The video models: their equations, parameter counts, loops and losses."""

import math

import pytest
import torch
import torch.nn.functional as F

import fastlstm
from fastlstm import CompositeLSTM, LSTMAutoencoder, LSTMFuturePredictor, VideoLSTM
from fastlstm.backends.reference import lstm_step

T, B, INPUT, HIDDEN, STEPS = 5, 3, 12, 7, 4
VARIANTS = [(r, f) for r in (False, True) for f in (False, True)]


def composite(reconstruction=False, future=False, num_layers=1, **options):
    options = {"dtype": torch.float64} | options
    return CompositeLSTM(
        INPUT,
        HIDDEN,
        num_layers,
        conditional_reconstruction=reconstruction,
        conditional_future=future,
        **options,
    )


def videos(dtype=torch.float64):
    return torch.rand(T, B, INPUT, dtype=dtype), torch.rand(STEPS, B, INPUT, dtype=dtype)


def step(stack, x, state):
    """One step of a stack of layers by the specification's cell; x None: no input."""
    state = list(state)
    for layer, weights in enumerate(stack.weights()):
        igates = weights.bias_ih.expand(B, -1)
        if x is not None:
            igates = igates + x @ weights.weight_ih.t()
        state[layer] = lstm_step(igates, weights.weight_hh, *state[layer], weights.weight_ch)
        x = state[layer][0]
    return x, state


def encode_by_hand(model, frames):
    zeros = frames.new_zeros(B, HIDDEN)
    state = [(zeros, zeros)] * model.encoder.num_layers
    for x in frames:
        _, state = step(model.encoder, x, state)
    return state


def decode_by_hand(decoder, state, truth, steps, closed_loop):
    reads, readouts = None, []
    for s in range(steps):
        top, state = step(decoder, reads, state)
        readouts.append(F.linear(top, decoder.readout.weight, decoder.readout.bias))
        if decoder.conditional:
            reads = readouts[-1].sigmoid() if closed_loop else truth[s]
    return torch.stack(readouts)


@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("reconstruction", "future"), VARIANTS)
def test_forward_is_the_papers_model(reconstruction, future, num_layers):
    model = composite(reconstruction, future, num_layers)
    frames, following = videos()
    output = model(frames, following)
    state = encode_by_hand(model, frames)
    expected = decode_by_hand(model.reconstruction_decoder, state, frames.flip(0), T, False)
    torch.testing.assert_close(output.reconstruction, expected, rtol=1e-10, atol=1e-12)
    expected = decode_by_hand(model.future_decoder, state, following, STEPS, False)
    torch.testing.assert_close(output.future, expected, rtol=1e-10, atol=1e-12)
    for ours, by_hand in zip(output.state, zip(*state, strict=True), strict=True):
        torch.testing.assert_close(ours, torch.stack(by_hand), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
def test_predict_runs_in_closed_loop_for_any_number_of_steps(conditional):
    model = composite(future=conditional, num_layers=2)
    frames, _ = videos()
    for steps in (1, 3, 40):
        expected = decode_by_hand(
            model.future_decoder, encode_by_hand(model, frames), None, steps, True
        )
        torch.testing.assert_close(model.predict(frames, steps), expected.sigmoid())


def test_predict_of_a_conditional_model_never_sees_the_future():
    model = composite(future=True)
    frames, following = videos()
    closed, forced = model(frames, steps=STEPS).future, model(frames, following).future
    torch.testing.assert_close(model.predict(frames, STEPS), closed.sigmoid())
    torch.testing.assert_close(closed[0], forced[0])
    assert not torch.allclose(closed[1:], forced[1:])


def test_reconstruct_reads_the_true_frames_it_has_seen():
    model = composite(reconstruction=True)
    frames, _ = videos()
    torch.testing.assert_close(
        model.reconstruct(frames), model(frames).reconstruction.sigmoid(), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize(("reconstruction", "future"), VARIANTS)
def test_grouped_decoders_give_the_same_gradients_as_the_reference(reconstruction, future):
    frames, _ = videos()
    following = torch.rand_like(frames)  # equally long: both decoders run as one grouped call
    model = composite(reconstruction, future, num_layers=2)
    gradients = []
    for backend in ("auto", "reference"):
        for module in model.modules():
            if hasattr(module, "backend"):
                module.backend = backend
        model.zero_grad()
        model.loss(frames, following).total.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(
            gradient, gradients[1][name], rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert gradient.abs().max() > 0, name


def test_loss_is_nats_per_frame():
    model = composite()
    frames, following = videos()
    loss, output = model.loss(frames, following), model(frames, following)
    for part, readout, target in (
        (loss.reconstruction, output.reconstruction, frames.flip(0)),
        (loss.future, output.future, following),
    ):
        nats = F.binary_cross_entropy(readout.sigmoid(), target, reduction="none")
        torch.testing.assert_close(part, nats.sum(-1).mean())
    torch.testing.assert_close(loss.total, loss.reconstruction + loss.future)


def test_loss_of_real_frames_is_half_the_squared_error():
    model = composite(frame_type="real")
    frames, following = 3 * torch.randn(T, B, INPUT).double(), torch.randn(STEPS, B, INPUT).double()
    expected = 0.5 * (model(frames, following).future - following).square().sum(-1).mean()
    torch.testing.assert_close(model.loss(frames, following).future, expected)
    torch.testing.assert_close(model.predict(frames, STEPS), model(frames, following).future)


def test_loss_stays_finite_at_extreme_logits():
    model = composite(dtype=torch.float32, readout_bias=1e4)
    loss = model.loss(*videos(torch.float32)).total
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


def test_halves_have_one_decoder_each():
    frames, following = videos(torch.float32)
    autoencoder, predictor = LSTMAutoencoder(INPUT, HIDDEN), LSTMFuturePredictor(INPUT, HIDDEN)
    assert autoencoder(frames).future is None and predictor(frames).reconstruction is None
    assert autoencoder.loss(frames).future is None
    assert predictor.loss(frames, following).reconstruction is None
    assert predictor.loss(frames, following).total == predictor.loss(frames, following).future


def decoders(reconstruction, future):
    model = VideoLSTM(2, 2, reconstruction=reconstruction, future=future)
    return [d and d.conditional for d in (model.reconstruction_decoder, model.future_decoder)]


def test_decoders_are_named_by_words():
    assert decoders("none", "conditional") == [None, True]
    assert decoders("unconditional", "none") == [False, None]
    assert decoders("conditional", "unconditional") == [True, False]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 100_714_496),
        ({"conditional_future": True}, 134_268_928),
        ({"conditional_future": True, "conditional_reconstruction": True}, 167_823_360),
    ],
)
def test_parameter_counts_are_the_papers(options, expected):
    model = CompositeLSTM(4096, 2048, device="meta", **options)
    assert sum(p.numel() for p in model.parameters()) == expected


def test_batch_first_only_changes_the_layout():
    torch.manual_seed(3)
    model = composite(True, True)
    torch.manual_seed(3)
    other = composite(True, True, batch_first=True)
    frames, following = videos()
    output = model(frames, following)
    transposed = other(frames.transpose(0, 1), following.transpose(0, 1))
    torch.testing.assert_close(transposed.future.transpose(0, 1), output.future)
    torch.testing.assert_close(transposed.reconstruction.transpose(0, 1), output.reconstruction)
    torch.testing.assert_close(
        other.loss(frames.transpose(0, 1), following.transpose(0, 1)).total,
        model.loss(frames, following).total,
    )
    torch.testing.assert_close(
        other.predict(frames.transpose(0, 1), 3).transpose(0, 1), model.predict(frames, 3)
    )


def test_sampling_mixes_truth_and_own_output():
    model = composite(True, True)
    frames, following = videos()
    forced = model(frames, following)
    torch.testing.assert_close(
        model(frames, following, sampling=1.0).future, model(frames, steps=STEPS).future
    )
    rare = model(frames, following, sampling=1e-12)
    torch.testing.assert_close(rare.future, forced.future)
    torch.testing.assert_close(rare.reconstruction, forced.reconstruction)
    torch.manual_seed(0)
    half = model(frames, following, sampling=0.5).future
    torch.manual_seed(0)
    torch.testing.assert_close(half, model(frames, following, sampling=0.5).future)
    assert not torch.allclose(half, forced.future)


def test_gradients_with_sampling_are_those_of_the_frames_that_were_read():
    """No gradient goes through a frame that a decoder emitted and reads."""
    model = composite(False, True)
    frames, following = videos()
    with torch.no_grad():
        own = model.predict(frames, STEPS)
    target = torch.randn_like(own)
    sampled = model(frames, following, sampling=1.0).future
    forced = model(frames, own).future
    names, parameters = zip(*model.named_parameters(), strict=True)
    pairs = (
        torch.autograd.grad((y * target).sum(), parameters, allow_unused=True)
        for y in (sampled, forced)
    )
    for name, a, b in zip(names, *pairs, strict=True):
        assert (a is None) == (b is None) == name.startswith("reconstruction")
        if a is not None:
            torch.testing.assert_close(a, b)


def test_initial_values():
    model = CompositeLSTM(INPUT, HIDDEN, 2, readout_bias=-3.0)
    for stack in (model.encoder, model.reconstruction_decoder, model.future_decoder):
        for weights in stack.weights():
            i, f, g, o = weights.bias_ih.chunk(4)
            assert (f == 1).all() and not torch.cat([i, g, o]).any()
            assert weights.weight_hh.abs().max() <= HIDDEN**-0.5
            assert weights.weight_ch.abs().max() <= HIDDEN**-0.5
    assert (model.future_decoder.readout.bias == -3).all()


def test_it_learns():
    model = CompositeLSTM(INPUT, 32)
    ramp = torch.linspace(0, 1, T + STEPS).round().view(-1, 1, 1).expand(-1, B, INPUT)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = model.loss(ramp[:T], ramp[T:])
        loss.total.backward()
        optimizer.step()
        losses.append(float(loss.total.detach()))
    assert losses[0] > 2 * INPUT * math.log(2) * 0.9 and losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x, f: m.predict(x, 0), ValueError, "steps: expected at least 1, got 0"),
        (lambda m, x, f: m(x, steps=-1), ValueError, "steps: expected at least 1, got -1"),
        (lambda m, x, f: m(x, f, steps=2), ValueError, "steps: expected 4, as future has, got 2"),
        (lambda m, x, f: m(x[0]), RuntimeError, r"frames: expected 3 dimensions \(T, B, I\)"),
        (lambda m, x, f: m(x[..., :3]), RuntimeError, "Expected 12, got 3"),
        (lambda m, x, f: m(x.float()), ValueError, "does not match weight dtype"),
        (lambda m, x, f: m(x[:0]), RuntimeError, "larger than 0"),
        (lambda m, x, f: m(x, f[:, :1]), RuntimeError, "future: expected size"),
        (lambda m, x, f: m(x, f.float()), ValueError, "future: expected dtype torch.float64"),
        (lambda m, x, f: m(x, f, sampling=2), ValueError, "sampling: expected a probability"),
        (lambda m, x, f: m.loss(x), ValueError, "future: expected the frames that follow"),
        (lambda m, x, f: m.loss(255 * x, f), ValueError, r"binary values in \[0, 1\]"),
        (lambda m, x, f: m.loss(x / 0, f), ValueError, r"binary values in \[0, 1\]"),
        (lambda m, x, f: LSTMAutoencoder(2, 2).predict(x, 1), ValueError, "predict: expected"),
        (lambda m, x, f: LSTMFuturePredictor(2, 2).reconstruct(x), ValueError, "reconstruct: exp"),
        (lambda m, x, f: CompositeLSTM(0, 2), ValueError, "input_size: expected at least 1"),
        (lambda m, x, f: CompositeLSTM(2, 2, 0), ValueError, "num_layers: expected at least 1"),
        (lambda m, x, f: CompositeLSTM(2, 2, frame_type="x"), ValueError, "frame_type: expected"),
        (lambda m, x, f: VideoLSTM(2, 2, reconstruction="x", future=None), ValueError, "reconstr"),
        (lambda m, x, f: decoders("none", None), ValueError, "at least one decoder, got none"),
        (lambda m, x, f: CompositeLSTM(2, 2, backend="x"), ValueError, "backend: expected 'auto'"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(composite(), *videos())


def test_explain_names_every_stack():
    text = fastlstm.explain(composite(num_layers=2))
    for name in ("encoder", "reconstruction_decoder", "future_decoder"):
        assert name in text
    assert text.count("chosen") == 3


@pytest.mark.parametrize("frame_type", ["binary", "real"])
def test_loss_under_autocast_is_summed_in_float32(frame_type):
    torch.manual_seed(0)
    model = fastlstm.CompositeLSTM(12, 8, conditional_future=True, frame_type=frame_type)
    seen, future = torch.rand(2, 4, 3, 12)
    expected = model.loss(seen, future).total
    with torch.autocast("cpu", torch.bfloat16):
        total = model.loss(seen, future).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.01, atol=0)
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
