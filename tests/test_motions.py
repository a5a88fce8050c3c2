"""The label of a video is in its motion: no single frame tells it, all frames together do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm.data import MOTIONS, MotionMNIST

CLASSES = len(MOTIONS)


def blobs(count=7, side=5, seed=0):
    """Digits without a black pixel, so that a frame shows exactly where each digit is."""
    return np.random.default_rng(seed).integers(1, 256, (count, side, side), np.uint8)


def of_class(name, count, **options):
    """(T, count, 2) positions of the one digit of ``count`` videos of a class."""
    data = MotionMNIST(blobs(), **options)
    return data.positions(np.arange(count) * CLASSES + MOTIONS.index(name))[:, :, 0]


@pytest.mark.parametrize("name", MOTIONS)
def test_at_every_time_the_position_is_uniform_whatever_the_label(name):
    count = 8000
    positions = of_class(name, count, seed=3)
    steps = np.arange(1, count + 1)[:, None] / count
    for at_time in positions:
        # Kolmogorov-Smirnov: above this by chance once in 8,000 times
        assert abs(np.sort(at_time, 0) - steps).max() < 2.2 / count**0.5
        cells = np.histogram2d(*at_time.T, bins=5, range=[[0, 1], [0, 1]])[0]
        squared = (cells - count / 25) ** 2 / (count / 25)
        assert squared.sum() < 60  # chi squared of 24 degrees of freedom: once in 17,000 times


def test_labels_are_balanced_and_tell_nothing_of_the_digit():
    side, count = 3, 8
    digits = np.repeat(np.arange(1, count + 1, dtype=np.uint8), side * side).reshape(-1, side, side)
    videos, labels = MotionMNIST(digits, num_frames=1, size=6).__getitems__(range(8000))
    assert (np.bincount(labels) == 8000 / CLASSES).all()
    pairs = np.zeros((CLASSES, count))
    np.add.at(pairs, (labels, videos.reshape(8000, -1).max(1) - 1), 1)
    expected = 8000 / CLASSES / count
    assert ((pairs - expected) ** 2 / expected).sum() < 120  # of 63 degrees of freedom


@pytest.mark.parametrize(
    ("forwards", "backwards"),
    [("accelerating", "decelerating"), ("spiral out", "spiral in")],
)
def test_only_the_order_of_frames_tells_these_apart(forwards, backwards):
    def mean_steps(name):
        return np.linalg.norm(np.diff(of_class(name, 6000), axis=0), axis=-1).mean(1)

    slow_to_fast, fast_to_slow = mean_steps(forwards), mean_steps(backwards)
    assert slow_to_fast[-1] > 3 * slow_to_fast[0]
    np.testing.assert_allclose(fast_to_slow, slow_to_fast[::-1], rtol=0.05)


def test_mean_speed_tells_little():
    """The mean speeds of the classes differ by less than speeds vary within a class."""
    lengths = {
        name: np.linalg.norm(np.diff(of_class(name, 2000), axis=0), axis=-1).mean(0)
        for name in MOTIONS
    }
    means = [length.mean() for length in lengths.values()]
    assert max(means) - min(means) < min(length.std() for length in lengths.values())


def features(positions):
    """Features (B, F) of positions (T, B, 2): speeds and turns, as measured from whole pixels."""
    steps = np.diff(np.floor(36 * positions), axis=0)
    length = np.linalg.norm(steps, axis=-1)
    mean = length.mean(0) + 1e-9
    cosine = (steps[1:] * steps[:-1]).sum(-1) / (length[1:] * length[:-1] + 1e-9)
    jerk = abs(np.diff(steps, axis=0)).sum(-1) / mean
    speed = length / mean
    return np.concatenate((speed, np.sort(speed, 0), cosine, np.sort(cosine, 0), jerk)).T


def nearest_neighbour_accuracy(examples):
    labels = np.arange(len(examples)) % CLASSES
    half = len(examples) // 2
    known, asked = examples[:half], examples[half:]
    distance = (known**2).sum(1) - 2 * asked @ known.T
    return (labels[distance.argmin(1)] == labels[half:]).mean()


def test_motions_are_told_apart_by_all_frames_in_order_and_by_none_alone():
    positions = MotionMNIST(blobs()).positions(range(3000))[:, :, 0]
    assert nearest_neighbour_accuracy(features(positions)) > 0.75
    for alone in positions[[0, 10, 19]]:
        assert nearest_neighbour_accuracy(alone) < 0.13  # chance is 0.1
    shuffled = np.random.default_rng(0).permuted(positions, axis=0)
    assert nearest_neighbour_accuracy(features(shuffled)) < 0.4


def test_frames_show_the_digits_where_the_positions_say():
    data = MotionMNIST(blobs(), num_digits=1, size=16)
    videos, _ = data.__getitems__(range(40))
    corners = np.stack((videos.any(3).argmax(2), videos.any(2).argmax(2)), -1)
    expected = np.floor(11 * data.positions(range(40)))[:, :, 0]
    np.testing.assert_array_equal(corners.swapaxes(0, 1), expected)
    assert (videos.reshape(40 * 20, -1).astype(bool).sum(1) == 25).all()  # never cut off


@settings(max_examples=40, deadline=None)
@given(
    indices=st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=9),
    num_digits=st.integers(1, 2),
    num_frames=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_a_video_depends_on_seed_and_index_alone(indices, num_digits, num_frames, seed):
    data = MotionMNIST(blobs(), num_frames=num_frames, num_digits=num_digits, size=12, seed=seed)
    videos, labels = data.__getitems__(indices)
    assert videos.shape == (len(indices), num_frames, 12, 12)
    for video, label, index in zip(videos, labels, indices, strict=True):
        alone, its_label = data[index]
        np.testing.assert_array_equal(video, alone)
        assert label == its_label == index % CLASSES


def test_neighbours_and_seeds_differ():
    videos, _ = MotionMNIST(blobs(), size=32).__getitems__(range(64))
    assert len({video.tobytes() for video in videos}) == 64
    assert (MotionMNIST(blobs(), size=32, seed=1)[0][0] != videos[0]).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"digits": blobs()[:0]}, "digits: expected at least 1 image, got 0"),
        ({"num_frames": 0}, "num_frames: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        MotionMNIST(**{"digits": blobs(), **change})


def test_an_index_outside_is_an_index_error():
    with pytest.raises(IndexError, match=r"expected 0 \.\. 9, got 10"):
        MotionMNIST(blobs(), size=8, length=10)[10]
