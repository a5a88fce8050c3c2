"""Files of video models: ``save`` and ``VideoLSTM.load``."""

import pytest
import torch

from fastlstm import CompositeLSTM, LSTMAutoencoder, LSTMFuturePredictor, VideoLSTM

T, B, INPUT, HIDDEN = 5, 3, 12, 7


@pytest.mark.parametrize("kind", [LSTMAutoencoder, LSTMFuturePredictor, CompositeLSTM])
def test_save_and_load(kind, tmp_path):
    options = {"conditional_future": True} if kind is CompositeLSTM else {"conditional": True}
    model = kind(INPUT, HIDDEN, 2, frames="real", dtype=torch.float64, **options)
    model.save(tmp_path / "model.safetensors")
    loaded = VideoLSTM.load(tmp_path / "model.safetensors")
    assert type(loaded) is kind and loaded.config == model.config
    frames = torch.rand(T, B, INPUT, dtype=torch.float64)
    for ours, theirs in zip(loaded.encode(frames), model.encode(frames), strict=True):
        assert torch.equal(ours, theirs)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_load_refuses_what_is_not_whole_or_not_ours(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="path: expected a safetensors file"):
        VideoLSTM.load(path)
    CompositeLSTM(INPUT, HIDDEN).save(path)
    with pytest.raises(ValueError, match="expected a LSTMAutoencoder, got a CompositeLSTM"):
        LSTMAutoencoder.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        VideoLSTM.load(path)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"that VideoLSTM\.save wrote"):
        VideoLSTM.load(path)


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    model = CompositeLSTM(INPUT, HIDDEN)
    model.save(path)
    before = path.read_bytes()
    import safetensors.torch

    def fail(tensors, filename, metadata):
        filename.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        model.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
