"""A classifier is an encoder with a softmax at every step, and starts from any video model's."""

import pytest
import torch
import torch.nn.functional as F

import fastlstm
from fastlstm import CompositeLSTM, LSTMClassifier, LSTMFuturePredictor, VideoLSTM

I, H, C = 7, 5, 4


def classifier(**options):
    torch.manual_seed(0)
    return LSTMClassifier(I, H, C, **{"dtype": torch.float64, **options})


def frames(T=6, B=3):
    return torch.rand(T, B, I, dtype=torch.float64)


@pytest.mark.parametrize("peephole", [True, False])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_logits_are_a_linear_layer_over_every_step_of_the_lstm(num_layers, peephole):
    model, x = classifier(num_layers=num_layers, peephole=peephole), frames()
    layers = fastlstm.LSTM(I, H, num_layers, peephole=peephole, dtype=torch.float64)
    state = layers.state_dict()
    encoder = model.encoder.state_dict()
    layers.load_state_dict({n: encoder.get(n, torch.zeros_like(p)) for n, p in state.items()})
    expected = F.linear(layers(x)[0], model.readout.weight, model.readout.bias)
    torch.testing.assert_close(model(x), expected)


def test_the_last_output_is_the_state_that_a_decoder_would_start_from():
    model, x = classifier(num_layers=2), frames()
    h, _ = model.encoder(x)
    torch.testing.assert_close(model.encoder.outputs(x)[-1], h[-1])


def test_loss_and_probabilities_are_means_over_steps():
    model, x, labels = classifier(), frames(), torch.tensor([0, 3, 1])
    p = model(x).softmax(-1)
    nats = -p.gather(2, labels.expand(6, 3)[..., None]).log()
    torch.testing.assert_close(model.loss(x, labels), nats.mean())
    torch.testing.assert_close(model.loss(x, labels.int()), nats.mean())
    torch.testing.assert_close(model.probabilities(x), p.mean(0))


@pytest.mark.parametrize("batch_first", [False, True])
def test_a_long_video_is_the_mean_over_its_windows(batch_first):
    model, video = classifier(batch_first=batch_first), frames(21, 1)[:, 0]

    def alone(start, stop):
        window = video[start:stop]
        return model.probabilities(window[None] if batch_first else window[:, None])[0]

    expected = torch.stack([alone(s, s + 8) for s in (0, 4, 8, 12)]).mean(0)  # 16 + 8 > 21
    torch.testing.assert_close(model.video_probabilities(video, window=8, stride=4), expected)
    torch.testing.assert_close(model.video_probabilities(video[:5], window=8), alone(0, 5))
    torch.testing.assert_close(model.video_probabilities(video[:1]), alone(0, 1))
    assert model.video_probabilities(video).sum().item() == pytest.approx(1)


def test_batch_first_only_changes_the_layout():
    ours, theirs, x = classifier(batch_first=True), classifier(), frames()
    labels, swapped = torch.tensor([2, 0, 1]), x.transpose(0, 1)
    torch.testing.assert_close(ours(swapped), theirs(x).transpose(0, 1))
    torch.testing.assert_close(ours.probabilities(swapped), theirs.probabilities(x))
    torch.testing.assert_close(ours.loss(swapped, labels), theirs.loss(x, labels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("peephole", [True, False])
def test_it_starts_from_a_copy_of_a_video_models_encoder(peephole, dtype):
    model = LSTMFuturePredictor(I, H, 2, peephole=peephole, dtype=dtype)
    ours, x = LSTMClassifier.from_encoder(model, C, dropout=0.25), frames().to(dtype)
    assert ours.config == LSTMClassifier(I, H, C, 2, peephole=peephole, dropout=0.25).config
    torch.testing.assert_close(ours.encoder(x), model.encode(x), rtol=0, atol=0)
    before = model.encoder.weight_hh_l0.detach().clone()
    with torch.no_grad():
        ours.encoder.weight_hh_l0.zero_()
    assert torch.equal(model.encoder.weight_hh_l0, before)


def test_dropout_falls_on_the_representation_in_training_only():
    plain, dropped, x = classifier(num_layers=2), classifier(num_layers=2, dropout=0.5), frames()
    torch.testing.assert_close(dropped.eval()(x), plain(x))
    assert not torch.allclose(dropped.train()(x), plain(x))
    everything = classifier(dropout=1.0)
    torch.testing.assert_close(everything(x), everything.readout.bias.expand(6, 3, C))


def test_it_learns_what_only_the_order_of_frames_tells():
    torch.set_num_threads(1)  # this size gains nothing from more; the shared fixture restores it
    forwards = torch.eye(I)[:, None]
    x = torch.cat((forwards, forwards.flip(0)), 1)
    labels = torch.tensor([0, 1])
    torch.manual_seed(0)
    model = LSTMClassifier(I, 16, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(x, labels).backward()
        optimizer.step()
    assert (model.probabilities(x).argmax(1) == labels).all()
    assert model.loss(x, labels) < 0.2


def test_saved_and_loaded_it_is_the_same_and_no_video_model(tmp_path):
    model, x, path = classifier(num_layers=2, dropout=0.1), frames(), tmp_path / "a.safetensors"
    model.save(path)
    loaded = LSTMClassifier.load(path)
    assert loaded.config == model.config
    assert torch.equal(loaded.eval()(x), model.eval()(x))
    with pytest.raises(ValueError, match="expected a VideoLSTM, got a LSTMClassifier"):
        VideoLSTM.load(path)
    CompositeLSTM(I, H).save(path)
    with pytest.raises(ValueError, match="expected a LSTMClassifier, got a CompositeLSTM"):
        LSTMClassifier.load(path)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: LSTMClassifier(I, H, 0), ValueError, "num_classes: expected at least 1, got 0"),
        (lambda m: LSTMClassifier(0, H, C), ValueError, "input_size: expected at least 1, got 0"),
        (lambda m: classifier(dropout=1.5), ValueError, "dropout: expected a probability"),
        (lambda m: classifier(backend="no"), ValueError, "backend"),
        (lambda m: classifier(checkpoint_every=0), ValueError, "checkpoint_every"),
        (lambda m: m(frames()[0]), RuntimeError, r"frames: expected 3 dimensions \(T, B, I\)"),
        (lambda m: m(frames()[..., 1:]), RuntimeError, "got 6"),
        (lambda m: m.loss(frames(), torch.zeros(2).long()), RuntimeError, r"labels: expected size"),
        (lambda m: m.loss(frames(), torch.zeros(3)), RuntimeError, "labels: expected integers"),
        (
            lambda m: m.loss(frames(), torch.tensor([0, 1, 4])),
            ValueError,
            r"labels: expected classes in 0..3, got 0..4",
        ),
        (lambda m: m.video_probabilities(frames()), RuntimeError, r"video: expected 2 dimensions"),
        (
            lambda m: m.video_probabilities(frames()[:, 0], window=0),
            ValueError,
            "window: expected at least 1, got 0",
        ),
        (
            lambda m: m.video_probabilities(frames()[:, 0], stride=0),
            ValueError,
            "stride: expected at least 1, got 0",
        ),
        (
            lambda m: m.video_probabilities(frames(0)[:, 0]),
            RuntimeError,
            "length to be larger than 0",
        ),
    ],
)
def test_bad_input_is_named(call, error, says):
    with pytest.raises(error, match=says):
        call(classifier())
