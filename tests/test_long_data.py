"""Long sequences on disk: any slice is read exactly, memory stays small, errors are clear."""

import gc
import multiprocessing as mp
import pickle

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from fastlstm.data import (
    VideoFrames,
    load_text,
    open_sequences,
    sequence_files,
    sequences,
)

ARRAY = np.arange(60, dtype=np.float32).reshape(20, 3)


def write_numpy(folder):
    np.save(folder / "a.npy", ARRAY)


def write_safetensors(folder):
    save_file({"a": ARRAY}, folder / "a.safetensors")


def write_parquet(folder):
    columns = {"x": ARRAY[:, 0], "yz": list(ARRAY[:, 1:])}  # a number, and a list of two
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=6)


@pytest.mark.parametrize("write", [write_numpy, write_safetensors, write_parquet])
def test_slices_are_those_of_the_array(tmp_path, write):
    write(tmp_path)
    (sequence,) = open_sequences(tmp_path)
    assert len(sequence) == 20
    for copy in (sequence, pickle.loads(pickle.dumps(sequence))):
        for start, stop in [(0, 20), (0, 1), (5, 7), (4, 13), (12, 12), (19, 20), (6, 12)]:
            read = copy[start:stop]
            np.testing.assert_array_equal(read, ARRAY[start:stop])
            assert read.dtype == ARRAY.dtype


def test_a_folder_is_its_files_by_name_and_pattern(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.txt").write_bytes(b"second")
    (tmp_path / "a.txt").write_bytes(b"first")
    (tmp_path / "deep" / "c.txt").write_bytes(b"third")
    save_file({"z": ARRAY, "y": ARRAY[:4]}, tmp_path / "d.safetensors")
    assert [len(s) for s in open_sequences(tmp_path)] == [5, 6, 4, 20, 5]
    assert [s[1:4].tobytes() for s in open_sequences(tmp_path, "*.txt")] == [b"irs", b"eco"]
    assert open_sequences(tmp_path / "a.txt")[0][:].tobytes() == b"first"


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path: .*nowhere is absent"):
        open_sequences(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="expected files that fit"):
        open_sequences(tmp_path)
    for name in ("a.npy", "a.safetensors", "a.parquet"):
        (tmp_path / name).write_bytes(b"not what the name says")
        with pytest.raises(ValueError, match=rf"path: cannot read .*{name}"):
            open_sequences(tmp_path / name)


def test_text_is_split_by_file_and_no_file_is_in_two_splits(tmp_path):
    for number in range(200):
        (tmp_path / f"{number}.txt").write_text(f"file {number}")
    (tmp_path / "other.md").write_text("not asked for")
    splits = {
        split: {s[:].tobytes() for s in load_text(tmp_path, split, "*.txt")}
        for split in ("train", "val", "test")
    }
    assert set.union(*splits.values()) == {b"file %d" % n for n in range(200)}
    assert sum(map(len, splits.values())) == 200
    assert 2 <= len(splits["val"]) <= 30 and 2 <= len(splits["test"]) <= 30
    with pytest.raises(ValueError, match="split: expected one of"):
        load_text(tmp_path, "all")
    with pytest.raises(FileNotFoundError, match=r"folder: .* is absent"):
        load_text(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="expected files that fit 'nothing"):
        load_text(tmp_path, "val", "nothing*")


def test_without_a_folder_text_is_pythons_own_library():
    files = load_text(split="val")
    assert len(files) > 10
    assert any(b"import" in file[:].tobytes() for file in files)


FRAMES = 23


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Frames whose grey level counts, with a key frame every 6, and references to later ones."""
    path = tmp_path_factory.mktemp("video") / "counting.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=25, options={"g": "6", "bf": "2"})
        stream.bit_rate = 4_000_000
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(FRAMES):
            image = np.full((32, 48, 3), 10 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        file.mux(stream.encode())
    return path


def levels(frames):
    """The counts that frames show; compression changes a grey level by less than half a count."""
    return [round(frame.mean() / 10) for frame in frames]


def test_a_forked_process_goes_on_with_a_video(video):
    """As a DataLoader's worker does with a data set that was read before.

    The worker has none of the decoder's threads, and must not move its parent's position in the
    file.
    """
    expected, frames = VideoFrames(video)[0:12], VideoFrames(video)
    frames[0:3]

    def child(queue):
        queue.put(frames[3:6].sum((1, 2), np.int64))
        frames[6:8]
        frames._decoding = None
        gc.collect()  # the parent's decoder, too
        queue.put(frames[8:10].sum((1, 2), np.int64))

    context = mp.get_context("fork")
    queue = context.SimpleQueue()
    processes = [context.Process(target=child, args=(queue,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    found = [queue.get() for _ in range(4)]
    sums = expected.sum((1, 2), np.int64)
    for part in (sums[3:6], sums[8:10]):
        assert sum(np.array_equal(part, one) for one in found) == 2
    assert np.array_equal(frames[3:12], expected[3:12])


def test_video_slices_are_the_frames_wherever_they_begin(video):
    frames = VideoFrames(video)
    assert len(frames) == FRAMES
    for start, stop in [(0, 4), (4, 9), (20, 23), (7, 8), (0, 23), (3, 3), (9, 11)]:
        assert levels(frames[start:stop]) == list(range(start, stop))
    assert frames[2:5].shape == (3, 32, 48)
    assert VideoFrames(video, size=(8, 12), color="rgb")[5:7].shape == (2, 8, 12, 3)
    assert levels(pickle.loads(pickle.dumps(frames))[6:9]) == [6, 7, 8]


def test_what_is_no_video_is_named(tmp_path, video):
    with pytest.raises(FileNotFoundError, match="is absent"):
        VideoFrames(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(ValueError, match=r"PyAV cannot read .*text\.mp4"):
        VideoFrames(tmp_path / "text.mp4")
    with pytest.raises(ValueError, match="color: expected"):
        VideoFrames(video, color="blue")
    with pytest.raises(ValueError, match="size: expected"):
        VideoFrames(video, size=(0, 4))


def test_frames_that_are_damaged_are_named(tmp_path, video):
    path, whole = tmp_path / "damaged.mp4", video.read_bytes()
    start = whole.index(b"mdat") + 4
    path.write_bytes(whole[:start] + bytes(len(whole[start:-2000])) + whole[-2000:])
    with pytest.raises(ValueError, match=r"damaged\.mp4"):
        VideoFrames(path)[0:FRAMES]


@pytest.mark.parametrize("kind", ["Bytes", "Numpy", "Npz", "Safetensors", "Parquet"])
def test_the_module_of_version_0_1_has_every_class(kind):
    name = f"{kind}Sequence"
    assert getattr(sequences, name) is getattr(sequence_files, name)
