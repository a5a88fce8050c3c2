"""The CPU kernels themselves: instruction sets, threads, processes, and activations."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import Case, assert_close, error, run_case

from fastlstm import lstm_sequence
from fastlstm.backends import cpu

CASE = Case(T=5, B=7, H=33, reverse=(False, True), lengths=True)


@pytest.fixture(params=cpu.isas())
def isa(request):
    """Every instruction set that this build and this machine have, in turn."""
    return request.param


def _run_isa(case, inputs, lengths, cotangents, isa, dtype=torch.float64):
    """``run_case`` with the forward and backward functions themselves."""
    values = {name: value.to(dtype) for name, value in inputs.items()}
    groups = range(len(case.reverse))
    weight_hh = [values[f"weight_hh[{group}]"] for group in groups]
    weight_ch = [values[f"weight_ch[{group}]"] for group in groups] if case.peephole else []
    hx, cx = values["hx"], values["cx"]
    options = (case.reverse, lengths)
    y, hy, cy, reserve = cpu.forward(
        values["igates"], weight_hh, weight_ch, hx, cx, *options, True, isa=isa
    )
    untrained = cpu.forward(
        values["igates"], weight_hh, weight_ch, hx, cx, *options, False, isa=isa
    )
    assert untrained[3].numel() == 0
    for output, same in zip((y, hy, cy), untrained, strict=False):
        assert torch.equal(output, same)
    gradients = [cotangents[name].to(dtype) for name in ("y", "hy", "cy")]
    digates, dweight_hh, dweight_ch, dhx, dcx = cpu.backward(
        *gradients, y, reserve, weight_hh, weight_ch, hx, cx, *options, isa=isa
    )
    results = {"y": y, "hy": hy, "cy": cy, "digates": digates, "dhx": dhx, "dcx": dcx}
    for group in groups:
        results[f"dweight_hh[{group}]"] = dweight_hh[group]
        if case.peephole:
            results[f"dweight_ch[{group}]"] = dweight_ch[group]
    return results


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("H", [1, 5, 16, 33, 70])
@pytest.mark.parametrize("B", [1, 4, 13])
def test_every_isa_equals_the_reference(isa, B, H, peephole):
    case = Case(T=4, B=B, H=H, reverse=(False, True), peephole=peephole, lengths=B > 1)
    inputs, lengths, cotangents = case.inputs(), case.row_lengths(), case.cotangents()
    truth = run_case(case, inputs, lengths, cotangents, "reference")
    assert_close(_run_isa(case, inputs, lengths, cotangents, isa), truth, case.tolerance)
    single = _run_isa(case, inputs, lengths, cotangents, isa, torch.float32)
    assert_close(single, truth, case.tolerance * 2**29)  # 2**29 = eps of float32 / float64


def test_portable_code_is_always_there():
    assert cpu.isas()[-1] == "portable"


def test_unknown_isa():
    igates, weight_hh, zeros = torch.zeros(1, 1, 1, 4), [torch.zeros(4, 1)], torch.zeros(1, 1, 1)
    with pytest.raises(ValueError, match=r"isa.*sse9"):
        cpu.forward(igates, weight_hh, [], zeros, zeros, [False], None, False, isa="sse9")


@pytest.mark.parametrize("B, H", [(1, 130), (2, 200), (7, 33), (64, 5)])
def test_any_number_of_threads(B, H):
    case = Case(T=5, B=B, H=H, reverse=(False, True))
    inputs, cotangents = case.inputs(), case.cotangents()
    torch.set_num_threads(1)
    alone = run_case(case, inputs, None, cotangents, "cpu")
    for threads in (2, 3):
        torch.set_num_threads(threads)
        together = run_case(case, inputs, None, cotangents, "cpu")
        assert_close(together, alone, case.tolerance)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_every_time(dtype, threads):
    torch.set_num_threads(threads)
    case = Case(T=9, B=6, H=40, reverse=(False, True))
    inputs, cotangents = case.inputs(), case.cotangents()
    first, *others = (run_case(case, inputs, None, cotangents, "cpu", dtype) for _ in range(4))
    for other in others:
        assert all(torch.equal(other[name], first[name]) for name in first)


def _run(inputs, lengths, cotangents):
    return run_case(CASE, inputs, lengths, cotangents, "cpu")


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
        return cpu.forward(igates, weight_hh, [], hx, cx, [False], None, False, isa=isa)[1:3]

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
    """A row's result is the same alone and among others, whatever tile it falls into."""
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
