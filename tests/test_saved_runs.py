"""From training to use: fit leaves a model, which is loaded, tested and predicted from."""

import pytest
import torch
import yaml
from lightning.pytorch.trainer.states import TrainerFn
from tiny_training import SIDE, checkpoint, run_settings, tiny_data, tiny_model, trainer

import fastlstm
from fastlstm import CompositeLSTM, LSTMAutoencoder, LSTMClassifier, VideoLSTM
from fastlstm.cli import main
from fastlstm.training import AtomicCheckpointIO, VideoTask
from fastlstm.training.commands.classify import ClassifyCommand
from fastlstm.training.commands.video import VideoCommand

pytestmark = pytest.mark.usefixtures("quiet_command_line")


@pytest.fixture
def config(tmp_path):
    """The path of a configuration of four steps of a tiny model, whose run is tmp_path/run."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(run_settings(tmp_path / "run")))
    return str(path)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The checkpoints folder of a run of four steps."""
    folder = tmp_path_factory.mktemp("of_a_run")
    (folder / "config.yaml").write_text(yaml.safe_dump(run_settings(folder / "run")))
    VideoCommand(["fit", "--config", str(folder / "config.yaml")])
    return folder / "run" / "checkpoints"


def weights(path):
    found = torch.load(path, weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in found.items()}


def assert_equal(model, expected):
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_fit_leaves_the_best_model_and_says_how_to_load_it(config, tmp_path, capsys):
    command = VideoCommand(["fit", "--config", config, "--model.model.readout_bias=-1"])
    path = tmp_path / "run" / "checkpoints" / "model.safetensors"
    *_, model, how = capsys.readouterr().out.strip().splitlines()
    assert model == f"model   {path}"
    assert how.strip() == f"in Python: fastlstm.CompositeLSTM.load({str(path)!r})"
    loaded = eval(how.partition("in Python: ")[2], {"fastlstm": fastlstm})
    assert_equal(loaded, weights(path.with_name("best.ckpt")))
    assert loaded.config == command.model.model.config


def test_without_a_best_checkpoint_the_last_one_is_left_also_without_a_test(config, tmp_path):
    words = ["--trainer.limit_val_batches=0", "--trainer.limit_test_batches=0"]
    VideoCommand(["fit", "--config", config, *words])
    folder = tmp_path / "run" / "checkpoints"
    assert not (folder / "best.ckpt").exists()
    assert_equal(VideoLSTM.load(folder / "model.safetensors"), weights(folder / "last.ckpt"))


def test_without_safetensors_fit_ends_well_and_says_so(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    VideoCommand(["fit", "--config", config])
    assert "model   not written: saving and loading need" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


def test_without_checkpoints_no_model_is_left(config, tmp_path):
    VideoCommand(["fit", "--config", config, "--trainer.enable_checkpointing=false"])
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_a_users_task_saves_cannot_make_the_end_of_fit_fail(
    config, tmp_path, capsys, monkeypatch
):
    def with_code(self, checkpoint):
        checkpoint["code"] = pytest.fixture  # torch.load(weights_only=True) refuses it

    monkeypatch.setattr(VideoTask, "on_save_checkpoint", with_code)
    VideoCommand(["fit", "--config", config, "--trainer.limit_val_batches=0"])
    said = capsys.readouterr().out
    assert "model   not written: torch.load cannot read it" in said
    assert "weights of the last step" in said


def test_a_checkpoint_is_loaded_whatever_its_name_is(checkpoints, tmp_path):
    expected = VideoLSTM.load(checkpoints / "model.safetensors")
    path = tmp_path / "renamed.safetensors"
    path.write_bytes((checkpoints / "best.ckpt").read_bytes())
    loaded = CompositeLSTM.load(path)
    assert type(loaded) is CompositeLSTM and loaded.config == expected.config
    assert_equal(loaded, expected.state_dict())
    with pytest.raises(ValueError, match="path: expected a LSTMAutoencoder, got a CompositeLSTM"):
        LSTMAutoencoder.load(path)


def test_a_checkpoint_of_a_classifier_is_loaded_with_its_dropout(tmp_path):
    task = ClassifyCommand(
        ["fit", "--config=classify", "--model.model.hidden_size=4", f"--run={tmp_path / 'run'}"]
        + [f"--data.{name}_size=10" for name in ("batch", "val", "test")]
        + ["--trainer.max_steps=1", "--trainer.val_check_interval=1", "--trainer.accelerator=cpu"]
        + ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
    ).model
    for name in ("best.ckpt", "last.ckpt", "model.safetensors"):
        loaded = LSTMClassifier.load(tmp_path / "run" / "checkpoints" / name)
        assert loaded.config == task.model.config and loaded.dropout == 0.5


def test_checkpoints_that_make_no_model_are_one_sentence(checkpoints, tmp_path):
    whole = torch.load(checkpoints / "last.ckpt", weights_only=True)
    path = tmp_path / "a.ckpt"

    def refused(reason, **changes):
        AtomicCheckpointIO().save_checkpoint({**whole, **changes}, path)
        with pytest.raises(ValueError) as caught:
            VideoLSTM.load(path)
        said = str(caught.value)
        assert said.startswith("path: expected ") and str(path) in said and reason in said, said
        assert "\n" not in said

    refused("did not record the class and the arguments of the model", model_config=None)
    refused("did not record the class", model_config={"hidden_size": 4})
    refused("expected a VideoLSTM, got a ByteLSTM in", model_config={"class": "ByteLSTM"})
    refused("got a Nonsense in", model_config={**whole["model_config"], "class": "Nonsense"})
    refused("expected weights and a configuration that fit", state_dict={})
    refused("fit", model_config={**whole["model_config"], "hidden_size": 9})
    AtomicCheckpointIO().save_checkpoint(checkpoint(3, {"w": torch.zeros(2)}), path)  # foreign
    with pytest.raises(ValueError, match="did not record the class"):
        VideoLSTM.load(path)
    content = bytearray((checkpoints / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"or checkpoint of a run, got .*a\.ckpt.*: it "):
        VideoLSTM.load(path)


def test_a_checkpoint_of_version_0_1_is_loaded_with_the_defaults_it_lacks(tmp_path):
    model, path = tiny_model(frame_type="real"), tmp_path / "a.ckpt"
    t = trainer(tmp_path, max_steps=1, limit_val_batches=0)
    t.fit(VideoTask(model), datamodule=tiny_data())
    t.save_checkpoint(path)
    old = torch.load(path, weights_only=True)
    names = old["video_model"] = old.pop("model_config")
    names["frames"] = names.pop("frame_type")
    for name in ("backend", "readout_bias"):
        del names[name]
    AtomicCheckpointIO().save_checkpoint(old, path)
    loaded = VideoLSTM.load(path)
    assert loaded.config == model.config
    assert_equal(loaded, model.state_dict())


class Own(CompositeLSTM):
    """A user's model, which fastlstm does not have."""


def test_a_class_of_the_users_own_loads_its_own_files(tmp_path):
    model = Own(SIDE, 4)
    model.save(tmp_path / "m")
    assert_equal(Own.load(tmp_path / "m"), model.state_dict())
    with pytest.raises(ValueError, match="path: expected a VideoLSTM, got a Own"):
        VideoLSTM.load(tmp_path / "m")


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_take_a_saved_model_as_they_take_a_checkpoint(
    config, checkpoints, tmp_path, capsys, command
):
    said = []
    for file in ("best.ckpt", "model.safetensors"):
        main([command, "--config", config, "--ckpt_path", str(checkpoints / file)])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] and said[0]
    with pytest.raises(ValueError, match=r"hidden_size=5 as configured, .*=4 in .*safetensors"):
        words = ["--ckpt_path", str(checkpoints / "model.safetensors")]
        main([command, "--config", config, *words, "--model.model.hidden_size=5"])
    damaged = tmp_path / "damaged"
    damaged.write_bytes((checkpoints / "model.safetensors").read_bytes()[:-8] + b"12345678")
    with pytest.raises(ValueError, match=r"^ckpt_path: expected a whole safetensors file.*damaged"):
        main([command, "--config", config, "--ckpt_path", str(damaged)])


def test_fit_cannot_resume_from_a_saved_model(config, checkpoints):
    with pytest.raises(ValueError, match="it is a model without the state of its training"):
        main(["fit", "--config", config, "--ckpt_path", str(checkpoints / "model.safetensors")])


@pytest.mark.parametrize("file", ["best.ckpt", "model.safetensors"])
def test_an_encoder_comes_from_a_checkpoint_or_a_saved_model(checkpoints, tmp_path, file):
    words = ["--model.model=fastlstm.LSTMClassifier", f"--model.model.input_size={SIDE**2}"]
    words += ["--model.model.hidden_size=4", "--model.model.num_classes=10"]
    words += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0"]
    words += ["--data=fastlstm.training.MotionData", f"--data.size={SIDE}", "--data.batch_size=5"]
    words += ["--data.num_frames=3", "--trainer.fast_dev_run=1", "--trainer.accelerator=cpu"]
    words += ["--trainer.enable_progress_bar=false", f"--run={tmp_path / 'run'}"]
    command = ClassifyCommand(["fit", *words, f"--encoder={checkpoints / file}"])
    assert command.trainer.state.fn in (TrainerFn.FITTING, TrainerFn.TESTING)
    trained = VideoLSTM.load(checkpoints / "model.safetensors").encoder
    assert_equal(command.model.model.encoder, trained.state_dict())
    with pytest.raises(FileNotFoundError, match=r"^encoder: expected a safetensors file"):
        ClassifyCommand(["fit", *words, f"--encoder={tmp_path / 'nothing'}"])
