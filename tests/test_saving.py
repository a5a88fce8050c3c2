"""Files of models: whole, or refused; those of version 0.1 are read, under its names."""

import doctest
import json
import pickle

import pytest
import torch
from tiny_training import tiny_data, tiny_model, trainer

from fastlstm import CompositeLSTM, LSTMAutoencoder, LSTMFuturePredictor, VideoLSTM
from fastlstm.models import byte_lstm, classifier, encoder_decoder, srivastava, video
from fastlstm.training import VideoTask

INPUT, HIDDEN = 12, 7


@pytest.mark.parametrize("kind", [LSTMAutoencoder, LSTMFuturePredictor, CompositeLSTM])
def test_save_and_load(kind, tmp_path):
    options = {"conditional_future": True} if kind is CompositeLSTM else {"conditional": True}
    model = kind(INPUT, HIDDEN, 2, frame_type="real", dtype=torch.float64, **options)
    model.save(tmp_path / "model.safetensors")
    loaded = VideoLSTM.load(tmp_path / "model.safetensors")
    assert type(loaded) is kind and loaded.config == model.config
    frames = torch.rand(5, 3, INPUT, dtype=torch.float64)
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


def test_a_saved_model_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "new").touch()
    CompositeLSTM(INPUT, HIDDEN).save(tmp_path / "model.safetensors")
    modes = [(tmp_path / name).stat().st_mode for name in ("new", "model.safetensors")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("decoders", [("none", "conditional"), (True, None), (False, True)])
def test_the_base_class_is_saved_with_its_decoders(tmp_path, decoders):
    model = VideoLSTM(INPUT, HIDDEN, reconstruction=decoders[0], future=decoders[1])
    model.save(tmp_path / "m")
    loaded = VideoLSTM.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded.state_dict().keys() == model.state_dict().keys()


def config_of_0_1(model):
    """The model's configuration as version 0.1 had it."""
    values = {"none": None, "unconditional": False, "conditional": True}
    config = {name: values.get(value, value) for name, value in model.config.items()}
    config["frames"] = config.pop("frame_type")
    return config


@pytest.mark.parametrize(
    "model",
    [
        CompositeLSTM(INPUT, HIDDEN, frames="real", conditional_future=True),
        LSTMAutoencoder(INPUT, HIDDEN),
        VideoLSTM(INPUT, HIDDEN, reconstruction=None, future=True, frames="binary"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_that_version_0_1_saved_or_pickled(tmp_path, model):
    from safetensors.torch import save_file

    config = config_of_0_1(model)
    assert type(model)(**config).config == model.config
    metadata = {"class": type(model).__name__, "arguments": config}
    save_file(model.state_dict(), tmp_path / "m", {"fastlstm": json.dumps(metadata)})
    old = pickle.loads(pickle.dumps(model))
    old.__dict__["frames"] = old.__dict__.pop("frame_type")
    old.config = config
    for loaded in (VideoLSTM.load(tmp_path / "m"), pickle.loads(pickle.dumps(old))):
        assert type(loaded) is type(model)
        assert loaded.frame_type == loaded.frames == loaded.config["frame_type"] == model.frame_type
        frames = torch.rand(5, 3, INPUT)
        assert torch.equal(loaded.loss(frames, frames).total, model.loss(frames, frames).total)


def test_the_old_name_of_frame_type_is_in_its_errors():
    with pytest.raises(ValueError, match=r"^frames: expected 'binary' or 'real', got 'x'"):
        CompositeLSTM(2, 2, frames="x")
    with pytest.raises(ValueError, match=r"^frames: expected that of frame_type, 'real', got 'bi"):
        CompositeLSTM(2, 2, frame_type="real", frames="binary")


def test_stacks_have_the_name_of_version_0_1():
    assert encoder_decoder.Stack is encoder_decoder.LSTMStack
    stack = encoder_decoder.LSTMStack(3, 4, 1, True, "auto", None)
    data = pickle.dumps(stack, protocol=0)
    new, old = b"cfastlstm.models.encoder_decoder\nLSTMStack", b"cfastlstm.stack\nStack"
    assert new in data
    assert type(pickle.loads(data.replace(new, old))) is encoder_decoder.LSTMStack


def test_a_run_goes_on_from_a_checkpoint_of_version_0_1(tmp_path):
    model, path = tiny_model(), tmp_path / "a.ckpt"
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(model), datamodule=tiny_data())
    t.save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    names = checkpoint["video_model"] = checkpoint.pop("model_config")
    names["frames"] = names.pop("frame_type")
    torch.save(checkpoint, path)
    resumed = tiny_model()
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(resumed), datamodule=tiny_data(), ckpt_path=path)
    assert all(map(torch.equal, resumed.parameters(), model.parameters()))
    other = VideoTask(tiny_model(frame_type="real"))
    with pytest.raises(ValueError, match=r"frame_type='real' as configured, got .*'binary'"):
        trainer(tmp_path).fit(other, datamodule=tiny_data(), ckpt_path=path)


@pytest.mark.parametrize("module", [video, srivastava, classifier, byte_lstm])
def test_examples_of_models(module):
    failed, attempted = doctest.testmod(module)
    assert attempted > 2 and failed == 0
