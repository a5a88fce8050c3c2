"""The pictures show the frames, predictions and curves that they claim to show."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import SIDE, tiny_data, tiny_model, trainer

from fastlstm import CompositeLSTM, LSTMAutoencoder, LSTMFuturePredictor
from fastlstm.models.losses import loss_by_frame
from fastlstm.models.video import VideoOutput
from fastlstm.training import PredictionFigure, PredictionWriter, VideoBatch, VideoTask
from fastlstm.training.callbacks.figures import (
    Output,
    VideoPictures,
    of_batch,
    prediction_strip,
    save_gif,
)
from fastlstm.training.callbacks.frame_rows import FrameRow, Panel, draw_panels, least_zoom


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


class Mirror(CompositeLSTM):
    """A model that reconstructs perfectly, and predicts the last frame forever.

    Reconstructions are in the decoder's order, the last frame first.
    """

    def forward(self, frames, future=None, *, steps=None, sampling=0.0):
        assert future is None
        logits = frames.logit(1e-6)
        return VideoOutput(logits.flip(0), logits[-1:].expand(steps, -1, -1), [])


def pictures(samples=2, kind=Mirror, data=None):
    return of_batch(
        VideoTask(tiny_model(kind)), next(iter(tiny_data().val_dataloader())), samples, data
    )


def noise(*shape):
    """Pictures of random frames, each of them another."""
    rng = np.random.default_rng(0)
    frames, past, future, to_come = rng.random((4, *shape), np.float32)
    errors = rng.random(shape[:2], np.float32)
    return VideoPictures(frames, Output(past, errors), future, Output(to_come, errors), "nats")


def place(image, frame, zoom):
    """Return the only place (y, x) where an image shows a frame, enlarged."""
    pixels = np.asarray(image)
    tile = (frame * 255).round().astype(np.uint8).repeat(zoom, 0).repeat(zoom, 1)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, tile.shape).squeeze()
    windows = windows.reshape(*windows.shape[:2], *tile.shape)
    likely = np.argwhere(
        np.all(windows[:, :, 0, ::zoom] == tile[0, ::zoom], axis=(2, *range(3, tile.ndim + 1)))
    )
    (found,) = [(y, x) for y, x in likely.tolist() if (windows[y, x] == tile).all()]
    return found


def test_reconstructions_are_drawn_in_the_order_of_the_input():
    shown = pictures()
    assert shown.frames.shape == (3, 2, SIDE, SIDE)
    np.testing.assert_allclose(shown.reconstruction.images, shown.frames, atol=1e-5)
    np.testing.assert_allclose(shown.prediction.images[0], shown.frames[-1], atol=1e-5)


@pytest.mark.parametrize("colors", [(), (3,)], ids=["grey", "colour"])
def test_the_strip_shows_every_frame_once_enlarged_by_a_whole_number(colors):
    shown = noise(3, 2, 8, 10, *colors)
    image = prediction_strip({"model": shown}, "title")
    zoom = least_zoom(shown.frames, 90)
    assert zoom == 9 and least_zoom(np.zeros((1, 1, 64, 64)), 90) == 2
    assert image.mode == ("RGB" if colors else "L")
    rows = (shown.frames, shown.reconstruction.images, shown.future, shown.prediction.images)
    places = [[place(image, frame, zoom) for frame in row[:, v]] for v in (0, 1) for row in rows]
    tops = [row[0][0] for row in places]
    assert tops == sorted(tops)  # from top to bottom, video by video
    for row in places:  # from left to right
        assert row == [(row[0][0], places[0][0][1] + t * 93) for t in range(3)]


def test_nothing_but_frames_and_text_is_bright():
    for kind in (LSTMAutoencoder, LSTMFuturePredictor, CompositeLSTM):
        shown = pictures(kind=kind)
        image = np.asarray(prediction_strip({"model": shown}))
        for edge in (image[0], image[-1], image[:, 0], image[:, -1]):  # nor is a label cut off
            assert (edge == 30).all()
        empty = [part is None for part in (shown.reconstruction, shown.prediction)]
        assert empty == [kind is LSTMFuturePredictor, kind is LSTMAutoencoder]


def test_models_have_rows_only_in_the_halves_that_they_have_decoders_for():
    kinds = {"a": LSTMAutoencoder, "f": LSTMFuturePredictor, "c": CompositeLSTM}
    heights = {}
    for names in ("a", "f", "af", "afc"):
        shown = {name: pictures(kind=kinds[name]) for name in names}
        heights[names] = prediction_strip(shown).height
    row, line = 3 * SIDE + 3, 30  # of frames; of text
    halves = 2 * line + row, 2 * line + row  # the true frames with their caption
    output = row + line  # with its errors
    expected = {"a": halves[0] + output, "f": sum(halves) + output}
    expected |= {"af": sum(halves) + 2 * output, "afc": sum(halves) + 4 * output}
    assert heights == {name: 2 * (h + line) - line // 2 for name, h in expected.items()}


def test_the_error_of_each_frame_is_that_of_the_model():
    shown = pictures(kind=CompositeLSTM)
    model, batch = tiny_model(), next(iter(tiny_data().val_dataloader()))
    frames, future = (part[:, :2] / 255 for part in batch)
    with torch.no_grad():
        loss = model.loss(frames, future)
    assert shown.reconstruction.errors.shape == (3, 2) and shown.unit == "nats"
    assert shown.reconstruction.errors.mean() == pytest.approx(float(loss.reconstruction))
    assert shown.prediction.errors.mean() == pytest.approx(float(loss.future))
    real = VideoPictures.of(tiny_model(frame_type="real"), frames, future)
    assert real.unit == "half squared error"
    difference = real.prediction.images[1, 0] - real.future[1, 0]  # images are clamped to [0, 1]
    assert 0 < np.square(difference).sum() / 2 <= real.prediction.errors[1, 0]
    sure = torch.full((1, 1, 5), 40.0)  # a probability that rounds to 1
    assert loss_by_frame(sure, torch.zeros(1, 1, 5), "binary").item() == pytest.approx(200)


def test_errors_are_written_with_three_digits_and_nan_as_nothing():
    frames = np.zeros((2, 1, 40, 40), np.float32)

    def drawn(*numbers):
        errors = np.array(numbers, np.float32)[:, None]
        row = FrameRow("row", frames, errors)
        return np.asarray(draw_panels([Panel("", [row])], zoom=1, text=12))

    assert (drawn(1.234, 5) == drawn(1.23, 5)).all() and (drawn(1.23, 5) != drawn(1.24, 5)).any()
    assert (drawn(99.96, 5) == drawn(100, 5)).all() and (drawn(9.996, 5) == drawn(10, 5)).all()
    assert (drawn(12.34, 5) == drawn(12.3, 5)).all() and (drawn(1234.4, 5) == drawn(1234, 5)).all()
    assert (drawn(12.3, 5) != drawn(12.4, 5)).any()
    nothing, second = drawn(np.nan, np.nan), drawn(np.nan, 7)
    half = nothing.shape[1] - 40 - 12  # where the second frame begins
    assert (second != nothing).any() and (second[:, :half] == nothing[:, :half]).all()


def test_some_steps_of_the_future_can_be_chosen():
    shown = pictures(kind=CompositeLSTM)
    chosen = shown.at_steps([0, 3])
    np.testing.assert_array_equal(chosen.future, shown.future[[0, 3]])
    np.testing.assert_array_equal(chosen.prediction.images, shown.prediction.images[[0, 3]])
    np.testing.assert_array_equal(chosen.prediction.errors, shown.prediction.errors[[0, 3]])
    assert chosen.reconstruction is shown.reconstruction
    assert pictures(kind=LSTMAutoencoder).at_steps([1]).prediction is None


def test_frames_of_three_colours_are_made_as_the_data_says(tmp_path):
    class Colours:
        def images(self, values):
            return values.unflatten(-1, (SIDE, SIDE // 3, 3)).clamp(0, 1)

    shown = pictures(data=Colours())
    assert shown.frames.shape == (3, 2, SIDE, SIDE // 3, 3)
    save_gif(shown, tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 7 and gif.convert("RGB").size[0] > 2 * 160


@pytest.mark.parametrize("missing", ["", "reconstruction", "prediction"])
def test_the_gif_has_a_frame_for_every_time_step(tmp_path, missing):
    shown = noise(3, 2, 10, 10)
    if missing:
        setattr(shown, missing, None)
    save_gif(shown, tmp_path / "x.gif")
    outputs = [part and part.images for part in (shown.reconstruction, shown.prediction)]
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 3 + 3
        for half, (truth, output) in enumerate(
            zip((shown.frames, shown.future), outputs, strict=True)
        ):
            for t in range(3):
                gif.seek(3 * half + t)
                image = gif.convert("L")
                places = [place(image, frame, 16) for frame in truth[t]]
                assert places[1] == (places[0][0], places[0][1] + 163)
                if output is not None:
                    below = [(y + 163, x) for y, x in places]
                    assert [place(image, frame, 16) for frame in output[t]] == below


def test_validation_and_prediction_write_their_files(tmp_path):
    figure, writer = PredictionFigure(samples=2), PredictionWriter(samples=2)
    task, data = VideoTask(tiny_model(LSTMFuturePredictor)), tiny_data()
    t = trainer(tmp_path, figure, writer)
    t.validate(task, datamodule=data, verbose=False)
    assert figure.latest == tmp_path / "figures" / "step_000000.png"
    assert figure.latest.stat().st_size > 1000
    with Image.open(figure.latest.with_suffix(".gif")) as gif:
        assert gif.n_frames == 7

    t.predict(task, datamodule=tiny_data(future_frames=9), return_predictions=False)
    names = [f"batch_00{b}.{ext}" for b in (0, 1) for ext in ("npz", "png", "gif")]
    assert [path.name for path in writer.written] == names
    arrays = np.load(writer.written[0])
    assert arrays["prediction"].shape == arrays["future"].shape == (9, 4, SIDE * SIDE)
    frames = torch.from_numpy(arrays["frames"]) / 255
    with torch.no_grad():
        np.testing.assert_allclose(arrays["prediction"], task.model.predict(frames, 9), rtol=1e-5)


def test_frames_that_are_no_images_are_refused():
    batch = VideoBatch(torch.zeros(2, 1, 5), torch.zeros(2, 1, 5))
    with pytest.raises(ValueError, match="square one-channel images, got I=5"):
        VideoPictures.of(CompositeLSTM(5, 3), *batch)
