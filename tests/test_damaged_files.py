"""A file that is damaged or of another type raises one error with its name, wherever it is read."""

import pickle
import random
import zipfile

import pytest
import torch
from language_example import LanguageCommand
from safetensors.torch import save_file
from tiny_training import tiny_data, tiny_model, trainer

from fastlstm import ByteLSTM, CompositeLSTM, LSTMClassifier, VideoLSTM
from fastlstm.experiments.runs import Run
from fastlstm.training import AtomicCheckpointIO, ClassificationTask, VideoTask
from fastlstm.training.commands.classify import ClassifyCommand
from fastlstm.training.commands.video import VideoCommand
from fastlstm.training.tasks.sequence import SequenceTask

WEIGHT = torch.full((4096,), 4e-4)
CHECKPOINT = {"state_dict": {"w": WEIGHT}, "pytorch-lightning_version": "2.6.0", "step": 7}


def foreign(folder):
    """Files that are not checkpoints of a run, by type."""
    AtomicCheckpointIO().save_checkpoint(CHECKPOINT, folder / "whole")
    whole = (folder / "whole").read_bytes()
    contents = {
        "empty": b"",
        "text": b"hello",
        "zeros": bytes(5000),
        "half": whole[: len(whole) // 2],
        "cut in its directory": whole[:-30],
        "without its beginning": whole[100:],
        "pickled": pickle.dumps(CHECKPOINT),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    torch.save(torch.zeros(3), folder / "tensor")
    torch.save({"w": torch.zeros(3)}, folder / "state dict")
    torch.save(CHECKPOINT, folder / "of old", _use_new_zipfile_serialization=False)
    torch.save({**CHECKPOINT, "code": Run}, folder / "code")
    CompositeLSTM(900, 6).save(folder / "model.safetensors")
    with zipfile.ZipFile(folder / "archive.zip", "w") as file:
        file.writestr("a.txt", "hello")
    (folder / "folder").mkdir()
    others = (
        "tensor",
        "state dict",
        "of old",
        "code",
        "model.safetensors",
        "archive.zip",
        "folder",
    )
    return [*contents, *others]


def test_what_is_no_checkpoint_is_one_sentence_with_its_name(tmp_path):
    for name in foreign(tmp_path):
        with pytest.raises(ValueError) as caught:
            AtomicCheckpointIO().load_checkpoint(tmp_path / name)
        said = str(caught.value)
        assert said.startswith("ckpt_path: expected a whole checkpoint of a run, got "), name
        assert f"{tmp_path / name} of " in said and "give another one" in said, name
        assert "\n" not in said and len(said) < 600, said
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "whole")["step"] == 7


def test_a_flipped_bit_in_a_weight_is_found(tmp_path):
    io, path = AtomicCheckpointIO(), tmp_path / "last.ckpt"
    io.save_checkpoint(CHECKPOINT, path)
    content = bytearray(path.read_bytes())
    place = content.find(WEIGHT.numpy().tobytes())
    content[place + 3] ^= 0x40  # 4e-4 becomes 1e35
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["state_dict"]["w"].max() > 1e34
    with pytest.raises(ValueError, match=r"last\.ckpt of .* it is damaged, archive/data/0 in"):
        io.load_checkpoint(path)


def _flips(content, seed):
    """400 copies with one bit flipped.

    A third of the bits is in the first 2 kB and a third in the last 2 kB, where headers are.
    """
    draw = random.Random(seed)
    for number in range(400):
        stop = len(content)
        low, high = ((0, 2000), (stop - 2000, stop), (0, stop))[number % 3]
        place = draw.randrange(max(0, low), min(high, stop))
        flipped = bytearray(content)
        flipped[place] ^= 1 << draw.randrange(8)
        yield flipped


def test_a_flipped_bit_anywhere_in_a_checkpoint_is_found_or_changes_nothing(tmp_path):
    io, path, found = AtomicCheckpointIO(), tmp_path / "last.ckpt", 0
    io.save_checkpoint(CHECKPOINT, path)
    for flipped in _flips(path.read_bytes(), 0):
        path.write_bytes(flipped)
        try:
            loaded = io.load_checkpoint(path)
        except ValueError as error:
            assert str(path) in str(error)
            found += 1
        else:
            assert torch.equal(loaded.pop("state_dict")["w"], WEIGHT)
            assert loaded == {k: v for k, v in CHECKPOINT.items() if k != "state_dict"}
    assert found > 200  # the rest: padding, and fields that nobody reads


@pytest.mark.parametrize("kind", ["video", "classifier"])
def test_a_flipped_bit_anywhere_in_a_saved_model_is_found_or_changes_nothing(tmp_path, kind):
    torch.manual_seed(0)
    model = CompositeLSTM(5, 4, readout_bias=-3.0) if kind == "video" else LSTMClassifier(5, 4, 3)
    path, found = tmp_path / "m", 0
    load = VideoLSTM.load if kind == "video" else LSTMClassifier.load
    model.save(path)
    for flipped in _flips(path.read_bytes(), 1):
        path.write_bytes(flipped)
        try:
            loaded = load(path)
        except ValueError as error:
            assert str(path) in str(error)
            found += 1
        else:
            assert loaded.config == model.config
            for name, value in model.state_dict().items():
                assert torch.equal(loaded.state_dict()[name], value)
    assert found > 350


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_any_dtype_is_what_was_saved(tmp_path, dtype):
    model = CompositeLSTM(5, 4, dtype=dtype)
    model.save(tmp_path / "m")
    for name, value in VideoLSTM.load(tmp_path / "m").state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def _resave(path, change=lambda tensors, metadata: None):
    """Save the model, changed, as version 0.1 did before files had a checksum."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["crc32"]
    change(tensors, metadata)
    save_file(tensors, path, metadata)


def test_a_model_saved_before_there_was_a_checksum_still_loads(tmp_path):
    model, path = CompositeLSTM(5, 4), tmp_path / "m"
    model.save(path)
    _resave(path)
    for name, value in VideoLSTM.load(path).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: metadata.update(fastlstm="{"),
        lambda tensors, metadata: metadata.update(fastlstm="[]"),
        lambda tensors, metadata: metadata.update(fastlstm='{"class": "CompositeLSTM"}'),
        lambda tensors, metadata: metadata.update(
            fastlstm='{"class": "CompositeLSTM", "arguments": {"size": 3}}'
        ),
        lambda tensors, metadata: tensors.pop("encoder.weight_hh_l0"),
        lambda tensors, metadata: tensors.clear(),
    ],
)
def test_a_model_whose_weights_and_configuration_do_not_fit_is_named(tmp_path, change):
    CompositeLSTM(5, 4).save(tmp_path / "m")
    _resave(tmp_path / "m", change)
    with pytest.raises(ValueError, match="path: expected weights and a configuration that fit"):
        VideoLSTM.load(tmp_path / "m")


@pytest.mark.parametrize("load", [VideoLSTM.load, LSTMClassifier.load])
def test_what_is_no_saved_model_is_named(tmp_path, load):
    for name in foreign(tmp_path):
        if name in ("model.safetensors", "folder"):
            continue
        with pytest.raises(ValueError, match="path: expected a whole safetensors file") as caught:
            load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"expected a safetensors file, got .*folder"):
        load(tmp_path / "folder")
    with pytest.raises(ValueError, match=r"whole safetensors file, got .*model\.safetensors"):
        Run(_damaged_model(tmp_path), {}, 0.0, None).model()  # of an experiment


def _damaged_model(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    return folder


VIDEO = ["--data=fastlstm.training.MovingMNISTData", "--data.size=30", "--data.test_size=4"]
VIDEO += ["--data.input_frames=2", "--data.future_frames=2", "--data.val_size=4"]
VIDEO += ["--model.model=fastlstm.CompositeLSTM", "--model.model.input_size=900"]
MOTION = ["--data=fastlstm.training.MotionData", "--data.size=30", "--data.test_size=10"]
MOTION += ["--model.model=fastlstm.LSTMClassifier", "--model.model.input_size=900"]
MOTION += ["--model.model.num_classes=10"]
TEXT = ["--data=fastlstm.training.TextData", "--model.model=fastlstm.ByteLSTM"]


@pytest.mark.parametrize(
    ("command", "words"),
    [(VideoCommand, VIDEO), (ClassifyCommand, MOTION), (LanguageCommand, TEXT)],
    ids=["video", "classify", "language"],
)
@pytest.mark.parametrize("damage", ["flipped", "model.safetensors", "text"])
def test_every_command_refuses_it_before_it_begins(tmp_path, command, words, damage):
    foreign(tmp_path)
    content = bytearray((tmp_path / "whole").read_bytes())
    content[content.find(WEIGHT.numpy().tobytes()) + 3] ^= 0x40
    (tmp_path / "flipped").write_bytes(content)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    last.write_bytes((tmp_path / damage).read_bytes())
    words = [*words, f"--run={tmp_path / 'run'}", "--model.model.hidden_size=6"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    words += ["--trainer.logger=false", "--ckpt_path=last"]
    others = ["validate", "test", *(["predict"] if command is VideoCommand else [])]
    # a saved model is not damaged: only fit needs the state of its training too
    for word in ("fit", *(others if damage != "model.safetensors" else [])):
        with pytest.raises(ValueError, match=r"ckpt_path: expected a whole checkpoint .*last\.ckp"):
            command([word, *words])
    assert last.read_bytes() == (tmp_path / damage).read_bytes()  # and leaves it as it is


def test_an_encoder_that_is_damaged_is_named(tmp_path):
    CompositeLSTM(900, 6).save(tmp_path / "model.safetensors")
    _damaged_model(tmp_path)
    words = [*MOTION, f"--encoder={tmp_path / 'model.safetensors'}", f"--run={tmp_path / 'run'}"]
    words += ["--model.model.hidden_size=6", "--trainer.logger=false", "--trainer.accelerator=cpu"]
    with pytest.raises(ValueError, match=r"got .*model\.safetensors': it is damaged"):
        ClassifyCommand(["fit", *words])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("task", "says"),
    [
        (VideoTask(tiny_model(num_layers=2)), "num_layers=2 as configured, got num_layers=1"),
        (
            ClassificationTask(LSTMClassifier(900, 6, 3)),
            "class='LSTMClassifier' as configured",
        ),
        (SequenceTask(ByteLSTM(6)), "class='ByteLSTM' as configured, got "),
    ],
    ids=["sizes", "task", "sequences"],
)
def test_a_checkpoint_of_another_model_is_named(tmp_path, task, says):
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(tiny_model()), datamodule=tiny_data())
    t.save_checkpoint(tmp_path / "of_video.ckpt")
    with pytest.raises(ValueError, match=rf"ckpt_path: .*{says}.* in .*of_video\.ckpt"):
        trainer(tmp_path).test(task, datamodule=tiny_data(), ckpt_path=tmp_path / "of_video.ckpt")


def test_a_checkpoint_has_checksums_even_where_torch_is_told_to_write_none(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        AtomicCheckpointIO().save_checkpoint(CHECKPOINT, tmp_path / "a.ckpt")
        assert torch.serialization.get_crc32_options() is False
    finally:
        torch.serialization.set_crc32_options(True)
    assert AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["step"] == 7
