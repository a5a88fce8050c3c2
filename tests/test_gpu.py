"""What only a CUDA device can show: capture in a CUDA graph, and autocast.

Run by ``pytest -m gpu``. These tests have not run on a GPU yet.
"""

import pytest
import torch
from helpers import assert_close

import fastlstm

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
]
T, B, I, H = 5, 3, 4, 6


def _module(**options):
    return fastlstm.LSTM(I, H, device="cuda", **options)


def _lengths(given):
    return torch.tensor([5, 2, 1], device="cuda") if given else None


def _warm_up(function):
    """Three calls beside the main stream, as CUDA graphs want before a capture."""
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("peephole", [False, True])
def test_autocast(peephole, dtype):
    module = _module(peephole=peephole)
    x = torch.randn(T, B, I, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        output, (_, c) = module(x)
    assert output.dtype == dtype and c.dtype == dtype
    truth = module.double()(x.double())[0]
    assert_close({"output": output}, {"output": truth}, 16 * torch.finfo(dtype).eps)
    module.float()
    with torch.autocast("cuda", dtype=dtype):
        module(x)[0].float().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in module.parameters())
