"""Labelled videos: few labels are the same in every run; accuracy is that of whole videos."""

import itertools

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from tiny_training import SIDE, trainer
from torch.utils.data import DataLoader

import fastlstm.training.action_data
from fastlstm import LSTMClassifier
from fastlstm.data import MOTIONS, load_digits
from fastlstm.training import (
    ClassificationTask,
    LabelledBatch,
    MotionData,
    MotionVideoData,
    MovingMNISTData,
)
from fastlstm.training.commands.video import VideoCommand

CLASSES = len(MOTIONS)


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


def tiny_data(**changes):
    sizes = {"batch_size": 4, "num_frames": 3, "val_size": 20, "test_size": 10}
    return MotionData(size=SIDE, **{**sizes, **changes})


def tiny_task(**options):
    torch.manual_seed(0)
    return ClassificationTask(LSTMClassifier(SIDE * SIDE, 6, CLASSES), **options)


def first_batches(data, count):
    return list(itertools.islice(data.train_dataloader(), count))


def columns(batches):
    """Bytes and label of every video."""
    return [
        (frames.numpy().tobytes(), int(label))
        for batch in batches
        for frames, label in zip(batch.frames.unbind(1), batch.labels, strict=True)
    ]


def test_batches_are_bytes_time_first_with_integer_labels():
    (batch,) = first_batches(tiny_data(), 1)
    assert batch.frames.shape == (3, 4, SIDE * SIDE) and batch.frames.dtype == torch.uint8
    assert batch.labels.tolist() == [0, 1, 2, 3] and batch.labels.dtype == torch.int64
    assert len(set(columns(first_batches(tiny_data(), 20)))) == 80  # no end of videos


@pytest.mark.parametrize("labels", [1, 3])
def test_few_labels_are_a_fixed_set_that_comes_up_in_shuffled_rounds(labels):
    seen = columns(first_batches(tiny_data(labels_per_class=labels), 4 * 10 * labels // 4))
    size = CLASSES * labels
    rounds = [seen[start : start + size] for start in range(0, len(seen), size)]
    assert len(rounds) == 4
    for videos in rounds:
        assert set(videos) == set(rounds[0]) and len(set(videos)) == size
        assert sorted(label for _, label in videos) == sorted(list(range(CLASSES)) * labels)
    assert rounds[0] != rounds[1]
    other = columns(first_batches(tiny_data(labels_per_class=labels, seed=1), size // 2))
    assert not {frames for frames, _ in other} & {frames for frames, _ in seen}


def test_more_labels_are_more_of_the_same_videos():
    few, many = (
        set(columns(first_batches(tiny_data(labels_per_class=n, batch_size=10), n))) for n in (2, 5)
    )
    assert few < many


def test_splits_share_no_digit_and_evaluation_does_not_follow_the_seed():
    a, b = tiny_data(), tiny_data(seed=1, labels_per_class=1)
    for make in ("val_dataloader", "test_dataloader"):
        assert columns(getattr(a, make)()) == columns(getattr(b, make)())
    for split in ("train", "val", "test"):
        assert np.array_equal(a._videos(split, 0).digits, load_digits(split=split))
    labels = torch.cat([batch.labels for batch in a.val_dataloader()])
    assert (labels.bincount() == 2).all()


def test_shuffled_frames_are_the_same_frames_in_an_order_of_each_video():
    def videos(shuffle_frames):
        data = MotionData(batch_size=20, shuffle_frames=shuffle_frames)
        (batch,) = first_batches(data, 1)
        return [[frame.numpy().tobytes() for frame in v] for v in batch.frames.unbind(1)]

    ordered, shuffled = videos(False), videos(True)
    assert [sorted(video) for video in shuffled] == [sorted(video) for video in ordered]
    assert all(a != b for a, b in zip(shuffled, ordered, strict=True))
    # frames of a straight motion differ, so that where each one went can be told
    orders = {
        tuple(map(before.index, after))
        for before, after in zip(ordered, shuffled, strict=True)
        if len(set(before)) == 20
    }
    assert len(orders) > 5
    assert videos(True) == shuffled


def test_a_single_frame_is_the_middle_one():
    (whole,) = first_batches(tiny_data(num_frames=5), 1)
    (alone,) = first_batches(tiny_data(num_frames=5, single_frame=True), 1)
    assert torch.equal(alone.frames, whole.frames[2:3])


def test_unlabelled_videos_are_the_labelled_ones():
    (labelled,) = first_batches(tiny_data(num_frames=5), 1)
    options = {"batch_size": 4, "input_frames": 2, "future_frames": 3, "size": SIDE}
    options |= {"val_size": 4, "test_size": 4}
    data = MovingMNISTData(**options, num_digits=1, dataset="motion_mnist")
    (unlabelled,) = first_batches(data, 1)
    assert unlabelled.frames.shape[0] == 2
    assert torch.equal(torch.cat(unlabelled), labelled.frames)
    assert torch.equal(data.training_sample(4).future, unlabelled.future)
    val = next(iter(tiny_data(num_frames=5).val_dataloader()))
    assert torch.equal(torch.cat(next(iter(data.val_dataloader()))), val.frames)

    (by_old_name,) = first_batches(MotionVideoData(**options), 1)
    assert torch.equal(by_old_name.future, unlabelled.future)
    with pytest.raises(ValueError, match=r"dataset: expected one of .*motion_mnist.*, got 'mnist'"):
        MovingMNISTData(dataset="mnist")


def test_the_class_path_and_defaults_of_version_0_1(tmp_path):
    words = ["--data=fastlstm.training.MotionVideoData", "--data.size=30", "--data.batch_size=2"]
    words += ["--model.model=fastlstm.CompositeLSTM", "--model.model.hidden_size=4"]
    words += ["--model.model.input_size=900", "--trainer.fast_dev_run=1", "--baselines.sample=8"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    data = VideoCommand(["fit", f"--run={tmp_path}", *words]).datamodule
    assert type(data) is MotionVideoData is fastlstm.training.action_data.MotionVideoData
    assert (data.num_digits, data.val_size, data.test_size) == (1, 500, 2000)
    assert data.training_options().keys() >= {"num_digits", "size", "seed"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"num_frames": 0}, "num_frames: expected at least 1, got 0"),
        ({"labels_per_class": 0}, "labels_per_class: expected at least 1, got 0"),
        ({"shuffle_frames": True, "single_frame": True}, "expected at most one, got both"),
    ],
)
def test_data_arguments_are_checked(change, says):
    with pytest.raises(ValueError, match=says):
        tiny_data(**change)


def test_validation_reports_the_share_of_videos_named_rightly(tmp_path):
    task, data = tiny_task(), tiny_data()
    (got,) = trainer(tmp_path).validate(task, datamodule=data, verbose=False)
    frames, labels = (
        torch.cat(parts, dim)
        for parts, dim in zip(
            zip(*((b.frames, b.labels) for b in data.val_dataloader()), strict=True),
            (1, 0),
            strict=True,
        )
    )
    frames = frames.float() / 255
    with torch.no_grad():
        right = task.model(frames).softmax(-1).mean(0).argmax(1) == labels
        assert got["val/loss"] == pytest.approx(float(task.model.loss(frames, labels)), rel=1e-5)
    assert got["val/accuracy"] == pytest.approx(float(right.float().mean()))
    assert got["val/error"] == pytest.approx(1 - got["val/accuracy"])
    assert set(got) == {"val/loss", "val/accuracy", "val/error"}


def test_a_video_of_many_windows_is_one_video(tmp_path):
    task = tiny_task()
    frames, labels, windows = torch.rand(3, 6, SIDE * SIDE), torch.tensor([1, 0]), [4, 2]
    p = task.model.probabilities(frames)
    expected = torch.stack((p[:4].mean(0), p[4:].mean(0)))
    labels[0] = expected[0].argmax()  # one of two is right
    labels[1] = (expected[1].argmax() + 1) % CLASSES
    batch = LabelledBatch(frames, labels, torch.tensor(windows))
    torch.testing.assert_close(task.predict_step(batch, 0), expected)

    one = DataLoader([batch], batch_size=None)
    (got,) = trainer(tmp_path).test(task, one, verbose=False)
    loss = task.model.loss(frames, labels.repeat_interleave(batch.windows))
    assert got["test/accuracy"] == 0.5
    assert got["test/loss"] == pytest.approx(loss.item(), rel=1e-5)


class Recorder(Callback):
    def __init__(self):
        self.videos, self.losses = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.videos += columns([batch])
        self.losses.append(float(outputs["loss"]))


def test_a_resumed_run_sees_the_few_videos_in_the_order_of_an_uninterrupted_one(tmp_path):
    def run(steps, recorder, ckpt_path=None):
        t = trainer(tmp_path, recorder, max_steps=steps, limit_val_batches=0)
        task = tiny_task(schedule="constant")
        t.fit(task, datamodule=tiny_data(labels_per_class=2), ckpt_path=ckpt_path)
        t.save_checkpoint(tmp_path / "end.ckpt")

    whole, first, rest = Recorder(), Recorder(), Recorder()
    run(12, whole)
    run(7, first)
    run(12, rest, tmp_path / "end.ckpt")
    assert first.videos + rest.videos == whole.videos
    assert first.losses + rest.losses == whole.losses
    assert len(set(whole.videos)) == 20


def test_it_learns_a_few_labels_by_heart(tmp_path):
    recorder = Recorder()
    task = tiny_task(optimizer=lambda p: torch.optim.Adam(p, 0.02), schedule="constant")
    data = tiny_data(labels_per_class=1, batch_size=10)
    trainer(tmp_path, recorder, max_steps=60, limit_val_batches=0).fit(task, datamodule=data)
    assert recorder.losses[0] > 2 and recorder.losses[-1] < 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"schedule": "sqrt"}, "schedule: expected .* got 'sqrt'"),
        ({"input_lr_scale": 0}, "input_lr_scale: expected a number above 0, got 0"),
    ],
)
def test_task_arguments_are_checked(options, says):
    with pytest.raises(ValueError, match=says):
        tiny_task(**options)


def test_a_checkpoint_of_another_classifier_is_one_error(tmp_path):
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(tiny_task(), datamodule=tiny_data())
    t.save_checkpoint(tmp_path / "a.ckpt")
    other = ClassificationTask(LSTMClassifier(SIDE * SIDE, 6, CLASSES + 1))
    with pytest.raises(ValueError, match=r"num_classes=11 as configured, got num_classes=10"):
        trainer(tmp_path).fit(other, datamodule=tiny_data(), ckpt_path=tmp_path / "a.ckpt")
