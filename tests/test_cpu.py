"""The CPU kernels themselves: instruction sets, threads, processes, and activations."""

import math
import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pairwise
import pytest
import torch
from helpers import Case, assert_as_close_as_torch, assert_close, error, run_case

import fastlstm
from fastlstm import lstm_sequence
from fastlstm.backends import cpu
from fastlstm.backends.cpu.prepacked import PrepackedWeights
from fastlstm.call import (
    Call,
    GroupWeights,
    Needs,
    OutputGradients,
    Saved,
    SequenceLayout,
    Wanted,
)

CASE = Case(T=50, B=7, H=33, I=20, reverse=(False, True), lengths=True)


@pytest.fixture(params=cpu.isas())
def isa(request):
    """Every instruction set that this build and this machine support, in turn."""
    return request.param


def _run_isa(case, inputs, cotangents, isa, dtype=torch.float64):
    """``run_case`` by direct calls of the backend's forward and backward."""
    values = {name: value.to(dtype) for name, value in inputs.items()}
    call = case.call(values)
    y, hy, cy, cells, reserve = cpu.forward(call, Wanted(train=True, cells=True), isa=isa)
    untrained = cpu.forward(call, Wanted(cells=True), isa=isa)
    assert untrained[4].numel() == 0
    for output, same in zip((y, hy, cy, cells), untrained, strict=False):
        assert torch.equal(output, same)
    if case.I:
        packed = PrepackedWeights()
        for _ in range(2):  # packs the weights, then uses the packed ones
            again = cpu.forward(call, Wanted(), packed, isa)
            assert error(again[0], y) <= 8 * torch.finfo(dtype).eps * (case.H + case.I)
    gradients = [
        cotangents[name].to(dtype) if name in cotangents else None
        for name in ("y", "hy", "cy", "cells")
    ]
    needs = Needs(True, bool(case.I), bool(case.I), True, case.peephole, bool(case.proj_size))
    found = cpu.backward(call, Saved(y, reserve), OutputGradients(*gradients), needs, isa)
    results = {"y": y, "hy": hy, "cy": cy, "dhx": found.hx, "dcx": found.cx}
    if "cells" in case.uses:
        results["cells"] = cells
    results["dx" if case.I else "digates"] = found.input
    for group in range(len(case.reverse)):
        results[f"dweight_hh[{group}]"] = found.weight_hh[group]
        if case.peephole:
            results[f"dweight_ch[{group}]"] = found.weight_ch[group]
        if case.proj_size:
            results[f"dweight_hr[{group}]"] = found.weight_hr[group]
        if case.I:
            results[f"dweight_ih[{group}]"] = found.weight_ih[group]
            for bias in case.biases:
                results[f"d{bias}[{group}]"] = found.bias[group]
    return results


@pytest.mark.parametrize(
    "layout", [{}, {"packed": True}, {"lengths": True, "reset": True}], ids=str
)
@pytest.mark.parametrize("proj_size", [0, 3, 40])
@pytest.mark.parametrize("B, H, I", [(1, 17, 0), (6, 70, 9)])
def test_every_isa_with_every_option(isa, B, H, I, proj_size, layout):
    uses = ("y", "hy", "cy", "cells")
    case = Case(T=5, B=B, H=H, I=I, reverse=(False, True), proj_size=proj_size, uses=uses, **layout)
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference")
    assert_close(_run_isa(case, inputs, cotangents, isa), truth, case.tolerance)


@pairwise.parametrize(
    {
        "B, I": [(1, 0), (4, 1), (4, 40), (13, 0), (13, 9)],
        "H": [1, 5, 16, 33, 70],
        "peephole": [False, True],
    }
)
def test_every_isa_equals_the_reference(isa, B, I, H, peephole):
    case = Case(T=4, B=B, H=H, I=I, reverse=(False, True), peephole=peephole, lengths=B > 1)
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference")
    assert_close(_run_isa(case, inputs, cotangents, isa), truth, case.tolerance)
    single = _run_isa(case, inputs, cotangents, isa, torch.float32)
    assert_close(single, truth, case.tolerance * 2**29)  # 2**29 = eps of float32 / float64


@pytest.mark.parametrize("T, B, H, I", [(300, 3, 20, 33), (3, 300, 9, 30), (2, 70, 100, 300)])
def test_every_isa_in_several_blocks(isa, T, B, H, I):
    """More rows than the kernels project at once, or sum at once into the gradient of a weight."""
    case = Case(T=T, B=B, H=H, I=I, reverse=(False, True), lengths=True)
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference")
    assert_close(_run_isa(case, inputs, cotangents, isa), truth, case.tolerance)


@pytest.mark.parametrize("options", [{}, {"peephole": True}, {"proj_size": 40}, {"lengths": True}])
@pytest.mark.parametrize("B, H, I", [(16, 256, 32), (17, 260, 0), (45, 100, 33), (70, 70, 300)])
def test_every_isa_with_many_rows_in_float32(isa, B, H, I, options):
    """With so many rows, AMX multiplies a float as a sum of bfloat16 numbers."""
    case = Case(T=4, B=B, H=H, I=I, reverse=(False, True), **options)
    inputs, cotangents = case.inputs(), case.cotangents()
    truth = run_case(case, inputs, cotangents, "reference")
    torchs = run_case(case, inputs, cotangents, "reference", torch.float32)
    assert_as_close_as_torch(_run_isa(case, inputs, cotangents, isa, torch.float32), torchs, truth)


@pytest.mark.parametrize("value", [float("inf"), -float("inf"), 3.4e38, float("nan"), 1e-42])
def test_every_isa_with_extreme_numbers(isa, value):
    """Gates saturate where PyTorch's do, NaN stays NaN, and both stay in their rows."""
    theirs = torch.nn.LSTM(8, 256)
    ours = theirs.state_dict()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = GroupWeights(*([ours[f"{name}_l0"]] for name in names))
    x, h, c = torch.randn(3, 16, 8), torch.zeros(1, 16, 256), torch.zeros(1, 16, 256)
    x[1, 5, 3] = value
    call = Call(x, weights, h, c, SequenceLayout([False]))
    y = cpu.forward(call, Wanted(), isa=isa).y.squeeze(2)
    expected = theirs(x)[0]
    assert torch.equal(y.isnan(), expected.isnan())
    assert y.isnan().any(2).sum() == (2 if math.isnan(value) else 0)
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("B, H, I", [(1, 17, 0), (7, 33, 9), (13, 64, 40)])
def test_every_isa_in_bfloat16(isa, B, H, I):
    case = Case(T=4, B=B, H=H, I=I, reverse=(False, True), lengths=B > 1)
    inputs = {name: value.bfloat16().double() for name, value in case.inputs().items()}
    cotangents = {name: v.bfloat16().double() for name, v in case.cotangents().items()}
    truth = run_case(case, inputs, cotangents, "reference")
    torchs = run_case(case, inputs, cotangents, "reference", torch.bfloat16)
    ours = _run_isa(case, inputs, cotangents, isa, torch.bfloat16)
    assert_as_close_as_torch(ours, torchs, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_without_y(isa, dtype):
    """y is not kept: the backward pass computes every h again."""
    T, B, H, I = 40, 5, 33, 9
    x, weights = torch.randn(T, B, I), [[torch.randn(4 * H, n) / 6] for n in (I, H)]
    tensors = [x, torch.randn(1, B, H), torch.randn(1, B, H), torch.randn(T, B, 1, H)]
    x, hx, cx, dcells = (tensor.to(dtype) for tensor in tensors)
    w_ih, w_hh = ([w.to(dtype) for w in group] for group in weights)
    call = Call(x, GroupWeights(w_ih, w_hh), hx, cx, SequenceLayout([True]))
    needs = Needs(True, True, False, True, False, False)
    grads = OutputGradients(None, hx, cx, dcells)
    *outputs, cells, reserve = cpu.forward(call, Wanted(train=True, cells=True), isa=isa)
    expected = cpu.backward(call, Saved(outputs[0], reserve), grads, needs, isa)
    for k in (1, 9, 64):
        wanted = Wanted(train=True, y=False, cells=True, checkpoint_every=k)
        y, *last, same_cells, states = cpu.forward(call, wanted, isa=isa)
        assert y.numel() == 0 and states.shape == (-(-T // k), 1, B, 2 * H)
        assert all(map(torch.equal, (*last, same_cells), (*outputs[1:], cells)))
        found = cpu.backward(call, Saved(y, states, k), grads, needs, isa)
        assert all(map(torch.equal, found, expected))


def test_portable_code_is_always_there():
    assert cpu.isas()[-1] == "portable"


def _infer(igates, weight_hh, hx, cx, isa):
    call = Call(igates, GroupWeights([], weight_hh), hx, cx, SequenceLayout([False]))
    return cpu.forward(call, Wanted(), isa=isa)


def test_unknown_isa():
    igates, weight_hh, zeros = torch.zeros(1, 1, 1, 4), [torch.zeros(4, 1)], torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"isa.*sse9"):
        _infer(igates, weight_hh, zeros, zeros, isa="sse9")


@pytest.mark.parametrize("B, H", [(1, 130), (2, 200), (7, 33), (64, 5)])
def test_any_number_of_threads(B, H):
    case = Case(T=5, B=B, H=H, I=50, reverse=(False, True))
    inputs, cotangents = case.inputs(), case.cotangents()
    torch.set_num_threads(1)
    alone = run_case(case, inputs, cotangents, "cpu")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        together = run_case(case, inputs, cotangents, "cpu")
        assert_close(together, alone, case.tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_same_bits_every_time(dtype, threads):
    torch.set_num_threads(threads)
    case = Case(T=9, B=60, H=40, I=70, reverse=(False, True))
    inputs, cotangents = case.inputs(), case.cotangents()
    first, *others = (run_case(case, inputs, cotangents, "cpu", dtype) for _ in range(4))
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)


def _run(inputs, lengths, cotangents):
    return run_case(CASE, inputs, cotangents, "cpu")


def test_several_python_threads_at_once():
    jobs = [(CASE.inputs(), CASE.row_lengths(), CASE.cotangents()) for _ in range(12)]
    expected = [_run(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: _run(*job), jobs))
    for ours, truth in zip(found, expected, strict=True):
        assert_close(ours, truth, CASE.tolerance)


def _run_in_child(job, pipe):
    torch.set_num_threads(1)  # as a DataLoader's worker does
    with pipe:
        pipe.send({name: value.numpy() for name, value in _run(*job).items()})


def test_forked_child_after_use_in_the_parent():
    """The parent's OpenMP threads do not exist in the child."""
    job = (CASE.inputs(), CASE.row_lengths(), CASE.cotangents())
    expected = _run(*job)
    context = multiprocessing.get_context("fork")
    ours, childs = context.Pipe()
    child = context.Process(target=_run_in_child, args=(job, childs))
    child.start()
    childs.close()
    try:
        assert ours.poll(30), "the child hangs"
        found = {name: torch.from_numpy(value) for name, value in ours.recv().items()}
    finally:
        child.terminate()
        child.join()
    assert_close(found, expected, CASE.tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gate", ["i", "f", "g", "o", "c"])
def test_activations_are_accurate_everywhere(isa, gate, dtype):
    """Each gate sweeps its whole range, by itself, in an LSTM of one unit and one step.

    The error is relative to each value, not to the largest: small numbers must be right too.
    """
    magnitudes = torch.logspace(-30, 2, 1601, dtype=torch.float64)
    sweep = torch.cat([-magnitudes, magnitudes]).float().double()
    igates = torch.full((1, len(sweep), 1, 4), 1.0, dtype=torch.float64)
    cx = torch.zeros(1, len(sweep), 1, dtype=torch.float64)
    if gate == "f":
        igates[..., 0] = -1000  # c = f * cx alone
        cx.fill_(1.0)
    if gate == "c":
        igates[..., 0] = -1000
        igates[..., 1] = 1000  # c = cx
        cx[0, :, 0] = sweep
    else:
        igates[0, :, 0, "ifgo".index(gate)] = sweep

    def outputs(dtype, run):
        hx, weight_hh = torch.zeros(1, len(sweep), 1, dtype=dtype), [torch.zeros(4, 1, dtype=dtype)]
        return run(igates.to(dtype), weight_hh, hx, cx.to(dtype))

    def ours(igates, weight_hh, hx, cx):
        return _infer(igates, weight_hh, hx, cx, isa)[1:3]

    def torchs(igates, weight_hh, hx, cx):
        return lstm_sequence(igates, weight_hh, hx, cx, backend="reference")[1:]

    truth = outputs(torch.float64, torchs)
    limits = outputs(dtype, torchs)
    few_eps = 8 * torch.finfo(dtype).eps
    for name, value, other, exact in zip(
        ("hy", "cy"), outputs(dtype, ours), limits, truth, strict=True
    ):
        normal = exact.abs() > 1e-36  # float32 has fewer digits below
        worst, theirs = (((x.double() - exact) / exact).abs()[normal].max() for x in (value, other))
        assert worst <= 2 * theirs + few_eps, f"{name}: {worst:.1e}, torch {theirs:.1e}"


def test_steps_of_different_batches_do_not_mix():
    """A row has the same result alone and in a batch, in whatever tile of the kernel it is."""
    case = Case(T=3, B=13, H=9, reverse=(False, True))
    inputs = case.inputs()
    weight_hh, weight_ch = ([inputs[f"weight_{n}[{g}]"] for g in (0, 1)] for n in ("hh", "ch"))

    def run(rows):
        return lstm_sequence(
            inputs["igates"][:, rows],
            weight_hh,
            inputs["hx"][:, rows],
            inputs["cx"][:, rows],
            weight_ch=weight_ch,
            reverse=case.reverse,
            backend="cpu",
        )[0]

    together = run(slice(None))
    for row in range(case.B):
        assert error(run(slice(row, row + 1)), together[:, row : row + 1]) <= case.tolerance


def test_another_default_device_does_not_matter():
    """Memory for kernels is the CPU's: they would write to whatever address they are given."""
    module, x = fastlstm.LSTM(5, 9, backend="cpu"), torch.randn(4, 3, 5)
    state = (torch.zeros(1, 3, 9), torch.zeros(1, 3, 9))
    expected = module(x, state)[0]
    with torch.device("meta"):
        y = module(x, state)[0]
        gradients = torch.autograd.grad(y, list(module.parameters()), y.detach())
        frozen = module.freeze()(x, state)[0]
    assert all(g.device.type == "cpu" for g in gradients)
    torch.testing.assert_close((y, frozen), (expected, expected))
