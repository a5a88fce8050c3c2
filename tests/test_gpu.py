"""What only a CUDA device can test: CUDA graphs, streams, several devices, compilers, autocast.

Run by ``pytest -m gpu``. These tests have not run on a GPU yet.
"""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import assert_close
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm
from fastlstm.backends.cuda import wavefront

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# What each backend can run there: cuDNN has no peepholes, and takes lengths from the CPU.
CASES = [
    ("torch", {}, False),
    ("torch", {"num_layers": 2, "bidirectional": True}, False),
    ("reference", {"peephole": True}, False),
    ("reference", {"peephole": True, "bidirectional": True}, True),
    ("auto", {"peephole": True}, True),
    ("auto", {}, True),
    ("cuda", {"peephole": True}, False),
    ("cuda", {"num_layers": 2, "bidirectional": True}, True),
    ("triton", {"peephole": True, "bidirectional": True}, True),
]
T, B, I, H = 5, 3, 4, 6
# Hidden units: as many as a persistent launch holds, and more than any GPU can.
SIZES = [pytest.param(96, id="persistent"), pytest.param(4096, id="stepwise")]


def _module(**options):
    return fastlstm.LSTM(I, H, device="cuda", **options)


def _lengths(given):
    return torch.tensor([5, 2, 1], device="cuda") if given else None


def _warm_up(function):
    """Three calls on another stream, which CUDA graphs need before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)


@pytest.mark.parametrize("backend, options, given", CASES, ids=str)
def test_captured_forward(backend, options, given):
    module = _module(backend=backend, **options).requires_grad_(False)
    x, lengths = torch.randn(T, B, I, device="cuda"), _lengths(given)
    _warm_up(lambda: module(x, lengths=lengths))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output, _ = module(x, lengths=lengths)
    x.copy_(torch.randn_like(x))
    graph.replay()
    torch.testing.assert_close(output, module(x, lengths=lengths)[0])


@pytest.mark.parametrize("backend, options, given", CASES, ids=str)
def test_captured_training_step(backend, options, given):
    module = _module(backend=backend, **options)
    x, lengths = torch.randn(T, B, I, device="cuda"), _lengths(given)

    def step():
        module.zero_grad(set_to_none=True)
        module(x, lengths=lengths)[0].sin().sum().backward()

    _warm_up(step)
    graph = torch.cuda.CUDAGraph()
    module.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        module(x, lengths=lengths)[0].sin().sum().backward()
    x.copy_(torch.randn_like(x))
    graph.replay()
    captured = {name: p.grad.clone() for name, p in module.named_parameters()}
    step()
    assert_close(captured, {name: p.grad for name, p in module.named_parameters()}, 1e-5)


def test_captured_loss_of_a_video_model():
    model = fastlstm.CompositeLSTM(I, H, device="cuda").requires_grad_(False)
    frames, future = torch.rand(2, T, B, I, device="cuda")
    _warm_up(lambda: model.loss(frames, future))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total = model.loss(frames, future).total
    frames.copy_(torch.rand_like(frames))
    graph.replay()
    torch.testing.assert_close(total, model.loss(frames, future).total)


@pytest.mark.parametrize("H, num_layers", [(96, 3), (512, 2)])
def test_layers_at_once(monkeypatch, H, num_layers):
    """A wavefront in both passes: correct, and the same bits from a CUDA graph."""
    monkeypatch.setattr(wavefront, "_why_slower", lambda *_: None)
    options = {"num_layers": num_layers, "peephole": True, "device": "cuda"}
    module = fastlstm.LSTM(I, H, backend="cuda", **options)
    twin = fastlstm.LSTM(I, H, backend="reference", dtype=torch.float64, **options)
    twin.load_state_dict(module.state_dict())
    x, lengths = torch.randn(T, B, I, device="cuda"), _lengths(True)

    def step(module, x):
        module.zero_grad(set_to_none=True)
        y, _ = module(x, lengths=lengths)
        y.sin().sum().backward()
        return {"y": y.detach()} | {n: p.grad for n, p in module.named_parameters()}

    _warm_up(lambda: step(module, x))
    eager = step(module, x)
    assert_close(eager, step(twin, x.double()), 1e-2)  # products are TF32
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(module, x)
    graph.replay()
    assert all(torch.equal(captured[name], value) for name, value in eager.items())


@pytest.mark.parametrize("H", SIZES)
def test_on_another_stream(H):
    """The call waits for unfinished work of the main stream, as any op of torch does."""
    module = fastlstm.LSTM(I, H, peephole=True, device="cuda", backend="cuda")
    x = torch.randn(T, B, I, device="cuda")
    expected = torch.autograd.grad(module(x)[0].sum(), list(module.parameters()))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        delayed = torch.zeros_like(x).add_(x)  # zero for milliseconds to come
        found = torch.autograd.grad(module(delayed)[0].sum(), list(module.parameters()))
    torch.cuda.current_stream().wait_stream(stream)
    assert all(map(torch.equal, found, expected))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one CUDA device")
@pytest.mark.parametrize("H", SIZES)
def test_on_another_device(H):
    """A device that is not the current one, of any kind."""
    module = fastlstm.LSTM(I, H, peephole=True, backend="cuda")
    x = torch.randn(T, B, I)
    results = []
    for device in ("cuda:0", "cuda:1"):
        output, _ = module.to(device)(x.to(device))
        output.sum().backward()
        assert output.device == module.weight_hh_l0.grad.device == torch.device(device)
        results.append((output.cpu(), module.weight_hh_l0.grad.cpu()))
        module.zero_grad()
        assert torch.cuda.current_device() == 0
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second)


def test_threads_launch_side_by_side():
    """Threads of one process launch at the same time, each on its own stream."""
    module = fastlstm.LSTM(I, 96, peephole=True, device="cuda", backend="cuda")
    x = torch.randn(T, B, I, device="cuda")
    expected = module(x)[0]
    torch.cuda.synchronize()

    def run(_):
        with torch.cuda.stream(torch.cuda.Stream()):
            outputs = [module(x)[0] for _ in range(20)]
            torch.cuda.current_stream().synchronize()
        return outputs

    with ThreadPoolExecutor(4) as pool:
        found = [output for outputs in pool.map(run, range(4)) for output in outputs]
    assert all(torch.equal(output, expected) for output in found)


def test_packed_rows_wait_for_nothing():
    module = fastlstm.LSTM(I, 96, peephole=True, device="cuda", backend="cuda")
    x = torch.randn(T, B, I, device="cuda")
    lengths = torch.tensor([5, 2, 1])
    packed = pack_padded_sequence(x, lengths)
    output, _ = module(packed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again, _ = module(packed)
        again.data.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(output.data, again.data)
    padded, _ = module(x, lengths=lengths.cuda())
    torch.testing.assert_close(pad_packed_sequence(output)[0], padded)


@pytest.mark.parametrize("H", SIZES)
def test_compiled(compiled, H):
    module = fastlstm.LSTM(I, H, peephole=True, device="cuda", backend="cuda")
    x = torch.randn(T, B, I, device="cuda")
    parameters = list(module.parameters())
    found, expected = (
        torch.autograd.grad(run(x)[0].sum(), parameters) for run in (compiled(module), module)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "cuda", "triton"])
@pytest.mark.parametrize("peephole", [False, True])
def test_autocast(peephole, backend, dtype):
    module = _module(peephole=peephole, backend=backend)
    x = torch.randn(T, B, I, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        output, (_, c) = module(x)
    assert output.dtype == dtype and c.dtype == dtype
    truth = copy.deepcopy(module).double()(x.double())[0]
    assert_close({"output": output}, {"output": truth}, 16 * torch.finfo(dtype).eps)
    with torch.autocast("cuda", dtype=dtype):
        module(x)[0].float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
