"""Training reports what it claims to measure, and runs the number of steps it is told to."""

import itertools
import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from tiny_training import SIDE, Recorder, tiny_data, tiny_model, trainer

from fastlstm import LSTMAutoencoder, LSTMFuturePredictor
from fastlstm.training import (
    BaselineErrors,
    Baselines,
    SmoothImageWeights,
    VideoTask,
    frame_error,
)
from fastlstm.training.callbacks.initialization import smooth_over_image
from fastlstm.training.datamodules.base import InfiniteBatchSampler
from fastlstm.training.schedule import learning_rate_factor


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


def test_batches_are_bytes_time_first_and_cut_where_asked():
    data = tiny_data()
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape == (3, 4, SIDE * SIDE)
    assert batch.future.shape == (4, 4, SIDE * SIDE)
    assert batch.frames.dtype == batch.future.dtype == torch.uint8
    whole = torch.cat(batch).unflatten(2, (SIDE, SIDE)).transpose(0, 1).numpy()
    np.testing.assert_array_equal(whole, data._videos("train", 0).__getitems__(range(4)))
    sample = data.training_sample(4)
    assert torch.equal(sample.frames, batch.frames) and torch.equal(sample.future, batch.future)


def test_evaluation_videos_do_not_follow_the_training_seed_and_differ_between_splits():
    a, b = tiny_data(seed=0), tiny_data(seed=1)
    for make in ("val_dataloader", "test_dataloader"):
        x, y = list(getattr(a, make)()), list(getattr(b, make)())
        assert [len(batch.frames[0]) for batch in x] == [4, 2]
        assert all(torch.equal(p.frames, q.frames) for p, q in zip(x, y, strict=True))
    first = [next(iter(d)).frames for d in (a.val_dataloader(), a.test_dataloader())]
    assert not torch.equal(*first)
    assert not torch.equal(a.training_sample(4).frames, b.training_sample(4).frames)


def test_endless_batches_go_on_from_where_they_are_told_and_ranks_share_them():
    now = 0
    whole = [b for b, _ in zip(InfiniteBatchSampler(3, lambda: now), range(8), strict=False)]
    assert list(itertools.chain(*whole)) == list(range(24))
    batches = InfiniteBatchSampler(3, lambda: now)
    now = 5
    assert next(iter(batches)) == whole[5]
    ranks = [InfiniteBatchSampler(3, lambda: 2, rank, 2) for rank in (0, 1)]
    assert [next(iter(r)) for r in ranks] == [whole[4], whole[5]]


@pytest.mark.parametrize("name", ["batch_size", "input_frames", "future_frames", "val_size"])
def test_data_arguments_are_checked(name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        tiny_data(**{name: 0})


@pytest.mark.parametrize("kind", ["binary", "real"])
def test_frame_error_is_the_models_loss(kind):
    model = tiny_model(frames=kind)
    frames, future = torch.rand(3, 2, SIDE * SIDE), torch.rand(4, 2, SIDE * SIDE)
    loss = model.loss(frames, future)
    torch.testing.assert_close(frame_error(model.predict(frames, 4), future, kind), loss.future)
    backwards = model.reconstruct(frames).flip(0)
    torch.testing.assert_close(frame_error(backwards, frames, kind), loss.reconstruction)


@pytest.mark.parametrize("kind", ["binary", "real"])
def test_baselines_are_finite_and_what_a_direct_computation_gives(kind):
    def floats(batch):
        return [part.double() / 255 for part in batch]

    data = tiny_data()
    frames, future = floats(data.training_sample(64))
    errors = BaselineErrors.fit(frames, future, kind)
    mean = torch.cat([frames, future]).reshape(-1, SIDE * SIDE).mean(0)
    if kind == "binary":
        mean = mean.clamp(1e-5, 1 - 1e-5)
    torch.testing.assert_close(errors.mean_frame, mean)

    frames, future = floats(next(iter(data.val_dataloader())))

    def direct(p):
        if kind == "real":
            per_pixel = (p - future) ** 2 / 2
        else:
            per_pixel = -(future * p.log() + (1 - future) * (1 - p).log())
        return per_pixel.sum(2).mean()

    w = errors.copy_weight
    blend = (1 - w) * mean + w * frames[-1]
    for ours, predicted in (
        (errors.mean_frame_error(future), mean.expand_as(future)),
        (errors.copy_last_error(frames, future), blend.expand_as(future)),
    ):
        assert math.isfinite(ours)
        torch.testing.assert_close(ours.double(), direct(predicted), rtol=1e-5, atol=0)


def test_the_copied_frame_is_blended_with_the_best_weight():
    frames, future = (part.float() / 255 for part in tiny_data().training_sample(64))
    best = BaselineErrors.fit(frames, future, "binary")
    error = float(best.copy_last_error(frames, future))
    assert error < float(best.mean_frame_error(future))
    for w in np.linspace(0, 0.99, 34):
        other = BaselineErrors(best.mean_frame, float(w), "binary")
        assert float(other.copy_last_error(frames, future)) >= error * (1 - 1e-5)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (tiny_model(), {"reconstruction", "future", "future_closed_loop"}),
        (tiny_model(conditional_future=True), {"reconstruction", "future", "future_closed_loop"}),
        (tiny_model(LSTMAutoencoder), {"reconstruction"}),
        (tiny_model(LSTMFuturePredictor), {"future", "future_closed_loop"}),
    ],
    ids=["composite", "conditional", "autoencoder", "future"],
)
def test_validation_reports_each_error_and_the_baselines(tmp_path, model, names):
    task, data = VideoTask(model), tiny_data()
    (got,) = trainer(tmp_path, Baselines(32)).validate(task, datamodule=data, verbose=False)
    baselines = {"mean_frame", "copy_last"} if "future" in names else set()
    assert set(got) == {f"val/{name}" for name in names | baselines | {"total", "error"}}

    # over all the videos at once, what Lightning averages over unequal batches
    batches = list(data.val_dataloader())
    frames = torch.cat([b.frames for b in batches], 1).float() / 255
    future = torch.cat([b.future for b in batches], 1).float() / 255
    with torch.no_grad():
        loss = model.loss(frames, future)
        error = 0.0
        for name in names & {"reconstruction", "future"}:
            assert got[f"val/{name}"] == pytest.approx(float(getattr(loss, name)), rel=1e-5)
        if "future" in names:
            closed = float(frame_error(model.predict(frames, 4), future, "binary"))
            assert got["val/future_closed_loop"] == pytest.approx(closed, rel=1e-5)
            coincide = got["val/future"] == pytest.approx(closed, rel=1e-6)
            assert coincide is not model.config.get("conditional_future", False)
            error += closed
        if "reconstruction" in names:
            error += float(loss.reconstruction)
    assert got["val/error"] == pytest.approx(error, rel=1e-5)
    assert got["val/total"] == pytest.approx(float(loss.total), rel=1e-5)


def learning_rates(tmp_path, **options):
    class Rates(Callback):
        seen: list

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    rates.seen = []
    task = VideoTask(tiny_model(), lambda p: torch.optim.SGD(p, lr=1.0), **options)
    trainer(tmp_path, rates, limit_val_batches=0).fit(task, datamodule=tiny_data())
    return rates.seen


def test_weights_that_read_and_emit_frames_have_their_own_learning_rates(tmp_path):
    model = tiny_model(conditional_future=True)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    # Adam's first step moves every weight with a gradient by its learning rate
    scales = {"input_lr_scale": 0.1, "readout_lr_scale": 3.0}
    task = VideoTask(model, lambda p: torch.optim.Adam(p, lr=0.01), "constant", **scales)
    fit = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    fit.fit(task, datamodule=tiny_data())
    for name, parameter in model.named_parameters():
        moved = (parameter.detach() - start[name]).abs().max()
        expected = {"weight_ih_l0": 0.001, "readout.weight": 0.03}
        expected = next((rate for end, rate in expected.items() if name.endswith(end)), 0.01)
        assert float(moved) == pytest.approx(expected, rel=1e-2), name
    with pytest.raises(ValueError, match=r"input_lr_scale: expected a number above 0, got 0"):
        VideoTask(model, input_lr_scale=0)
    with pytest.raises(ValueError, match=r"readout_lr_scale: expected a number above 0, got -1"):
        VideoTask(model, readout_lr_scale=-1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "linear", "warmup_steps": 2}, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * s / 6)) / 2 for s in range(6)]),
        ({"schedule": "staircase", "warmup_steps": 1}, [1 / 2, 1, 1, 1, 1, 1]),
    ],
)
def test_the_learning_rate_follows_the_schedule(tmp_path, options, expected):
    assert learning_rates(tmp_path, **options) == pytest.approx(expected)


def test_the_staircase_falls_every_10000_steps():
    factor = learning_rate_factor("staircase", 0, 30_000)
    assert [factor(s) for s in (0, 9_999, 10_000, 20_000)] == pytest.approx([1, 1, 0.9, 0.81])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schedule": "sqrt"}, "schedule: expected .* got 'sqrt'"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, got -1"),
        ({"sampling": 1.5}, r"sampling: expected a probability in \[0, 1\], got 1.5"),
        ({"model": tiny_model(batch_first=True)}, "batch_first: expected False"),
    ],
)
def test_task_arguments_are_checked(change, says):
    with pytest.raises(ValueError, match=says):
        VideoTask(**{"model": tiny_model(), **change})


def test_training_without_an_end_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="max_steps: expected a number of steps"):
        trainer(tmp_path, max_steps=-1).fit(VideoTask(tiny_model()), datamodule=tiny_data())


def test_sampling_reaches_the_model(tmp_path):
    def losses(sampling):
        recorder = Recorder()
        task = VideoTask(tiny_model(conditional_future=True), sampling=sampling)
        trainer(tmp_path, recorder, max_steps=1, limit_val_batches=0).fit(
            task, datamodule=tiny_data()
        )
        return recorder.losses

    assert losses(0.0) != losses(1.0)


def test_a_fresh_run_starts_with_smoothed_weights_of_pixels_a_resumed_one_as_it_was(tmp_path):
    def weights(ckpt_path=None, save=None):
        model = tiny_model(conditional_future=True)
        task = VideoTask(model, lambda p: torch.optim.SGD(p, lr=0.0))
        t = trainer(tmp_path, SmoothImageWeights(1.5, 1.0, 0.5), max_steps=1, limit_val_batches=0)
        t.fit(task, datamodule=tiny_data(), ckpt_path=ckpt_path)
        if save:
            t.save_checkpoint(save)
        return task.model.state_dict()

    path = tmp_path / "a.ckpt"
    fresh = weights(save=path)
    expected = tiny_model(conditional_future=True).state_dict()
    for name in ("encoder.weight_ih_l0", "future_decoder.weight_ih_l0"):
        expected[name] = 0.5 * smooth_over_image(expected[name], None, 1.5)
    for name in ("reconstruction_decoder.readout.weight", "future_decoder.readout.weight"):
        expected[name] = smooth_over_image(expected[name].T, None, 1.0).T
    torch.testing.assert_close(fresh, expected)
    resumed = weights(ckpt_path=path)
    assert all(torch.equal(resumed[name], fresh[name]) for name in fresh)


def test_sigmas_are_checked():
    with pytest.raises(ValueError, match=r"output_sigma: expected at least 0, got -1"):
        SmoothImageWeights(1.0, -1.0)


def test_rows_that_are_no_squares_cannot_be_smoothed():
    with pytest.raises(ValueError, match="rows of square images, got size 5"):
        smooth_over_image(torch.zeros(2, 5), None, 1.0)


def test_floats_pass_through_and_bytes_are_scaled():
    task = VideoTask(tiny_model())
    assert torch.equal(
        task.floats(torch.tensor([0, 255, 51], dtype=torch.uint8)), torch.tensor([0, 1, 0.2])
    )
    assert torch.equal(task.floats(torch.tensor([0.5, 200])), torch.tensor([0.5, 200]))
