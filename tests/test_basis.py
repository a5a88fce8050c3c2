"""Models that read and emit the low frequencies of frames are models of pixels, held to them."""

import copy
import json
import math
import pickle

import pytest
import torch
from dct_models import HEIGHT, HIDDEN, SHAPES, WIDTH, B, K, T, composite, size_of, videos
from torch.export import Dim

from fastlstm import CompositeLSTM, LSTMAutoencoder, LSTMClassifier, LSTMFuturePredictor, VideoLSTM
from fastlstm.models.basis import FrameBasis


def transform(size):
    """The orthonormal DCT-II matrix, entry by entry."""
    return torch.tensor(
        [
            [
                math.sqrt((2 if k else 1) / size) * math.cos(math.pi * k * (2 * y + 1) / (2 * size))
                for y in range(size)
            ]
            for k in range(size)
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_coefficients_are_the_lowest_of_the_orthonormal_transform(shape):
    basis = FrameBasis(shape, K).double()
    frames = torch.rand(T, B, size_of(shape), dtype=torch.float64)
    images = frames.view(T, B, HEIGHT, WIDTH, -1)
    expected = torch.einsum("ky,lx,tbyxc->tbklc", transform(HEIGHT), transform(WIDTH), images)
    expected = expected[:, :, :K, :K].flatten(2)
    torch.testing.assert_close(basis.coefficients(frames), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_is_the_adjoint_and_the_inverse_on_smooth_images(shape):
    basis = FrameBasis(shape, K).double()
    x = torch.randn(T, B, size_of(shape), dtype=torch.float64)
    c = torch.randn(T, B, basis.num_coefficients, dtype=torch.float64)
    torch.testing.assert_close((basis.coefficients(x) * c).sum(), (x * basis.pixels(c)).sum())
    torch.testing.assert_close(basis.coefficients(basis.pixels(c)), c)
    whole = FrameBasis((HEIGHT, HEIGHT), HEIGHT).double()
    x = torch.randn(2, HEIGHT**2, dtype=torch.float64)
    torch.testing.assert_close(whole.pixels(whole.coefficients(x)), x)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_folded_weights_give_the_same_frames(shape, conditional, batch_first):
    model = composite(conditional, shape, batch_first=batch_first)
    folded = model.folded()
    frames, future = (x.transpose(0, 1) if batch_first else x for x in videos(shape))
    assert (
        folded.config | {"basis": "dct", "basis_size": K, "frame_shape": [*shape]} == model.config
    )
    assert folded.encoder.basis is None and folded.future_decoder.basis is None
    for call in (
        lambda m: m(frames, future)[:2],
        lambda m: m(frames, steps=7)[:2],
        lambda m: m(frames).state,
        lambda m: m.loss(frames, future),
        lambda m: m.closed_loop_loss(frames, future),
        lambda m: m.predict(frames, 9),
        lambda m: m.reconstruct(frames),
    ):
        torch.testing.assert_close(call(folded), call(model), rtol=1e-11, atol=1e-11)


def test_folded_weights_give_the_same_frames_in_float32():
    model = composite(dtype=torch.float32)
    frames, future = videos(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):  # which must not round the weights
        folded = model.folded()
    torch.testing.assert_close(folded.loss(frames, future), model.loss(frames, future))
    torch.testing.assert_close(folded.predict(frames, 9), model.predict(frames, 9))


def test_a_folded_model_is_like_any_other():
    model = composite().eval()
    generator = torch.get_rng_state()
    folded = model.folded()
    assert torch.equal(generator, torch.get_rng_state())
    assert type(folded) is CompositeLSTM and not folded.training
    assert all(p.requires_grad and p.is_contiguous() for p in folded.parameters())
    assert folded.folded() is folded
    weight = folded.encoder.weight_ih_l0
    assert (
        weight.shape == (4 * HIDDEN, HEIGHT * WIDTH) and torch.linalg.matrix_rank(weight) <= K * K
    )


@pytest.mark.parametrize("conditional", [False, True])
def test_gradients_are_those_of_dense_weights_by_the_chain_rule(conditional):
    model = composite(conditional)
    folded = model.folded()
    frames, future = videos()
    for each in (model, folded):
        each.loss(frames, future).total.backward()
    basis = model.encoder.basis
    dense = dict(folded.named_parameters())
    for name, parameter in model.named_parameters():
        expected = dense[name].grad
        if name.endswith("weight_ih_l0"):
            expected = basis.coefficients(expected)
        elif name.endswith("readout.weight"):
            expected = basis.coefficients(expected.T).T
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-11)


def test_gradients_are_those_of_differences():
    model = composite(False, num_layers=1)
    frames, future = videos()
    weights = (model.encoder.weight_ih_l0, model.future_decoder.readout.weight)

    def loss(*_):
        return model.loss(frames, future).total

    assert torch.autograd.gradcheck(loss, weights, fast_mode=True)
    images = frames[0].requires_grad_()
    assert torch.autograd.gradcheck(model.encoder.basis.coefficients, images)


@pytest.mark.parametrize("kind", [LSTMAutoencoder, LSTMFuturePredictor, CompositeLSTM])
def test_saved_and_loaded_it_is_the_same_and_folded_it_is_one_of_pixels(kind, tmp_path):
    model = kind(HEIGHT**2, HIDDEN, basis="dct")
    assert model.config["basis_size"] == 3 and model.config["frame_shape"] == [6, 6]
    frames = torch.rand(T, B, HEIGHT**2)
    model.save(tmp_path / "m")
    loaded = VideoLSTM.load(tmp_path / "m")
    assert type(loaded) is kind and loaded.config == model.config
    torch.testing.assert_close(loaded(frames), model(frames), rtol=0, atol=0)
    model.save(tmp_path / "folded", fold=True)
    model.save_pretrained(tmp_path / "hub", fold=True)
    for folded in (
        VideoLSTM.load(tmp_path / "folded"),
        VideoLSTM.from_pretrained(tmp_path / "hub"),
    ):
        assert type(folded) is kind and folded.config["basis"] == "pixels"
        assert not any("basis" in name for name, _ in folded.named_modules())
        torch.testing.assert_close(folded(frames), model(frames))


def test_what_has_no_basis_is_folded_to_itself_and_a_classifier_is_refused(tmp_path):
    model = CompositeLSTM(HEIGHT**2, HIDDEN)
    model.save(tmp_path / "a", fold=True)
    loaded = CompositeLSTM.load(tmp_path / "a")
    assert loaded.config == model.config
    assert all(map(torch.equal, loaded.parameters(), model.parameters()))
    classifier = LSTMClassifier(HEIGHT**2, HIDDEN, 3)
    with pytest.raises(ValueError, match="fold: expected a video model, got a LSTMClassifier"):
        classifier.save(tmp_path / "c", fold=True)
    assert not (tmp_path / "c").exists()


def test_copies_pickles_and_pickles_that_are_older_than_bases():
    model = composite()
    frames, future = videos()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.encoder.basis is other.future_decoder.readout.basis
        torch.testing.assert_close(other.loss(frames, future), model.loss(frames, future))
    old = model.folded()
    expected = old.loss(frames, future)
    old.config = {name: value for name, value in old.config.items() if "basis" not in name}
    del old.config["frame_shape"]
    for module in old.modules():
        module.__dict__.pop("basis", None)
    old = pickle.loads(pickle.dumps(old))
    assert old.folded() is old
    torch.testing.assert_close(old.loss(frames, future), expected)


def test_files_that_are_older_than_bases(tmp_path):
    from safetensors.torch import save_file

    model = CompositeLSTM(HEIGHT**2, HIDDEN)
    config = {k: v for k, v in model.config.items() if k not in ("basis", "basis_size")}
    del config["frame_shape"]
    metadata = {"class": "CompositeLSTM", "arguments": config}
    save_file(model.state_dict(), tmp_path / "m", {"fastlstm": json.dumps(metadata)})
    assert VideoLSTM.load(tmp_path / "m").config == model.config


def test_a_change_of_dtype_or_device_leaves_no_rounding_in_the_basis():
    expected = FrameBasis((HEIGHT, WIDTH), K).double()
    model = composite(dtype=torch.float32).bfloat16()
    assert model.encoder.basis.rows.dtype == torch.bfloat16
    assert torch.equal(model.double().encoder.basis.rows, expected.rows)
    empty = CompositeLSTM(HEIGHT**2, HIDDEN, basis="dct", device="meta", dtype=torch.float64)
    assert empty.encoder.basis.rows.is_meta
    rows = empty.to_empty(device="cpu").encoder.basis.rows
    torch.testing.assert_close(rows @ rows.T, torch.eye(3, dtype=torch.float64))
    assert not any("basis" in name for name in empty.state_dict())


@pytest.mark.parametrize("frame_type", ["binary", "real"])
def test_autocast(frame_type):
    model = composite(dtype=torch.float32, frame_type=frame_type)
    frames, future = videos(dtype=torch.float32)
    expected = model.loss(frames, future).total
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder.inputs(frames).dtype == torch.bfloat16
        total = model.loss(frames, future).total
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0)
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_compiled_and_exported():
    model = composite(False, dtype=torch.float32, num_layers=1)
    frames, future = videos(dtype=torch.float32)
    run = torch.compile(model.loss, fullgraph=True, backend="eager")
    torch.testing.assert_close(run(frames, future), model.loss(frames, future))

    shapes = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    program = torch.export.export(model, (frames,), dynamic_shapes=shapes)
    other = torch.rand(T + 2, B + 1, HEIGHT * WIDTH)
    torch.testing.assert_close(program.module()(other), model(other))


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        (36, {"basis": "fourier"}, "basis: expected 'pixels' or 'dct', got 'fourier'"),
        (36, {"basis_size": 7}, "basis_size: expected 1 to 6, .*, got 7"),
        (36, {"basis_size": 0}, "basis_size: expected 1 to 6, .*, got 0"),
        (48, {}, r"frame_shape: expected \(height, width\), since input_size=48 .*, got None"),
        (48, {"frame_shape": (6, 7)}, r"frame_shape: expected .* input_size=48, got \(6, 7\)"),
        (48, {"frame_shape": (48,)}, r"frame_shape: expected .* input_size=48, got \(48,\)"),
        (48, {"frame_shape": (-6, -8)}, r"frame_shape: expected .*, got \(-6, -8\)"),
        (48, {"frame_shape": (6, 8), "basis_size": 7}, "basis_size: expected 1 to 6, .*, got 7"),
    ],
)
def test_bad_arguments(size, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        LSTMAutoencoder(size, HIDDEN, **{"basis": "dct"} | options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x, f: m(x[..., :9]), RuntimeError, "Expected 48, got 9"),
        (lambda m, x, f: m(x.float()), ValueError, "frames: expected dtype torch.float64"),
        (lambda m, x, f: m(x[:0]), RuntimeError, "larger than 0"),
        (lambda m, x, f: m(x[0]), RuntimeError, r"frames: expected 3 dimensions \(T, B, I\)"),
    ],
)
def test_bad_frames(call, error, message):
    with pytest.raises(error, match=message):
        call(composite(), *videos())


def test_a_side_of_one_pixel_keeps_its_only_frequency():
    model = LSTMAutoencoder(1, HIDDEN, basis="dct")
    torch.testing.assert_close(model.encoder.basis.rows, torch.ones(1, 1))
