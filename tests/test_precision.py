"""Every configuration trains in every precision of the trainer, or says why not in one sentence."""

from functools import partial

import numpy as np
import pytest
import torch
import yaml
from language_example import FOLDER, LanguageCommand, LanguageTask
from lightning.pytorch.plugins import MixedPrecision
from tiny_training import Recorder, tiny_data, tiny_model, trainer

from fastlstm import ByteLSTM, CompositeLSTM, LSTMClassifier, configs
from fastlstm.training import (
    Baselines,
    ClassificationTask,
    MotionData,
    StepSeeds,
    TextData,
    VideoTask,
)
from fastlstm.training.commands.classify import ClassifyCommand
from fastlstm.training.commands.video import VideoCommand

DTYPES = {
    "32-true": torch.float32,
    "bf16-mixed": torch.float32,
    "16-mixed": torch.float32,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)  # these sizes gain nothing from more; the shared fixture restores it


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"{number} " * 60)
    return folder


@pytest.fixture
def command(tmp_path, text):
    """Run two steps of a configuration of the repository, made small."""

    def run(name, *words):
        kind = {"classify": ClassifyCommand, "language": LanguageCommand}.get(name, VideoCommand)
        batch = 10 if name == "classify" else 4
        small = [f"--data.batch_size={batch}", "--model.model.hidden_size=8"]
        if name == "language":
            small += [f"--data.folder={text}"]
        else:
            small += [f"--data.val_size={batch}", f"--data.test_size={batch}"]
        if kind is VideoCommand:
            small += ["--baselines.sample=8", "--data.num_workers=0"]
        small += ["--trainer.fast_dev_run=2", "--trainer.accelerator=cpu"]
        small += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
        config = FOLDER / "config.yaml" if name == "language" else configs.path(name)
        return kind(["fit", f"--config={config}", f"--run={tmp_path / 'run'}", *small, *words])

    return run


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("name", ["demo", "paper", "classify", "language"])
def test_the_configurations_train_in_every_precision(command, name, precision):
    losses = []
    for words in ((), (f"--trainer.precision={precision}",)):
        trained = command(name, *words)
        assert trained.trainer.global_step == 2
        losses.append({k: float(v) for k, v in trained.trainer.callback_metrics.items()})
    assert {p.dtype for p in trained.model.parameters()} == {DTYPES[precision]}
    expected, got = losses
    assert expected.keys() == got.keys() and "val/error" in got
    for key in expected:
        if (
            not key.endswith(("per_second", "data_wait"))
            and "accuracy" not in key
            and key[:5] != "lr-Ad"
        ):
            assert got[key] == pytest.approx(expected[key], rel=0.02, abs=0.02), key


@pytest.mark.parametrize("name", ["demo", "paper", "classify", "language"])
def test_pure_float16_is_refused_where_it_would_diverge(command, name):
    with pytest.raises(ValueError) as caught:
        command(name, "--trainer.precision=16-true")
    assert str(caught.value) == (
        "optimizer.eps: expected at least 6.1e-05, float16's smallest normal number, with --trainer"
        ".precision 16-true, got 1e-08; give --model.optimizer.eps 1e-4, or --trainer.precision"
        " 16-mixed or bf16-true"
    )
    trained = command(name, "--trainer.precision=16-true", "--model.optimizer.eps=1e-4")
    assert trained.trainer.global_step == 2
    assert all(p.dtype == torch.float16 and p.isfinite().all() for p in trained.model.parameters())


def half_on_a_cpu():
    """16-mixed with loss scaling, which the trainer offers on a GPU only."""
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    return {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=scaler)]}


@pytest.mark.parametrize("precision", ["bf16-mixed", half_on_a_cpu], ids=["bf16", "16"])
def test_gradients_are_clipped_and_a_fused_step_is_the_plain_one(tmp_path, precision):
    def weights(fused, clip):
        task = VideoTask(tiny_model(), partial(torch.optim.SGD, lr=0.01, fused=fused))
        chosen = precision() if callable(precision) else {"precision": precision}
        trainer(
            tmp_path,
            max_steps=3,
            limit_val_batches=0,
            gradient_clip_val=clip,
            **chosen,
        ).fit(task, datamodule=tiny_data())
        return torch.cat([p.detach().flatten() for p in task.parameters()])

    start = torch.cat([p.detach().flatten() for p in tiny_model().parameters()])
    plain, fused = weights(False, 0.5), weights(True, 0.5)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-7)
    # a clipped gradient has length 0.5; the linear schedule takes 1 + 2/3 + 1/3 of the rate
    assert 0.005 < float((fused - start).norm()) <= 0.01 * 0.5 * 2 * 1.001
    assert float((weights(True, None) - start).norm()) > 0.1


def video(folder):
    return VideoTask(tiny_model()), tiny_data()


def classifier(folder):
    torch.manual_seed(0)
    data = MotionData(5, 3, labels_per_class=1, size=30, val_size=10, test_size=10)
    return ClassificationTask(LSTMClassifier(900, 6, 10, dropout=0.5)), data


def language(folder):
    torch.manual_seed(0)
    return LanguageTask(ByteLSTM(6)), TextData(str(folder), batch_size=3, k1=6, k2=9)


@pytest.mark.parametrize("precision", [*DTYPES, half_on_a_cpu], ids=[*DTYPES, "16-mixed, scaled"])
@pytest.mark.parametrize("made", [video, classifier, language])
def test_a_run_resumes_to_the_bit_in_every_precision(tmp_path, text, made, precision):
    def fit(steps, ckpt_path=None):
        task, data = made(text)
        task.schedule, recorder = "constant", Losses()
        chosen = precision() if callable(precision) else {"precision": precision}
        t = trainer(
            tmp_path,
            recorder,
            StepSeeds(0),
            max_steps=steps,
            limit_val_batches=0,
            gradient_clip_val=1.0,
            **chosen,
        )
        t.fit(task, datamodule=data, ckpt_path=ckpt_path)
        t.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return recorder.losses, task.state_dict()

    whole, expected = fit(6)
    first, _ = fit(3)
    rest, got = fit(6, tmp_path / "3.ckpt")
    assert first + rest == whole and len(whole) == 6
    assert all(torch.equal(got[name], value) for name, value in expected.items())


class Losses(Recorder):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.mark.parametrize("narrow", ["bf16-true", "bf16-mixed"])
def test_a_state_of_a_narrower_run_becomes_as_wide_as_the_weights(tmp_path, text, narrow):
    def fit(steps, precision, ckpt_path=None):
        task, data = language(text)
        t = trainer(tmp_path, max_steps=steps, limit_val_batches=0, precision=precision)
        t.fit(task, datamodule=data, ckpt_path=ckpt_path)
        t.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return task

    before = fit(2, narrow).state
    assert before[0].dtype == torch.bfloat16
    read = []

    def losses(self, input, target, state=None, reset=None):
        read.append(state)
        return plain(self, input, target, state, reset)

    plain = ByteLSTM.losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ByteLSTM, "losses", losses)
        fit(3, "32-true", tmp_path / "2.ckpt")
    for got, expected in zip(read[0], before, strict=True):
        assert got.dtype == torch.float32 and torch.equal(got, expected.float())


def test_errors_and_baselines_of_narrow_numbers_are_those_of_wide_ones(tmp_path):
    def validate(precision):
        torch.manual_seed(0)
        model = tiny_model(readout_bias=8.0)  # probabilities of 0.9997, which are 1 in bfloat16
        t = trainer(tmp_path, Baselines(32), precision=precision)
        return t.validate(VideoTask(model), datamodule=tiny_data(), verbose=False)[0]

    expected = validate("32-true")
    for precision in ("bf16-mixed", "bf16-true", "64-true"):
        got = validate(precision)
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            exactly = name in ("val/mean_frame", "val/copy_last")
            assert got[name] == pytest.approx(value, rel=1e-6 if exactly else 0.01), name


@pytest.mark.parametrize("kind", [{}, {"conditional_future": True}, {"frames": "real"}], ids=str)
def test_the_loss_in_closed_loop_is_that_of_what_is_predicted(kind):
    torch.manual_seed(0)
    model = CompositeLSTM(9, 5, dtype=torch.float64, **kind)
    frames, future = torch.rand(2, 4, 3, 9, dtype=torch.float64)
    predicted = model.predict(frames, 4)
    if "frames" in kind:
        expected = (predicted - future).square().sum() / 2
    else:
        expected = torch.nn.functional.binary_cross_entropy(predicted, future, reduction="sum")
    torch.testing.assert_close(model.closed_loop_loss(frames, future), expected / 12)
    model.batch_first = True
    again = model.closed_loop_loss(frames.transpose(0, 1), future.transpose(0, 1))
    torch.testing.assert_close(again, expected / 12)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_what_was_trained_is_tested_and_predicted_from(tmp_path, precision, capsys):
    sizes = {"batch_size": 2, "input_frames": 2, "future_frames": 3, "val_size": 2, "test_size": 2}
    words = [f"--config={tmp_path / 'config.yaml'}", f"--trainer.precision={precision}"]
    settings = {
        "run": str(tmp_path / "run"),
        "model": {
            "model": {
                "class_path": "fastlstm.CompositeLSTM",
                "init_args": {"input_size": 900, "hidden_size": 4},
            }
        },
        "data": {
            "class_path": "fastlstm.training.MovingMNISTData",
            "init_args": {"size": 30, "num_digits": 1, **sizes},
        },
        "baselines": {"sample": 8},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 2,
            "val_check_interval": 2,
            "logger": False,
            "enable_progress_bar": False,
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    VideoCommand(["fit", *words])
    fitted = VideoCommand(["test", *words]).trainer.callback_metrics
    again = VideoCommand(["test", *words[:1]]).trainer.callback_metrics  # in float32
    assert float(fitted["test/error"]) == pytest.approx(float(again["test/error"]), rel=0.01)
    VideoCommand(["predict", *words])
    arrays = np.load(tmp_path / "run" / "predictions" / "batch_000.npz")
    assert arrays["prediction"].dtype == np.float32
    assert (arrays["prediction"] >= 0).all() and (arrays["prediction"] <= 1).all()
    assert arrays["prediction"].std() > 0.001
