"""Readers of UCF-101 and HMDB-51 in their official layouts, and training on them."""

import numpy as np
import pytest
import torch
from clips import frame_features, noise, write_clip
from tiny_training import trainer

from fastlstm import CompositeLSTM, LSTMClassifier
from fastlstm.data import load_actions
from fastlstm.training import (
    ActionFutureData,
    ActionVideoData,
    ClassificationTask,
    PredictionFigure,
    VideoTask,
)

GROUPS = 24  # recordings of each class, in 3 of which official test clips are
UCF = ("ApplyLipstick", "HandstandPushups")
HMDB = ("brush_hair", "wave")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Both data sets, with two classes each, and clips of 20 frames except one of 5."""
    root = tmp_path_factory.mktemp("actions")
    clip = write_clip(root / "clip.avi", noise(20)).read_bytes()

    ucf, lists = root / "ucf", root / "ucf" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("".join(f"{n + 1} {c}\r\n" for n, c in enumerate(UCF)))
    train, test = [], []
    for number, name in enumerate(UCF):
        (ucf / "UCF-101" / name).mkdir(parents=True)
        for group in range(1, GROUPS + 1):
            for part in (1, 2):
                file = f"{name}/v_{name}_g{group:02}_c{part:02}.avi"
                (ucf / "UCF-101" / file).write_bytes(clip)
                if group <= 3:
                    test.append(f"{file}\n")
                else:
                    train.append(f"{file} {number + 1}\n")
    (lists / "trainlist01.txt").write_text("".join(train))
    (lists / "testlist01.txt").write_text("".join(test))
    write_clip(ucf / "UCF-101" / UCF[0] / f"v_{UCF[0]}_g01_c01.avi", noise(5))

    hmdb, lists = root / "hmdb", root / "hmdb" / "testTrainMulti_7030_splits"
    lists.mkdir(parents=True)
    for name in HMDB:
        (hmdb / name).mkdir()
        lines = []
        for group in range(GROUPS):
            file = f"Film_{group}_{name}_u_nm_np1_ba_goo_0.avi"
            (hmdb / name / file).write_bytes(clip)
            lines.append(f"{file} {2 if group < 3 else 1} \n")
        lines.append("left_out.avi 0 \n")
        (lists / f"{name}_test_split1.txt").write_text("".join(lines))
    return root


@pytest.mark.parametrize(
    ("dataset", "folder", "classes", "test_size", "size"),
    [("ucf101", "ucf", UCF, 12, 96), ("hmdb51", "hmdb", HMDB, 6, 48)],
)
def test_splits_are_the_official_ones_and_recordings_stay_together(
    folders, dataset, folder, classes, test_size, size
):
    splits = {s: load_actions(dataset, folders / folder, s) for s in ("train", "val", "test")}
    assert all(split.classes == classes for split in splits.values())
    clips = {name: split.clips for name, split in splits.items()}
    assert len(clips["test"]) == test_size
    assert sum(map(len, clips.values())) == size  # what is marked 0 is in none
    groups = [{clip.group for clip in part} for part in clips.values()]
    assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])
    for clip in (clip for part in clips.values() for clip in part):
        assert clip.path.parent.name == classes[clip.label] and clip.path.is_file()


def test_hmdb_test_clips_are_those_marked_2(folders):
    clips = load_actions("hmdb51", folders / "hmdb", "test").clips
    assert {clip.group for clip in clips} == {"Film_0", "Film_1", "Film_2"}


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda f: load_actions("kinetics", f), ValueError, "dataset: expected one of"),
        (lambda f: load_actions("ucf101", f, "all"), ValueError, "split: expected one of"),
        (lambda f: load_actions("ucf101", f, fold=4), ValueError, "fold: expected one of"),
        (lambda f: load_actions("ucf101", f / "no"), FileNotFoundError, "folder: .* is absent"),
        (lambda f: load_actions("ucf101", f), FileNotFoundError, r"classInd\.txt is absent"),
        (lambda f: load_actions("hmdb51", f), FileNotFoundError, r"<class>_test_split1\.txt"),
        (
            lambda f: load_actions("ucf101", f / "ucf", fold=2),
            FileNotFoundError,
            r"trainlist02\.txt is absent",
        ),
    ],
)
def test_what_is_missing_is_named(folders, call, error, says):
    with pytest.raises(error, match=says):
        call(folders)


def test_missing_clips_and_wrong_lines_are_named(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Archery\n")
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    with pytest.raises(FileNotFoundError, match="a folder of clips for each class"):
        load_actions("ucf101", tmp_path, "test")
    (tmp_path / "Archery").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the 1 test clips .* 1 are absent.*g01_c01"):
        load_actions("ucf101", tmp_path, "test")
    for line in ("Boxing/v_Boxing_g01_c01.avi", "nothing"):
        (lists / "testlist01.txt").write_text(line)
        with pytest.raises(ValueError, match="expected lines of <class>/<clip>"):
            load_actions("ucf101", tmp_path, "test")
    (lists / "testlist01.txt").write_text("")
    with pytest.raises(ValueError, match="clips of the test split"):
        load_actions("ucf101", tmp_path, "test")
    (lists / "classInd.txt").write_text("Archery\n")
    with pytest.raises(ValueError, match="expected lines of 2 words, got 'Archery'"):
        load_actions("ucf101", tmp_path, "test")


@pytest.fixture
def action_data(folders, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "percepts"

    def make(kind=ActionVideoData, **options):
        made = frame_features(cache, size=16)
        return kind("ucf101", str(folders / "ucf"), made, **{"batch_size": 6, **options})

    return make


def test_training_windows_lie_in_their_clips_and_all_clips_come_up(action_data):
    data = action_data(window=8, batch_size=16)
    assert data.classes == UCF
    clips = data.clips("train")
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape == (8, 16, 4) and batch.frames.dtype == torch.float32
    windows = data._training_videos()
    frames, labels = windows.__getitems__(range(len(clips)))
    assert sorted(labels) == sorted(clip.label for clip in clips)
    whole = data.percepts(clips[0].path)  # all clips are one video here, but for a test clip
    places = [
        [t for t in range(13) if np.array_equal(whole[t : t + 8], window)] for window in frames
    ]
    assert all(places) and len({place[0] for place in places}) > 4
    again, _ = action_data(window=8)._training_videos().__getitems__([5, 3])
    np.testing.assert_array_equal(again, frames[[5, 3]])


def test_a_short_clip_goes_on_with_its_last_frame(action_data):
    data = action_data(window=30)
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape[0] == 30
    assert torch.equal(batch.frames[20:], batch.frames[19].expand(10, -1, -1))


def test_few_labels_are_the_same_clips_of_each_class(action_data):
    few = action_data(labels_per_class=3).clips("train")
    assert few == action_data(labels_per_class=3).clips("train")
    assert [clip.label for clip in few] == [0, 0, 0, 1, 1, 1] and len(set(few)) == 6
    assert few != action_data(labels_per_class=3, seed=1).clips("train")
    with pytest.raises(ValueError, match=r"labels_per_class: .* of ApplyLipstick, got 99"):
        action_data(labels_per_class=99).clips("train")


def test_a_clip_is_tested_by_all_its_windows(action_data, tmp_path):
    data = action_data(window=8, stride=4)
    batches = list(data.test_dataloader())
    assert [batch.windows.item() for batch in batches] == [1] + [4] * 11  # the first has 5 frames
    assert batches[0].frames.shape == (5, 1, 4)
    task = ClassificationTask(LSTMClassifier(4, 5, 2))
    (got,) = trainer(tmp_path).test(task, datamodule=data, verbose=False)
    clips = data.clips("test")
    with torch.no_grad():
        right = [
            task.model.video_probabilities(torch.from_numpy(data.percepts(c.path).copy()), 8, 4)
            .argmax()
            .item()
            == c.label
            for c in clips
        ]
    assert got["test/accuracy"] == pytest.approx(np.mean(right))


def test_a_classifier_and_a_video_model_train_on_percepts(action_data, tmp_path):
    t = trainer(tmp_path, max_steps=2, val_check_interval=2)
    t.fit(ClassificationTask(LSTMClassifier(4, 5, 2)), datamodule=action_data())
    assert "val/accuracy" in t.callback_metrics
    data = action_data(ActionFutureData, input_frames=6, future_frames=3, val_size=4, test_size=4)
    batch = next(iter(data.train_dataloader()))
    assert batch.frames.shape == (6, 6, 4) and batch.future.shape == (3, 6, 4)
    assert next(iter(data.val_dataloader())).frames.shape == (6, 4, 4)
    figure = PredictionFigure()
    t = trainer(tmp_path, figure, max_steps=2, val_check_interval=2)
    t.fit(VideoTask(CompositeLSTM(4, 5, frames="real")), datamodule=data)
    assert "val/future" in t.callback_metrics
    assert figure.latest is None  # percepts are no pictures
    with pytest.raises(ValueError, match="values: expected pictures, got the frames of ActionFut"):
        data.images(batch.frames)


@pytest.mark.parametrize("name", ["batch_size", "window", "stride", "labels_per_class"])
def test_data_arguments_are_checked(action_data, name):
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        action_data(**{name: 0})
