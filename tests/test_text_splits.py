"""Text is split by file, or within files if there are few: every byte is in one split."""

import numpy as np
import pytest

from fastlstm.data import load_text

SPLITS = ("train", "val", "test")
TEXT = bytes(np.random.default_rng(0).integers(32, 127, 1000, np.uint8))


def parts(folder, **options):
    return {
        split: [part[:].tobytes() for part in load_text(folder, split, **options)]
        for split in SPLITS
    }


@pytest.mark.parametrize("given", ["folder", "file"])
def test_one_text_is_cut_in_three(tmp_path, given):
    (tmp_path / "input.txt").write_bytes(TEXT)
    found = parts(tmp_path if given == "folder" else tmp_path / "input.txt")
    assert found == {"train": [TEXT[:900]], "val": [TEXT[900:950]], "test": [TEXT[950:]]}


@pytest.mark.parametrize("count", [2, 5, 10, 20])
def test_few_files_are_cut_in_three_each_unless_every_split_has_one(tmp_path, count):
    for draw in range(20):
        folder = tmp_path / str(draw)
        folder.mkdir()
        for number in range(count):
            (folder / f"{draw}_{number}.txt").write_bytes(TEXT[: 500 + number])
        found = parts(folder)
        assert all(map(len, found.values()))
        assert sum(len(part) for split in SPLITS for part in found[split]) == sum(
            500 + number for number in range(count)
        )
        if len(found["train"]) == count:  # cut: the three parts of each file are the file
            whole = [a + b + c for a, b, c in zip(*found.values(), strict=True)]
            assert sorted(whole, key=len) == [TEXT[: 500 + number] for number in range(count)]


def test_slices_of_a_part_are_those_of_the_file(tmp_path):
    (tmp_path / "input.txt").write_bytes(TEXT)
    (val,) = load_text(tmp_path, "val")
    assert len(val) == 50
    for start, stop in [(0, 50), (0, 1), (49, 50), (20, 20), (7, 31), (40, 99)]:
        assert val[start:stop].tobytes() == TEXT[900:950][start:stop]


def test_a_split_of_next_to_nothing_is_none(tmp_path):
    for number in range(60):
        (tmp_path / f"{number}.txt").write_bytes(TEXT)
    by_file = parts(tmp_path)
    assert [len(by_file[split]) for split in SPLITS] == [49, 1, 10]  # as their names say
    (val,) = load_text(tmp_path, "val")
    val.path.write_bytes(TEXT[:594])  # of 59,594 bytes not one in 100
    found = parts(tmp_path)
    assert [len(found[split]) for split in SPLITS] == [60, 60, 60]
    assert sum(map(len, found["val"])) == 59 * 50 + 29


def test_more_files_move_no_border(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT)
    before = parts(tmp_path)
    (tmp_path / "b.txt").write_bytes(TEXT[:100])
    after = parts(tmp_path)
    assert {split: after[split][:1] for split in SPLITS} == before
    for number in range(60):
        (tmp_path / f"{number}.txt").write_bytes(TEXT)
    files = {split: [f.path for f in load_text(tmp_path, split)] for split in SPLITS}
    (tmp_path / "another.txt").write_bytes(TEXT)
    for split in SPLITS:
        assert set(files[split]) <= {f.path for f in load_text(tmp_path, split)}


def test_what_is_no_text_is_named(tmp_path):
    (tmp_path / "notes.txt").write_bytes(TEXT)
    (tmp_path / "wide.txt").write_bytes("text of two bytes each".encode("utf-16"))
    assert len(load_text(tmp_path)) == 2
    (tmp_path / "model.bin").write_bytes(b"ELF\x00\x01")
    with pytest.raises(ValueError, match=r"expected text, got .*model\.bin \(binary, .*pattern"):
        load_text(tmp_path)
    assert len(load_text(tmp_path, pattern="*.txt")) == 2
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"data\.npy \(NumPy\)"):
        load_text(tmp_path, pattern="*.npy")


def test_files_without_a_byte_are_one_error(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=f"the 1 files of {tmp_path} are empty"):
        load_text(tmp_path)
