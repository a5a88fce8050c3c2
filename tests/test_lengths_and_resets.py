"""Lengths, PackedSequence, resets, and the cell state of every step."""

import pairwise
import pytest
import torch
from helpers import Case, assert_close, check_case, run_case, skip_unless_supported
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm import lstm_sequence

ALL = ("y", "hy", "cy", "cells")
LAYOUTS = [{"lengths": True}, {"packed": True}, {"reset": True}, {"lengths": True, "reset": True}]


@pairwise.parametrize(
    {
        "reverse": [(False,), (True,), (False, True), (True, False, True)],
        "I": [0, 9],
        "layout": LAYOUTS,
    }
)
def test_layouts(fused_backend, reverse, I, layout):
    check_case(Case(T=6, B=5, H=17, I=I, reverse=reverse, uses=ALL, **layout), fused_backend)


@pairwise.parametrize(
    {
        "T, B, H, I": [(300, 3, 20, 33), (3, 300, 9, 30), (40, 70, 33, 40)],
        "threads": [1, 2, 3],
        "layout": LAYOUTS,
    }
)
def test_layouts_in_several_blocks(fused_backend, T, B, H, I, threads, layout):
    """More rows than the kernels project at once, or sum at once into the gradient of a weight."""
    torch.set_num_threads(threads)
    case = Case(T=T, B=B, H=H, I=I, reverse=(False, True), **layout)
    skip_unless_supported(fused_backend, case.problem(torch.float64))
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference")
    assert_close(run_case(case, inputs, cotangents, fused_backend), truth, case.tolerance)


@pytest.mark.parametrize("uses", [("cells",), ("y", "cells"), ALL])
def test_gradients_of_cells(fused_backend, uses):
    check_case(Case(T=4, B=3, H=5, reverse=(False, True), lengths=True, uses=uses), fused_backend)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_lengths_of_any_integer_type_and_stride(fused_backend, dtype):
    case = Case(T=5, B=3, H=4, reverse=(False, True), lengths=True)
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference", lengths=torch.tensor([2, 5, 1]))
    lengths = torch.tensor([[2, 0], [5, 0], [1, 0]], dtype=dtype)[:, 0]
    ours = run_case(case, inputs, cotangents, fused_backend, lengths=lengths)
    assert_close(ours, truth, case.tolerance)


@pytest.mark.parametrize("I", [0, 3])
def test_padding_does_not_matter(fused_backend, I):
    """Values past a row's length, NaN included, change neither results nor gradients."""
    case = Case(T=5, B=3, H=4, I=I, reverse=(False, True), lengths=True)
    inputs, cotangents = case.inputs(), case.cotangents()
    lengths = torch.tensor([2, 5, 1])
    truth = run_case(case, inputs, cotangents, fused_backend, lengths=lengths)
    padding = torch.arange(5)[:, None] >= lengths
    inputs["x" if I else "igates"][padding] = float("nan")
    cotangents["y"][padding] = float("nan")
    ours = run_case(case, inputs, cotangents, fused_backend, lengths=lengths)
    assert all(torch.equal(ours[name], truth[name]) for name in truth)


def test_lengths_may_end_before_the_last_block(fused_backend):
    """The backward pass begins with steps that no row has."""
    case = Case(T=600, B=2, H=4, I=3, reverse=(False, True))
    skip_unless_supported(fused_backend, case.problem(torch.float64))
    inputs, cotangents = case.inputs(), case.cotangents()
    lengths = torch.tensor([3, 2])
    truth = run_case(case, inputs, cotangents, "reference", lengths=lengths)
    ours = run_case(case, inputs, cotangents, fused_backend, lengths=lengths)
    assert_close(ours, truth, case.tolerance)


def _module(backend="auto", asked=None, **options):
    """A module on this backend, if it supports the options; ``asked``: fields of a problem."""
    module = fastlstm.LSTM(3, 5, dtype=torch.float64, backend=backend, **options)
    skip_unless_supported(backend, module.problem()._replace(**asked or {}))
    return module


def _sequences(count):
    return torch.randn(7, count, 3, dtype=torch.float64)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("enforce_sorted", [False, True])
def test_packed_sequence_equals_torch(backend, options, bidirectional, enforce_sorted):
    module = _module(backend, {"is_packed_sequence": True}, bidirectional=bidirectional, **options)
    theirs = module.to_torch()
    lengths = torch.tensor([7, 6, 6, 2] if enforce_sorted else [2, 7, 1, 6])
    x = _sequences(4)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    hx = tuple(torch.randn(s.shape, dtype=torch.float64) for s in theirs(x)[1])
    found, expected = module(packed, hx), theirs(packed, hx)
    for mine, other in zip(found[0], expected[0], strict=True):
        assert (mine is None and other is None) or torch.allclose(mine.double(), other.double())
    torch.testing.assert_close(found[1], expected[1])
    mine, others = (
        torch.autograd.grad(output.data.sin().sum() + state[1].sum(), list(m.parameters()))
        for m, (output, state) in ((module, found), (theirs, expected))
    )
    torch.testing.assert_close(mine, others)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_reset_separates_episodes(backend, bidirectional, batch_first):
    """Each episode gives what it gives alone, in all layers and directions."""
    options = {"bidirectional": bidirectional, "batch_first": batch_first}
    module = _module(backend, num_layers=2, peephole=True, **options)
    x = _sequences(2)
    x = x.transpose(0, 1) if batch_first else x
    time = 1 if batch_first else 0
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset.select(time, 3).fill_(True)
    reset.select(time, 0).fill_(True)
    state = tuple(torch.randn(s.shape, dtype=torch.float64) for s in module(x)[1])
    y, _, cells = module(x, reset=reset, return_all_cells=True)
    alone = [
        module(part, return_all_cells=True) for part in (x.narrow(time, 0, 3), x.narrow(time, 3, 4))
    ]
    torch.testing.assert_close(y, torch.cat([part[0] for part in alone], time))
    torch.testing.assert_close(cells, torch.cat([part[2] for part in alone], time))
    mine, others = (
        torch.autograd.grad(sum(o.sin().sum() for o in outputs), list(module.parameters()))
        for outputs in ([y], [part[0] for part in alone])
    )
    torch.testing.assert_close(mine, others)
    if not module.bidirectional:  # the first state of the second direction comes in at the end
        torch.testing.assert_close(module(x, state, reset=reset)[0], y)


def test_reset_of_one_row_leaves_the_others(fused_backend):
    module = _module(fused_backend, {"has_reset": True})
    x, reset = _sequences(2), torch.zeros(7, 2, dtype=torch.bool)
    reset[4, 0] = True
    y, plain = module(x, reset=reset)[0], module(x)[0]
    assert torch.equal(y[:, 1], plain[:, 1])
    assert torch.equal(y[:4, 0], plain[:4, 0]) and not torch.allclose(y[4:, 0], plain[4:, 0])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_all_cells_are_those_of_the_steps(backend, bidirectional):
    module = _module(backend, num_layers=2, bidirectional=bidirectional)
    x = _sequences(3)
    y, (_, c), cells = module(x, return_all_cells=True)
    D = 2 if module.bidirectional else 1
    cells = cells.view(7, 3, D, 5)
    assert y.shape == (7, 3, D * 5)
    torch.testing.assert_close(cells[-1, :, 0], c[-D])
    torch.testing.assert_close(cells[0, :, -1] if D == 2 else cells[-1, :, 0], c[-1])
    if D == 1:
        for t in range(7):
            torch.testing.assert_close(cells[t, :, 0], module(x[: t + 1])[1][1][-1])


def test_all_cells_of_any_layout():
    module = fastlstm.LSTM(3, 5, peephole=True, dtype=torch.float64)
    x = _sequences(3)
    cells = module(x, return_all_cells=True)[2]
    first = fastlstm.LSTM(3, 5, peephole=True, batch_first=True, dtype=torch.float64)
    first.load_state_dict(module.state_dict())
    torch.testing.assert_close(
        first(x.transpose(0, 1), return_all_cells=True)[2].transpose(0, 1), cells
    )
    torch.testing.assert_close(module(x[:, 1], return_all_cells=True)[2], cells[:, 1])
    lengths = torch.tensor([7, 3, 5])
    packed = module(pack_padded_sequence(x, lengths, enforce_sorted=False), return_all_cells=True)[
        2
    ]
    padded = module(x, lengths=lengths, return_all_cells=True)[2]
    torch.testing.assert_close(pad_packed_sequence(packed)[0], padded)
    assert padded[3:, 1].eq(0).all()


def test_reset_of_a_single_sequence():
    module = fastlstm.LSTM(3, 5, dtype=torch.float64)
    x, reset = _sequences(1)[:, 0], torch.arange(7) == 2
    torch.testing.assert_close(module(x, reset=reset)[0][2:], module(x[2:])[0])


@pytest.mark.parametrize(
    "reset, error, match",
    [
        (torch.zeros(5, 2), RuntimeError, "reset: expected torch.bool, got torch.float32"),
        (torch.zeros(2, 5).bool(), RuntimeError, r"reset: expected size \(5, 2\), got \(2, 5\)"),
        (torch.zeros(5).bool(), RuntimeError, r"reset: expected size \(5, 2\), got \(5,\)"),
    ],
)
def test_wrong_resets(reset, error, match):
    with pytest.raises(error, match=match):
        fastlstm.LSTM(3, 4)(torch.zeros(5, 2, 3), reset=reset)


@pytest.mark.parametrize(
    "sizes, match",
    [
        (torch.tensor([2, 3]), "none above the one before"),
        (torch.tensor([5, 0]), "positive"),
        (torch.tensor([3, 1]), "a sum of 5"),
        (torch.tensor([], dtype=torch.int64), "sequence length"),
        (torch.tensor([[3, 2]]), "one dimension"),
        (torch.tensor([3.0, 2.0]), "torch.int64"),
    ],
    ids=str,
)
def test_wrong_batch_sizes(sizes, match):
    with pytest.raises(RuntimeError, match=match):
        lstm_sequence(torch.zeros(5, 1, 16), [torch.zeros(16, 4)], batch_sizes=sizes)


def test_arguments_that_exclude_each_other():
    sizes, lengths = torch.tensor([3, 2]), torch.tensor([2, 2, 1])
    with pytest.raises(ValueError, match="expected None beside batch_sizes"):
        lstm_sequence(
            torch.zeros(5, 1, 16), [torch.zeros(16, 4)], batch_sizes=sizes, lengths=lengths
        )
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="reset: expected None beside a PackedSequence"):
        fastlstm.LSTM(3, 4)(packed, reset=torch.zeros(3, 1).bool())
