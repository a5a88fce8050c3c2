"""Features of video frames: computed once, again if anything changes, and whole or absent."""

import pickle

import jsonargparse
import numpy as np
import pytest
from clips import PLAIN, Means, frame_features, noise, write_clip
from torch import nn

from fastlstm.data import FrameFeatures, VideoFrames
from fastlstm.training import ActionVideoData


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder with a clip of 20 frames."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "clip.avi", noise(20))
    return folder


def test_features_are_what_the_backbone_makes_of_the_square_in_the_middle(folders, tmp_path):
    video, backbone = folders / "clip.avi", Means()
    got = FrameFeatures(backbone, **PLAIN, cache=tmp_path)(video)
    frames = VideoFrames(video, (16, 24), "rgb")[0:20][:, :, 4:20]
    expected = np.concatenate((2 * frames.mean((1, 2)) / 255, np.ones((20, 1))), 1)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert got.dtype == np.float32 and backbone.training and backbone.seen == 20

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    scaled = frame_features(tmp_path, mean=mean, std=std)(video)
    standard = 2 * (frames.mean((1, 2)) / 255 - mean) / std
    np.testing.assert_allclose(scaled[:, :3], standard, rtol=1e-4, atol=1e-5)


def test_features_are_computed_once_and_again_if_anything_changes(folders, tmp_path):
    def seen(weight=2.0, **options):
        made = frame_features(tmp_path, weight, **options)
        made(video)
        return made.backbone.seen

    video = write_clip(tmp_path / "a.avi", noise(6))
    assert [seen(), seen()] == [6, 0]
    changes = ({"weight": 3.0}, {"size": 8}, {"mean": (0.5, 0.0, 0.0)}, {"description": "fc7"})
    for change in changes:
        assert [seen(**change), seen(**change)] == [6, 0]
    assert seen(batch_size=1) == 0
    write_clip(video, noise(7))
    assert seen() == 7


def test_interrupted_features_leave_no_file_and_go_on_with_the_next(folders, tmp_path):
    class Breaks(Means):
        breaks = True

        def forward(self, images):
            if self.breaks and self.seen >= 8:
                raise KeyboardInterrupt
            return super().forward(images)

    backbone = Breaks()
    made = FrameFeatures(backbone, **PLAIN, cache=tmp_path / "cache")
    with pytest.raises(KeyboardInterrupt):
        made(folders / "clip.avi")
    assert not list((tmp_path / "cache").iterdir())
    backbone.breaks = False
    assert made(folders / "clip.avi").shape == (20, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": 0}, "size: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"mean": (0.5,)}, "mean: expected 3 numbers, got 1"),
    ],
)
def test_arguments_of_frame_features_are_checked(tmp_path, options, says):
    with pytest.raises(ValueError, match=says):
        frame_features(tmp_path, **options)


def test_what_is_no_backbone_or_no_video_is_named(folders, tmp_path):
    with pytest.raises(ValueError, match=r"backbone: expected features \(8, D\), got \(8, 3, 16"):
        FrameFeatures(nn.Identity(), **PLAIN, cache=tmp_path)(folders / "clip.avi")
    with pytest.raises(FileNotFoundError, match="video: expected a video file"):
        frame_features(tmp_path)(tmp_path / "absent.avi")


def test_names_of_version_0_1(folders, tmp_path):
    from fastlstm.data import Percepts
    from fastlstm.data.deals import dealt
    from fastlstm.data.shuffled_rounds import shuffled_rounds

    assert Percepts is FrameFeatures and dealt is shuffled_rounds
    made = frame_features(tmp_path)
    now, then = (
        b"cfastlstm.data.frame_features\nFrameFeatures",
        b"cfastlstm.data.percepts\nPercepts",
    )
    data = pickle.dumps(made, protocol=0)
    assert data.count(now) == 1
    loaded = pickle.loads(data.replace(now, then))
    assert loaded.file(folders / "clip.avi") == made.file(folders / "clip.avi")


@pytest.mark.parametrize(
    "name",
    ["fastlstm.data.Percepts", "fastlstm.data.percepts.Percepts", "fastlstm.data.FrameFeatures"],
)
def test_class_paths_of_frame_features(name):
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(ActionVideoData, "data")
    features = {"class_path": name, "init_args": {"backbone": {"class_path": "torch.nn.Identity"}}}
    words = {"dataset": "ucf101", "folder": "x", "percepts": features}
    made = parser.instantiate_classes(parser.parse_object({"data": words})).data
    assert type(made.percepts) is FrameFeatures
