"""Models in a basis start, train, resume, are fine-tuned and drawn as models of pixels are."""

import copy
import math

import pytest
import torch
from dct_models import HEIGHT, HIDDEN, SHAPES, WIDTH, composite, videos
from tiny_training import SIDE, tiny_data, tiny_model, trainer

from fastlstm import CompositeLSTM, LSTMClassifier
from fastlstm.experiments.features import features_of
from fastlstm.models.basis import FrameBasis
from fastlstm.training import SmoothImageWeights, VideoTask
from fastlstm.training.callbacks.initialization import smooth_over_image


def test_a_classifier_starts_from_the_folded_encoder():
    model = composite()
    classifier = LSTMClassifier.from_encoder(model, num_classes=3)
    assert classifier.encoder.weight_ih_l0.shape == (4 * HIDDEN, HEIGHT * WIDTH)
    frames, _ = videos()
    h, _ = model.encode(frames)
    torch.testing.assert_close(classifier.encoder.outputs(frames)[-1], h[-1])
    classifier.loss(frames, torch.tensor([0, 2, 1])).backward()


def test_features_are_those_of_pixels():
    model = composite()
    found, expected = features_of(model), features_of(model.folded())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("with_basis", [True, False])
def test_smoothing_is_a_gaussian_blur_that_keeps_the_spread(with_basis):
    """Of one point, within an image so large that its edges are far."""
    side, sigma = 32, 2.0
    basis = FrameBasis((side, side), side).double()
    point = torch.zeros(side, side, dtype=torch.float64)
    point[15, 15] = 1
    weight = (basis.coefficients(point.flatten()) if with_basis else point.flatten()).unsqueeze(0)
    blurred = smooth_over_image(weight, basis if with_basis else None, sigma)
    torch.testing.assert_close(blurred.std(), weight.std())
    image = (basis.pixels(blurred) if with_basis else blurred).view(side, side)
    for y, x in ((15, 16), (13, 15), (18, 17)):
        expected = math.exp(-0.5 * ((y - 15) ** 2 + (x - 15) ** 2) / sigma**2)
        assert float(image[y, x] / image[15, 15]) == pytest.approx(expected, rel=1e-3)


def test_the_callback_blurs_in_the_basis_and_scales_decoders_alone():
    model = composite(shape=SHAPES[1])
    before = copy.deepcopy(model)
    SmoothImageWeights(2.0, 1.0, input_gain=0.5, decoder_gain=0.1).apply(model)
    basis = model.encoder.basis
    for name, weight in model.named_parameters():
        expected = before.get_parameter(name)
        if name.endswith("weight_ih_l0"):
            gain = 0.5 if name.startswith("encoder") else 0.05
            expected = gain * smooth_over_image(expected, basis, 2.0)
        elif name.endswith("readout.weight"):
            expected = smooth_over_image(expected.T, basis, 1.0).T
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("basis", ["pixels", "dct"])
def test_decoders_may_start_by_ignoring_what_they_read(basis):
    model = CompositeLSTM(HEIGHT**2, HIDDEN, conditional_future=True, basis=basis)
    SmoothImageWeights(decoder_gain=0.0).apply(model)
    assert not model.future_decoder.weight_ih_l0.any() and model.encoder.weight_ih_l0.all()
    with pytest.raises(ValueError, match="decoder_gain: expected at least 0, got -1"):
        SmoothImageWeights(decoder_gain=-1)


def test_it_trains_resumes_and_refuses_another_basis(tmp_path):
    options = {"basis": "dct", "basis_size": 10, "conditional_future": True}
    t = trainer(tmp_path, SmoothImageWeights(input_gain=0.3), max_steps=2, limit_val_batches=1)
    task = VideoTask(tiny_model(**options), input_lr_scale=0.5)
    t.fit(task, datamodule=tiny_data())
    slow = t.optimizers[0].param_groups[1]
    assert {p.shape[1] for p in slow["params"]} == {100} and len(slow["params"]) == 2
    t.save_checkpoint(tmp_path / "a.ckpt")
    loaded = CompositeLSTM.load(tmp_path / "a.ckpt")
    assert loaded.config == task.model.config

    explicit = VideoTask(tiny_model(**options, frame_shape=(SIDE, SIDE)), input_lr_scale=0.5)
    t = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    t.fit(explicit, datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt")
    assert all(map(torch.equal, explicit.model.parameters(), loaded.parameters()))
    other = VideoTask(tiny_model(conditional_future=True))
    with pytest.raises(ValueError, match="basis='pixels' as configured, got basis='dct'"):
        trainer(tmp_path).fit(other, datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt")


def test_a_run_goes_on_from_a_checkpoint_that_is_older_than_bases(tmp_path):
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data())
    t.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for name in ("basis", "basis_size", "frame_shape"):
        del checkpoint["model_config"][name]
    torch.save(checkpoint, tmp_path / "a.ckpt")
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt")
    other = VideoTask(tiny_model(basis="dct"))
    with pytest.raises(ValueError, match="basis='dct' as configured, got basis='pixels'"):
        trainer(tmp_path).fit(other, datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt")
