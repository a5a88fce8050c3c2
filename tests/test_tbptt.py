"""Truncated backpropagation: gradients of the last k2 steps, a state that goes on, and resets."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from helpers import assert_close
from lightning.pytorch import Callback, Trainer

import fastlstm
from fastlstm.training import AtomicCheckpointIO, SequenceTask, TextData, Windows, window_loss

H = 5


def model(**options):
    torch.manual_seed(0)
    return fastlstm.ByteLSTM(H, 2, 3, dtype=torch.float64, **options)


def sequences(*lengths):
    generator = np.random.default_rng(0)
    return [generator.integers(0, 256, length, np.uint8) for length in lengths]


def gradients(loss, module):
    loss.backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters()}
    module.zero_grad()
    return found


def test_a_window_as_long_as_the_sequence_is_plain_training():
    text = sequences(21)
    (window,) = [Windows(text, batch_size=1, k1=20, shuffle=False)[0]]
    lstm = model()
    loss, state = window_loss(lstm, window, None)
    read = torch.from_numpy(text[0])[:, None]
    losses, expected = lstm.losses(read[:-1], read[1:])
    assert torch.equal(loss, losses.mean())
    assert all(
        torch.equal(a, b) and not a.requires_grad for a, b in zip(state, expected, strict=True)
    )


@pytest.mark.parametrize("k1, k2", [(4, 4), (3, 8), (4, 5), (2, 6)])
def test_gradients_go_back_k2_steps_and_the_state_as_far_as_the_sequence(k1, k2):
    text = sequences(40)
    windows = Windows(text, batch_size=1, k1=k1, k2=k2, shuffle=False)
    read, lstm, state = torch.from_numpy(text[0])[:, None], model(), None
    for number in range(len(windows)):
        loss, state = window_loss(lstm, windows[number], state)
        ours = gradients(loss, lstm)
        stop = min((number + 1) * k1, 39)
        start, fresh = max(0, (number + 1) * k1 - k2), number * k1
        with torch.no_grad():  # by hand: all that lies before is read without gradients
            _, before = lstm.losses(read[:start], read[1 : start + 1]) if start else (None, None)
        losses, _ = lstm.losses(read[start:stop], read[start + 1 : stop + 1], before)
        expected = losses[fresh - start :].mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
        assert_close(ours, gradients(expected, lstm), 1e-10)


def test_no_state_crosses_into_another_sequence():
    text = sequences(7, 9, 12)
    windows = Windows(text, batch_size=1, k1=5, shuffle=False)
    lstm, state, ours = model(), None, []
    for number in range(len(windows)):
        window = windows[number]
        losses, state = lstm.losses(window.input, window.target, state, window.reset)
        ours.append(losses)
    each = [torch.from_numpy(t)[:, None] for t in text]
    expected = [lstm.losses(t[:-1], t[1:])[0] for t in each]
    torch.testing.assert_close(torch.cat(ours), torch.cat(expected), rtol=1e-12, atol=0)


def test_targets_of_their_own():
    xs = [np.arange(n, dtype=np.float32)[:, None] for n in (4, 3)]
    ys = [10 * x for x in xs]
    window = Windows(xs, ys, batch_size=1, k1=7, shuffle=False)[0]
    assert window.input.shape == (7, 1, 1)
    assert torch.equal(window.target, 10 * window.input)
    assert window.reset[:, 0].tolist() == [True, False, False, False, True, False, False]
    with pytest.raises(ValueError, match="targets: expected one for each sequence"):
        Windows(xs, ys[:1], batch_size=1, k1=2)


def test_sampling_repeats_and_goes_on_from_the_prompt():
    lstm = model().eval()
    drawn = lstm.sample(b"def ", 20, temperature=0.8)
    assert len(drawn) == 20
    assert drawn == lstm.sample(b"def ", 20, temperature=0.8) != lstm.sample(b"def ", 20, seed=1)
    greedy = lstm.sample(b"def ", 3, temperature=1e-6)
    assert lstm.sample(b"def " + greedy[:2], 1, temperature=1e-6) == greedy[2:]
    for wrong, says in [
        ({"prompt": b""}, "prompt: expected at least 1 byte"),
        ({"length": -1}, "length: expected at least 0, got -1"),
        ({"temperature": 0.0}, "temperature: expected a number above 0"),
    ]:
        with pytest.raises(ValueError, match=says):
            lstm.sample(**{"prompt": b"a", "length": 1, **wrong})


class Losses(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number}.txt").write_text(f"{number} " * 12)
    return folder


def fit(
    folder,
    text,
    steps,
    ckpt_path=None,
    accumulate_grad_batches=1,
    callbacks=(),
    trained=None,
    **changes,
):
    recorder, task = Losses(), SequenceTask(trained or model(), schedule="constant")
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[recorder, *callbacks],
        plugins=[AtomicCheckpointIO()],
        max_epochs=-1,
        max_steps=steps,
        accumulate_grad_batches=accumulate_grad_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    data = TextData(str(text), **{"batch_size": 3, "k1": 6, "k2": 9, **changes})
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"step_{steps}.ckpt")
    return recorder.losses, task, trainer


def test_a_resumed_run_goes_on_with_the_state_and_the_window(tmp_path, text, recwarn):
    whole, _, _ = fit(tmp_path, text, 8)
    first, _, _ = fit(tmp_path, text, 3)
    moved = text.rename(tmp_path / "moved")  # the same files, elsewhere
    rest, _, _ = fit(tmp_path, moved, 8, tmp_path / "step_3.ckpt", num_workers=0)
    assert first + rest == whole
    assert not [w for w in recwarn if "resumes with other" in str(w.message)]


def test_a_checkpoint_of_another_model_is_refused(tmp_path, text):
    fit(tmp_path, text, 1)
    path = tmp_path / "step_1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    names = checkpoint["sequence_model"] = checkpoint.pop("model_config")  # as older ones have it
    for name in ("bias", "proj_size"):  # which older ones do not have
        del names[name]
    torch.save(checkpoint, path)
    fit(tmp_path, text, 2, path)
    names["hidden_size"] = 6
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="hidden_size=5 as configured, got hidden_size=6"):
        fit(tmp_path, text, 2, path)


@dataclasses.dataclass
class Config:
    hidden_size: int = H


class Own(fastlstm.ByteLSTM):
    """A user's model, whose ``config`` is not a dictionary of arguments."""

    def __init__(self, config):
        super().__init__(config.hidden_size, embedding_size=3, dtype=torch.float64)
        self.config = config


def test_a_model_may_have_a_config_of_any_kind(tmp_path, text):
    fit(tmp_path, text, 1, trained=Own(Config()))
    path = tmp_path / "step_1.ckpt"
    fit(tmp_path, text, 2, path, trained=Own(Config()))
    with pytest.raises(ValueError, match="class='ByteLSTM' as configured, got class='Own'"):
        fit(tmp_path, text, 2, path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 5}, "batch_size was 3 and is 5"),
        ({"batch_size": 2, "k1": 3}, "batch_size was 3 and is 2, k1 was 6 and is 3"),
        ({"k2": 6}, "k2 was 9 and is 6"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"pattern": "1*"}, "number of sequences was 49 and is 11"),
    ],
)
def test_other_windows_are_dealt_anew_and_said(tmp_path, text, changes, says):
    fit(tmp_path, text, 3)
    with pytest.warns(UserWarning) as warned:
        rest, _, _ = fit(tmp_path, text, 5, tmp_path / "step_3.ckpt", **changes)
    (said,) = [str(w.message) for w in warned if "resumes with" in str(w.message)]
    assert said.startswith(f"the run resumes with other windows ({says}")
    assert said.endswith("sequences are distributed to streams anew, and all states begin at zero")

    # the first window after that is read from a state of zero, with the weights of the checkpoint
    data = TextData(str(text), **{"batch_size": 3, "k1": 6, "k2": 9, **changes})
    lstm = model()
    saved = torch.load(tmp_path / "step_3.ckpt", weights_only=True)["state_dict"]
    lstm.load_state_dict({name.removeprefix("model."): value for name, value in saved.items()})
    expected, _ = window_loss(lstm, data.windows("train")[3], None)
    assert rest[0] == pytest.approx(expected.item(), rel=1e-6)

    # and from there the run is exact once more
    whole, _, _ = fit(tmp_path, text, 7, tmp_path / "step_3.ckpt", **changes)
    further, _, _ = fit(tmp_path, text, 7, tmp_path / "step_5.ckpt", **changes)
    assert rest + further == whole


def test_steps_of_other_numbers_of_windows_are_refused(tmp_path, text):
    fit(tmp_path, text, 3)
    with pytest.raises(ValueError, match=r"accumulate_grad_batches: expected 1, as in .* got 2"):
        fit(tmp_path, text, 5, tmp_path / "step_3.ckpt", accumulate_grad_batches=2)


def test_files_that_were_written_anew_are_noticed(tmp_path, text):
    fit(tmp_path, text, 3)
    for file in text.iterdir():  # other text of the same lengths, under the same names
        file.write_text(file.read_text().replace(file.stem, "x" * len(file.stem)))
    with pytest.warns(UserWarning, match="other windows \\(checksum of the sequences was"):
        fit(tmp_path, text, 5, tmp_path / "step_3.ckpt")


@pytest.mark.parametrize("processes", [1, 2])
def test_another_number_of_processes_is_said(tmp_path, text, processes):
    fit(tmp_path, text, 1)
    path = tmp_path / "step_1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["sequence_states"] *= processes
    del checkpoint["sequence_windows"]  # as checkpoints were before
    torch.save(checkpoint, path)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        fit(tmp_path, text, 2, path)
    said = [w for w in warned if "number of processes was 2 and is 1" in str(w.message)]
    assert len(said) == processes - 1


@pytest.mark.parametrize("processes", [3, 2])
def test_the_rows_of_another_number_of_processes_go_on_exactly(tmp_path, text, recwarn, processes):
    rows = {"batch_size": 6}
    whole, _, _ = fit(tmp_path, text, 5, **rows)
    first, _, _ = fit(tmp_path, text, 3, **rows)
    path = tmp_path / "step_3.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    ((hx, cx),) = checkpoint["sequence_states"]
    parts = zip(hx.chunk(processes, 1), cx.chunk(processes, 1), strict=True)
    checkpoint["sequence_states"] = list(parts)
    each = {"batch_size": 6 // processes, "number of processes": processes}
    checkpoint["sequence_windows"] |= each
    torch.save(checkpoint, path)
    rest, _, _ = fit(tmp_path, text, 5, path, **rows)
    assert first + rest == whole
    assert not [w for w in recwarn if "resumes with" in str(w.message)]


def test_states_whose_rows_cannot_be_found_are_not_dealt(tmp_path, text):
    fit(tmp_path, text, 1, batch_size=2)
    path = tmp_path / "step_1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["sequence_states"] = [torch.zeros(1, H), torch.zeros(1, H)]  # rows come first
    checkpoint["sequence_windows"] |= {"batch_size": 1, "number of processes": 2}
    torch.save(checkpoint, path)
    says = r"cannot be dealt over them \(expected 1 rows in dimension 1 .* got \(1, 5\)\)"
    with pytest.warns(UserWarning, match=says):
        fit(tmp_path, text, 2, path, batch_size=2)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_checkpoint_within_a_step_resumes_with_the_state_before_it(tmp_path, text, accumulate):
    within = tmp_path / "within.ckpt"

    class SaveWithin(Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 2 and not within.exists():
                trainer.save_checkpoint(within)

    whole, _, _ = fit(tmp_path, text, 4, None, accumulate, callbacks=[SaveWithin()])
    rest, _, _ = fit(tmp_path, text, 4, within, accumulate)
    assert rest == whole[2 * accumulate :]


def test_errors_with_and_without_the_state(tmp_path, text):
    _, task, trainer = fit(tmp_path, text, 1)
    data = TextData(str(text), batch_size=1, k1=6)
    (errors,) = trainer.test(task, datamodule=data, verbose=False)
    lstm = task.model.eval()
    expected, steps = 0.0, 0
    with torch.no_grad():
        for file in data.sequences("test")[0]:
            read = torch.from_numpy(file[:])[:, None]
            expected += lstm.losses(read[:-1], read[1:])[0].sum().item()
            steps += len(read) - 1
    assert errors["test/error"] == pytest.approx(expected / steps, rel=1e-5)
    assert errors["test/error_in_window"] != errors["test/error"]
