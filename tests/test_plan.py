"""``fastlstm plan``: bytes as PyTorch counts them, times from constants, words and errors."""

import math

import pytest
import torch

import fastlstm
import fastlstm_plan
from benchmarks import constants, plan, planned_runs, steps
from benchmarks.cost import (
    OPTIMIZERS,
    PRECISIONS,
    How,
    Layer,
    Part,
    Step,
    all_reduced,
    cost,
    linear,
    lstm,
)
from fastlstm import configs
from fastlstm.cli import main

PLAIN = PRECISIONS["32-true"]
LSTM = "plan --input_size 24 --hidden_size 32 --T 40 --batch_size 4"


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def said(words, capsys):
    main(words.split())
    return capsys.readouterr().out


@pytest.mark.parametrize("name", configs.names())
def test_parameters_of_configurations(name):
    planned = steps.configured(name, None, None)
    parts = planned.parts(How(PLAIN, 0, None))
    model = steps.configured_model(steps.read_config(name))
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "model",
    [
        lambda: fastlstm.CompositeLSTM(64, 8, 2, conditional_reconstruction=True),
        lambda: fastlstm.CompositeLSTM(64, 8, conditional_future=True, basis="dct"),
        lambda: fastlstm.LSTMAutoencoder(64, 8, 2, peephole=False),
        lambda: fastlstm.LSTMFuturePredictor(64, 8, conditional=True),
    ],
)
def test_parameters_of_video_models(model):
    model = model()
    parts = steps.of_video(model, 5, 5, 2).parts(How(PLAIN, 0, None))
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())


def saved_bytes(call):
    """The bytes of the storages that autograd saves, and of what ``call`` returns."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        pack(call())
    return sum(found.values())


@pytest.mark.parametrize("every", [0, 7])
@pytest.mark.parametrize("directions", [1, 2])
def test_what_a_layer_keeps_is_what_autograd_saves(every, directions):
    T, B, I, H = 50, 4, 24, 32
    module = fastlstm.LSTM(
        I, H, bidirectional=directions == 2, peephole=True, checkpoint_every=every or None
    )
    x = torch.randn(T, B, I)
    beside = x.nbytes + sum(p.nbytes for p in module.parameters())
    found = saved_bytes(lambda: module(x)[0]) - beside
    layer = Layer(T, B, I, H, directions, peephole=True)
    kept = lstm("lstm", layer, How(PLAIN, every, None)).kept
    assert kept == pytest.approx(found, rel=0.03)


def test_a_step_between_measured_sizes():
    table = [[1e-9 * H * B for B in constants.BATCH] for H in constants.HIDDEN]
    for H, B in ((32, 1), (128, 8), (1024, 128), (100, 20), (700, 3)):
        assert constants.step_seconds(table, H, B) == pytest.approx(1e-9 * H * B)
    # beyond the table by the operations, below it as at its end
    assert constants.step_seconds(table, 2048, 256) == pytest.approx(8 * 1e-9 * 1024 * 128)
    assert constants.step_seconds(table, 4, 1) == pytest.approx(1e-9 * 32)


def test_checkpoints_keep_less_and_take_longer():
    how = How(PLAIN, 0, constants.load(constants.SHIPPED))
    layer = Layer(1000, 8, 128, 128)
    plain, sparse = (lstm("lstm", layer, how._replace(checkpoint_every=k)) for k in (0, 50))
    assert sparse.kept < plain.kept / 3
    assert sparse.backward_s == pytest.approx(plain.backward_s + plain.forward_s)


def test_an_all_reduce_overlaps_with_the_parts_before():
    how = How(PLAIN, 0, constants.load(constants.SHIPPED))
    parts = [Part("a", 1000, forward_s=1, backward_s=5), Part("b", 2000, forward_s=1, backward_s=2)]
    step = Step(parts, 0, OPTIMIZERS["SGD"], True, False)
    after = cost(step, how).optimizer_s
    assert all_reduced(step, how, 1, 0.1, 1e3) == cost(step, how).seconds == 9 + after
    # b is ready after 4 s and takes 2 * 0.1 + 8 s; a after 9 s, waits for it, takes 0.2 + 4 s
    assert all_reduced(step, how, 2, 0.1, 1e3) == pytest.approx(4 + 8.2 + 4.2 + after)
    # a fast network leaves the reduction of a, which nothing overlaps
    assert all_reduced(step, how, 2, 0.1, 1e9) == pytest.approx(9 + 0.2 + after, rel=1e-5)


def test_mixed_precision_casts_weights_and_halves_what_is_kept():
    wide, mixed = (How(PRECISIONS[name], 0, None) for name in ("32-true", "bf16-mixed"))
    assert linear("l", 10, 3, 5, 5, wide).kept == 10 * 5 * 4
    assert linear("l", 10, 3, 5, 5, mixed).kept == 10 * 5 * 2 + 3 * 5 * 2
    step = Step([linear("l", 10, 3, 5, 5, mixed)], 7, OPTIMIZERS["Adam"], True, False)
    found = cost(step, mixed)
    assert (found.parameters, found.gradients, found.optimizer) == (80, 80, 160)
    assert found.batch == 7 and found.seconds == 0


def test_constants_are_kept_and_read(tmp_path):
    shipped = constants.load(constants.SHIPPED)
    assert constants.find() == shipped
    own = shipped._replace(machine=constants.machine(), overhead=1.0)
    constants.save(own, constants.cache())
    assert constants.find() == own
    constants.save(own._replace(machine="another one"), constants.cache())
    assert constants.find() == shipped
    constants.cache().write_text("{}")
    with pytest.raises(ValueError, match=r"plan.json: expected the constants .* --measure"):
        constants.find()


@pytest.mark.parametrize("table", ["forward", "backward"])
def test_shipped_tables_have_their_sizes(table):
    shipped = constants.load(constants.SHIPPED)
    for speeds in (shipped.float32, shipped.bfloat16):
        rows = getattr(speeds, table)
        assert [len(row) for row in rows] == [len(constants.BATCH)] * len(constants.HIDDEN)
        assert all(0 < seconds < 1 for row in rows for seconds in row)


def test_the_table_of_an_lstm(capsys):
    found = said(f"{LSTM} --checkpoint_every 8 --devices 6 --memory 20", capsys)
    assert found.startswith(
        "LSTM, input 24, 32 units, 1 layer; T=40, batch size 4, precision 32-tr"
    )
    assert "7,424 parameters" in found
    lines = found.splitlines()
    rows = [line.split()[0] for line in lines if line]
    assert "None" in rows and "8" in rows
    assert [row for row in rows if row.isdigit()][-4:] == ["1", "2", "4", "6"]
    assert "measured on" in found


def test_where_nothing_was_measured_the_plan_says_so(capsys, monkeypatch):
    monkeypatch.setattr(constants, "machine", lambda: "a machine of another kind")
    assert "not on this machine, a machine of another kind. `fastlstm plan --m" in said(
        LSTM, capsys
    )
    on_gpu = said("plan --config paper --device cuda --memory 24", capsys)
    assert "precision bf16-mixed" in on_gpu and " ms " not in on_gpu
    assert "On a GPU the time of a step has not been measured" in on_gpu
    assert "(sampling) takes longer" in on_gpu


def test_what_does_not_fit(capsys):
    found = said(f"{LSTM.replace('--T 40', '--T 40000000')} --memory 1", capsys)
    assert "No choice fits" in found and "yes" not in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("plan --config dmeo", "config: expected a file that exists or one of classify, demo"),
        ("plan --hidden_size 3 --input_size 3 --T 2", "got no --batch_size"),
        ("plan", "expected --config, or --input_size, --hidden_size, --T and --batch_size"),
        ("plan --config demo --hidden_size 3", "hidden_size: expected none beside --config"),
        ("plan --config pyproject.toml", "config: expected"),
        (f"{LSTM} --devices 0", "--devices: expected a whole number from 1 on, got '0'"),
        (f"{LSTM} --T -1", "--T: expected a whole number from 1 on, got '-1'"),
        (f"{LSTM} --memory 0", "--memory: expected a number above 0, got '0'"),
    ],
)
def test_errors_are_one_sentence(words, message, capsys):
    with pytest.raises(SystemExit) as refused:
        main(words.split())
    error = capsys.readouterr().err if refused.value.code == 2 else str(refused.value.code)
    assert message in error and error.startswith("fastlstm plan: ")
    assert error.strip().count("\n") == 0


def test_words_of_the_model_and_of_the_parser_agree():
    assert set(fastlstm_plan.OPTIMIZERS) == set(OPTIMIZERS)
    assert set(fastlstm_plan.PRECISIONS) == {"auto", *PRECISIONS}
    assert all(math.isfinite(planned_runs.predicted(name).seconds) for name in planned_runs.RUNS)
    with pytest.raises(ValueError, match="precision: expected one of"):
        plan.precision_of("64-true", "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("name", planned_runs.RUNS)
def test_planned_memory_is_that_of_a_run(name):
    """Within 20%. Times are compared by ``python -m benchmarks.planned_runs``."""
    used = planned_runs.in_process(name, 3, returns=True)["bytes"]
    assert planned_runs.predicted(name).bytes == pytest.approx(used, rel=0.2)
