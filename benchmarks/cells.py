"""The suite "cell": one step a call of a small LSTM, and short training sequences.

A call is one step with I = H, so the overhead dominates. Every call is given h and c. Ours are
``LSTM``, ``frozen`` (after ``freeze()``), ``LSTMCell``, and ``Stream.step`` with weights in
float32, bfloat16 and int8. ONNX Runtime is called by ``run`` and by ``run_with_iobinding``, whose
buffers are bound once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastlstm

from . import onnx_runtime
from .cases import Case, case, ways
from .contests import Contender, Contest, Effort, Results, relative_errors
from .peers import chosen
from .shapes import Shape, parse

HIDDEN = (4, 64, 256, 512, 1024, 2048)
SEQUENCES = ("16,1,64,64", "16,4,32,32", "100,1,64,64")  # in training
STREAMS = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05}  # the largest relative error
MODULES = ("nn.LSTM", "nn.LSTMCell")
ONNX = ("ONNX IoBinding", "ONNX run")


class Inputs(NamedTuple):
    """x and dy (T, B, H), h and c (1, B, H), and whether gradients are computed."""

    x: Tensor
    h: Tensor
    c: Tensor
    dy: Tensor
    train: bool

    @classmethod
    def random(cls, shape: Shape, train: bool) -> Inputs:
        """Draw all tensors."""
        T, B, H = shape.T, shape.B, shape.H
        h, c = torch.rand(2, 1, B, H) - 0.5
        return cls(torch.randn(T, B, H).requires_grad_(train), h, c, torch.randn(T, B, H), train)

    def convert(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Return what ``change`` makes of the tensors."""
        x, h, c, dy = (change(tensor.detach()) for tensor in self[:4])
        return Inputs(x.requires_grad_(self.train), h, c, dy, self.train)


def call(module: nn.Module, inputs: Inputs) -> Callable[[], Any]:
    """Return the function that is timed: the module's call, in training with all gradients."""
    x, state, dy = inputs.x, (inputs.h, inputs.c), inputs.dy
    if not inputs.train:
        return lambda: module(x, state)
    wanted = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x, state)[0], wanted, dy)


def results(module: nn.Module, inputs: Inputs) -> Results:
    """Return y, and in training the gradients of x and of all parameters."""
    with torch.set_grad_enabled(inputs.train):
        y = module(inputs.x, (inputs.h, inputs.c))[0]
        return [y, *(call(module, inputs)() if inputs.train else [])]


def modules(H: int, T: int, train: bool, compiled: bool) -> dict[str, Any]:
    """Return every module that is measured, with the same weights."""
    every: dict[str, Any] = {"nn.LSTM": nn.LSTM(H, H), "LSTM": fastlstm.LSTM(H, H)}
    if T == 1:
        every |= {"nn.LSTMCell": nn.LSTMCell(H, H), "LSTMCell": fastlstm.LSTMCell(H, H)}
        if compiled:
            every["compiled nn.LSTMCell"] = nn.LSTMCell(H, H)
    if not train:
        every["frozen"] = fastlstm.LSTM(H, H)
    weights = every["nn.LSTM"].state_dict()
    of_cell = {name.removesuffix("_l0"): weight for name, weight in weights.items()}
    for name, module in every.items():
        module.load_state_dict(of_cell if "Cell" in name else weights)
    if not train:
        every["frozen"].freeze()
    if T == 1 and compiled:
        torch.compiler.reset()  # the sizes before would make this one's dynamic
        every["compiled nn.LSTMCell"] = torch.compile(every["compiled nn.LSTMCell"], dynamic=False)
    return every


def contest(shape: Shape, train: bool, names: Sequence[str], effort: Effort) -> Contest:
    """Return the contest of one step, or in training of a sequence."""
    inputs = Inputs.random(shape, train)
    every = modules(shape.H, shape.T, train, "compiled-loop" in names)
    double = nn.LSTM(shape.H, shape.H).double()
    double.load_state_dict(every["nn.LSTM"].state_dict())
    exact = results(double, inputs.convert(Tensor.double))
    theirs = results(every["nn.LSTM"], inputs)
    both = (1, effort.threads)

    def of_module(name: str, peers: tuple[str, ...]) -> Contender:
        own = inputs.convert(lambda t: t[0]) if "Cell" in name else inputs

        def check() -> tuple[float, float]:
            found = zip(results(every[name], own), theirs, strict=True)
            return relative_errors([a.view_as(b) for a, b in found], theirs, exact)

        is_peer = "nn." in name
        return Contender(call(every[name], own), check, peers, both if is_peer else ())

    runtimes = ONNX if "onnxruntime" in names else ()
    kinds = {name: [other for other in every if name in other] for name in MODULES}
    found: dict[str, Contender] = {}
    for name in every:
        kind = kinds["nn.LSTMCell" if "Cell" in name else "nn.LSTM"]
        found[name] = of_module(name, () if "nn." in name else (kind[0], *kind[1:], *runtimes))
    if not train:
        found |= _streams(every["LSTM"], inputs, (*found, *runtimes))
    for name in runtimes:
        found[name] = _session(every["nn.LSTM"], inputs, name)._replace(threads=both)
    return Contest(found, grad=train)


def _streams(lstm: fastlstm.LSTM, inputs: Inputs, others: Sequence[str]) -> dict[str, Contender]:
    """Return the contenders that step a Stream."""
    peers = tuple(name for name in (*MODULES, *ONNX) if name in others)
    expected = [lstm(inputs.x, (inputs.h, inputs.c))[0].detach()]

    def of_dtype(dtype: str, limit: float) -> Contender:
        stream = lstm.stream(inputs.x.shape[1], dtype)
        step = inputs.x[0]

        def check() -> tuple[float, float]:
            stream.state = inputs.h, inputs.c
            exact = [tensor.double() for tensor in expected]
            return relative_errors([stream.run(inputs.x)], expected, exact, limit)

        return Contender(lambda: stream.step(step), check, peers)

    return {f"Stream {dtype}": of_dtype(dtype, limit) for dtype, limit in STREAMS.items()}


def _session(lstm: nn.LSTM, inputs: Inputs, name: str) -> Contender:
    arrays = {key: getattr(inputs, key).detach().numpy() for key in ("x", "h", "c")}
    session = onnx_runtime.StateSession(lstm, arrays, name == "ONNX IoBinding")
    expected = [lstm(inputs.x, (inputs.h, inputs.c))[0].detach()]

    def check() -> tuple[float, float]:
        exact = [tensor.double() for tensor in expected]
        return relative_errors([torch.from_numpy(session.result())], expected, exact, 1e-5)

    return Contender(session.step, check, start=session.open, stop=session.close)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases of the suite; ``--shape`` replaces the hidden sizes."""
    for way in ways(options, ["float32"]):
        train = way["mode"] == "training"
        texts = [f"1,1,{H},{H}" for H in HIDDEN] + (list(SEQUENCES) if train else [])
        for text in options.shape or texts:
            shape = parse(text)
            ours = ["LSTM"] + ["LSTMCell"] * (shape.T == 1)
            if not train:
                ours = [*ours, "frozen", *(f"Stream {dtype}" for dtype in STREAMS)]
            names = chosen(options.peer, train, "float32", options.device)
            how = shape, train, names

            def build(effort: Effort, how: tuple[Shape, bool, list[str]] = how) -> Contest:
                return contest(*how, effort)

            yield case("cell", {**shape.params(), **way}, ours, build)
