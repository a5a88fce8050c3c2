"""``torch.compile`` and ``torch.fx``: no graph breaks, one graph for all sizes, eager's results."""

import copy
import shutil

import pytest
import torch
from helpers import DUPLICATES, assert_close
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import fastlstm

OPTIONS = [
    {},
    {"peephole": True},
    {"num_layers": 2, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "peephole": True},
    {"peephole": True, "batch_first": True, "bias": False},
    {"proj_size": 3, "backend": "reference"},
]
SIZES = [(5, 3), (9, 2), (12, 7), (4, 4), (2, 9), (30, 6), (2, 5), (7, 2), (3, 3), (8, 8)]


def _results(module, run, *args, **kwargs):
    """Outputs and all gradients, by name, of ``run``: the module or its compiled form."""
    dtype = next(module.parameters()).dtype
    x = torch.randn(5, 3, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    output, (hy, cy) = run(x, *args, **kwargs)
    leaves = {"x": x} | dict(module.named_parameters())
    loss = output.sin().sum() + hy.cos().sum() + (cy * cy).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"output": output, "hy": hy, "cy": cy} | dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("given", ["nothing", "hx", "lengths"])
@pytest.mark.parametrize("peephole", [False, True])
def test_outputs_and_gradients(compiled, peephole, given):
    module = fastlstm.LSTM(
        4, 6, 2, bidirectional=True, peephole=peephole, backend="cpu", dtype=torch.float64
    )
    args = [tuple(torch.randn(4, 3, 6, dtype=torch.float64) for _ in "hc")] * (given == "hx")
    kwargs = {"lengths": torch.tensor([2, 5, 1])} if given == "lengths" else {}
    found = _results(module, compiled(module), *args, **kwargs)
    assert_close(found, _results(module, module, *args, **kwargs), 1e-14)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_inference(compiled, options):
    module = fastlstm.LSTM(4, 6, **options).eval()
    x = torch.randn(5, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(compiled(module)(x), module(x))


@pytest.mark.parametrize("peephole", [False, True])
def test_autocast(compiled, peephole):
    module = fastlstm.LSTM(4, 6, 2, peephole=peephole, backend="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, expected = (_results(module, run) for run in (compiled(module), module))
    assert found["output"].dtype == torch.bfloat16
    # A compiler may sum rounded gradients in another order.
    assert_close(found, expected, 4 * torch.finfo(torch.bfloat16).eps)


def test_dropout_between_layers(compiled):
    module = fastlstm.LSTM(4, 6, 2, dropout=0.5)
    x = torch.randn(5, 3, 4)
    run = compiled(module)
    assert not torch.equal(run(x)[0], run(x)[0])
    module.eval()
    torch.testing.assert_close(run(x)[0], module(x)[0])


@pytest.mark.parametrize("peephole", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_cell(compiled, train, peephole):
    cell = fastlstm.LSTMCell(4, 6, peephole=peephole).requires_grad_(train)
    x = torch.randn(3, 4)
    torch.testing.assert_close(compiled(cell)(x), cell(x))


def _lengths(T, B):
    return {"lengths": torch.randint(1, T + 1, (B,))}


CALLED_WITH = {
    "lstm": (lambda: fastlstm.LSTM(4, 6, 2, bidirectional=True, peephole=True), None),
    "lengths": (lambda: fastlstm.LSTM(4, 6), _lengths),
    "wide": (lambda: fastlstm.LSTM(600, 6), None),  # auto looks at T if not compiled
    "cell": (lambda: fastlstm.LSTMCell(256, 64), None),
}


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dynamic", [None, True], ids=["automatic", "dynamic"])
@pytest.mark.parametrize("name", CALLED_WITH)
def test_ten_sizes_compile_at_most_twice(compiled, name, dynamic, train):
    make, extra = CALLED_WITH[name]
    module = make().requires_grad_(train)
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(module, fullgraph=True, backend=counter, dynamic=dynamic)
    for T, B in SIZES:
        size = (B,) if name == "cell" else (T, B)
        x = torch.randn(*size, module.input_size)
        kwargs = extra(T, B) if extra else {}
        torch.testing.assert_close(run(x, **kwargs)[0], module(x, **kwargs)[0])
    assert counter.frame_count <= 2


@pytest.mark.parametrize("conditional", [False, True])
def test_video_model(compiled, conditional):
    model = fastlstm.CompositeLSTM(4, 6, 2, conditional_future=conditional)
    frames, future = torch.rand(5, 3, 4), torch.rand(5, 3, 4)
    run = compiled(lambda frames, future: model.loss(frames, future).total)
    found, expected = run(frames, future), model.loss(frames, future).total
    torch.testing.assert_close(found, expected)
    parameters = list(model.parameters())
    gradients = (torch.autograd.grad(loss, parameters) for loss in (found, expected))
    torch.testing.assert_close(*gradients)


def test_video_model_of_any_length(compiled):
    model = fastlstm.CompositeLSTM(4, 6)
    run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for T, B in SIZES[:3]:
        frames = torch.rand(T, B, 4)
        torch.testing.assert_close(run(frames).future, model(frames).future)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.slow  # 10 s of g++ on 2 cores
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_inductor(compiled):
    module = fastlstm.LSTM(4, 6, peephole=True, backend="cpu")
    run = torch.compile(module, fullgraph=True)
    assert_close(_results(module, run), _results(module, module), 1e-6)


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = fastlstm.LSTM(4, 6, peephole=True)
        self.cell = fastlstm.LSTMCell(6, 6)

    def forward(self, x, lengths):
        y, _ = self.lstm(x, lengths=lengths)
        return self.cell(y[-1])[0]


@pytest.mark.parametrize("duplicate", [lambda module: module, copy.copy, *DUPLICATES])
def test_symbolic_trace_records_the_modules(duplicate):
    model = duplicate(_Model())
    traced = torch.fx.symbolic_trace(model)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["lstm", "cell"]
    arguments = torch.randn(5, 3, 4), torch.tensor([5, 2, 5])
    torch.testing.assert_close(traced(*arguments), model(*arguments))
