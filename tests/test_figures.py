"""The pictures show the frames, predictions and curves that they claim to show."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import SIDE, tiny_data, tiny_model, trainer

from fastlstm import CompositeLSTM, LSTMFuturePredictor
from fastlstm.training import PredictionFigure, PredictionWriter, VideoBatch, VideoTask
from fastlstm.training.callbacks.figures import VideoPictures, prediction_strip, save_gif


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


class Mirror(CompositeLSTM):
    """A model that reconstructs perfectly, and predicts the last frame forever.

    Reconstructions are in the decoder's order, the last frame first.
    """

    def reconstruct(self, frames):
        return frames.flip(0)

    def predict(self, frames, steps):
        return frames[-1:].expand(steps, -1, -1)


def pictures(samples=2):
    task = VideoTask(tiny_model(Mirror))
    return VideoPictures.of(task, next(iter(tiny_data().val_dataloader())), samples)


def test_reconstructions_are_drawn_in_the_order_of_the_input():
    drawn = dict(pictures().rows())
    assert list(drawn) == ["input", "reconstruction", "true future", "predicted"]
    assert drawn["input"].shape == (3, 2, SIDE, SIDE)
    np.testing.assert_array_equal(drawn["reconstruction"], drawn["input"])
    np.testing.assert_array_equal(drawn["predicted"][0], drawn["input"][-1])


def test_the_strip_shows_every_frame_once():
    shown = pictures()
    figure = prediction_strip(shown, "title")
    for sample, ax in enumerate(figure.axes):
        canvas = ax.images[0].get_array()
        assert canvas.shape == (4 * SIDE, 4 * SIDE)  # four rows; the longer one has four frames
        np.testing.assert_array_equal(canvas[:SIDE, SIDE : 2 * SIDE], shown.frames[1, sample])
        assert [label.get_text() for label in ax.get_yticklabels()] == [n for n, _ in shown.rows()]


def test_no_label_is_cut_off(tmp_path):
    prediction_strip(pictures(), "title").savefig(tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        pixels = np.asarray(image.convert("L"))
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 255).all()


def test_frames_of_three_colours_are_drawn_as_the_data_says(tmp_path):
    class Colours:
        def images(self, values):
            return values.unflatten(-1, (SIDE, SIDE // 3, 3)).clamp(0, 1)

    task = VideoTask(tiny_model(Mirror))
    batch = next(iter(tiny_data().val_dataloader()))
    shown = VideoPictures.of(task, batch, 2, Colours())
    assert shown.frames.shape == (3, 2, SIDE, SIDE // 3, 3)
    canvas = prediction_strip(shown, "title").axes[0].images[0].get_array()
    np.testing.assert_array_equal(canvas[:SIDE, : SIDE // 3], shown.frames[0, 0])
    save_gif(shown, tmp_path / "x.gif")
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 7


def test_the_gif_has_a_frame_for_every_time_step(tmp_path):
    save_gif(pictures(), tmp_path / "x.gif", zoom=1)
    with Image.open(tmp_path / "x.gif") as gif:
        assert gif.n_frames == 3 + 4
        gif.seek(4)  # the second future frame; tiles start below the caption, right of the labels
        tile = np.asarray(gif.convert("L"))[22 : 22 + SIDE, 104 : 104 + SIDE]
    expected = (pictures().future[1, 0] * 255).round()
    assert abs(tile.astype(float) - expected).max() <= 2


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
        VideoPictures.of(VideoTask(CompositeLSTM(5, 3)), batch, 1)
