"""The command trains a classifier, from a saved encoder where there is one."""

import pytest
import torch

from fastlstm import CompositeLSTM, LSTMClassifier
from fastlstm.training.commands.classify import ClassifyCommand


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


def words(folder, *further):
    settings = {
        "model.model": "fastlstm.LSTMClassifier",
        "model.model.input_size": 900,
        "model.model.hidden_size": 4,
        "model.model.num_classes": 10,
        "model.optimizer": "torch.optim.SGD",
        "model.optimizer.lr": 0,
        "data": "fastlstm.training.MotionData",
        "data.size": 30,
        "data.batch_size": 5,
        "data.num_frames": 3,
        "data.labels_per_class": 1,
        "data.val_size": 10,
        "data.test_size": 10,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.enable_progress_bar": False,
        "trainer.logger": False,
        "trainer.accelerator": "cpu",
        "run": folder / "run",
    }
    return ["fit", *(f"--{name}={value}" for name, value in settings.items()), *further]


def test_a_classifier_is_trained_and_its_accuracy_said(tmp_path, capsys):
    command = ClassifyCommand(words(tmp_path))
    assert isinstance(command.model.model, LSTMClassifier)
    accuracy = float(command.trainer.callback_metrics["test/accuracy"])
    assert f"accuracy     {accuracy:>7.1%}" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize("basis", ["pixels", "dct"])
def test_an_encoder_is_taken_over_and_one_of_another_size_refused(tmp_path, basis):
    trained = CompositeLSTM(900, 4, basis=basis)
    trained.save(tmp_path / "encoder.safetensors")
    trained = trained.folded()
    command = ClassifyCommand(words(tmp_path, f"--encoder={tmp_path / 'encoder.safetensors'}"))
    for name, weight in command.model.model.encoder.state_dict().items():
        torch.testing.assert_close(weight, trained.encoder.state_dict()[name])  # lr 0: unchanged

    CompositeLSTM(900, 5).save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="encoder: expected a model of hidden_size=4 as config"):
        ClassifyCommand(
            words(tmp_path, f"--encoder={tmp_path / 'other.safetensors'}", "--overwrite=true")
        )
