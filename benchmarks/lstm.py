"""Contests of fastlstm.LSTM with nn.LSTM and other peers at one shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

import fastlstm

from .contests import Contender, Contest, Results, relative_errors
from .shapes import Shape

CONSTANT = ("onnxruntime", "openvino")  # peers whose weights are constants: compared with "frozen"


def run(module: nn.Module, x: Tensor, dy: Tensor, train: bool, autocast: bool = False) -> Results:
    """Call a module; with ``train`` also compute the gradients of x and of all parameters."""
    if autocast:
        with torch.autocast(x.device.type, torch.bfloat16):
            y = module(x)[0]
    else:
        y = module(x)[0]
    if not train:
        return [y]
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy.to(y.dtype))]


@lru_cache(maxsize=1)  # all dtypes of a shape share it: float64 takes longest
def drawn(shape: Shape, train: bool) -> tuple[dict[str, Tensor], Tensor, Tensor, Results]:
    """Draw weights, x and dy; and return the results in float64."""
    torch.manual_seed(0)
    module = shape.module(nn.LSTM)
    weights = {name: weight.clone() for name, weight in module.state_dict().items()}
    x = torch.randn(shape.T, shape.B, shape.I)
    dy = torch.randn(shape.T, shape.B, shape.D * shape.H)
    with torch.set_grad_enabled(train):
        exact = run(module.double(), x.double().requires_grad_(train), dy, train)
    return weights, x, dy, [result.detach() for result in exact]


class Pair:
    """An nn.LSTM, copies of it as a fastlstm.LSTM, an input, and the exact results.

    Args:
        shape: the sizes.
        train: whether a call is a forward and a backward pass.
        dtype: of weights and input; "autocast" is float32 under torch.autocast(bfloat16).
        device: "cpu" or "cuda".
    """

    def __init__(
        self, shape: Shape, train: bool, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        self.shape, self.train, self.autocast = shape, train, dtype == "autocast"
        stored = torch.float32 if self.autocast else getattr(torch, dtype)
        weights, x, dy, self.exact = drawn(shape, train)
        self.theirs = shape.module(nn.LSTM)
        self.theirs.load_state_dict(weights)
        self.theirs.to(device, stored)
        self.x = x.detach().to(device, stored).requires_grad_(train)
        self.dy = dy.to(device)
        with torch.set_grad_enabled(train):
            self.result = self.call(self.theirs)

    def copy(self, backend: str = "auto") -> fastlstm.LSTM:
        """Create a fastlstm.LSTM with the same weights; the backend "frozen" is "auto", frozen."""
        ours = self.shape.module(fastlstm.LSTM)
        assert isinstance(ours, fastlstm.LSTM)
        ours.backend = "auto" if backend == "frozen" else backend
        ours.to(self.x.device, self.x.dtype).load_state_dict(self.theirs.state_dict())
        return ours.freeze() if backend == "frozen" else ours

    def call(self, module: nn.Module) -> Results:
        """Call :func:`run` on the input."""
        return run(module, self.x, self.dy, self.train, self.autocast)

    def check(self, results: Callable[[], Results]) -> tuple[float, float]:
        """Return the errors of results and of nn.LSTM; see ``relative_errors``."""
        return relative_errors(results(), self.result, self.exact)

    def contender(self, module: nn.Module, peers: tuple[str, ...] = ()) -> Contender:
        """Return a module as a contender."""
        return Contender(
            lambda: self.call(module), lambda: self.check(lambda: self.call(module)), peers
        )


def contest(pair: Pair, backends: Sequence[str], peers: dict[str, Contender]) -> Contest:
    """Return a contest of some of our backends with some peers.

    A backend that refuses the call raises ValueError, which says why.
    """
    contenders: dict[str, Contender] = {}
    for backend in backends:
        with_frozen = "frozen" in backends and backend != "frozen"
        of_backend = [p for p in peers if not (with_frozen and p in CONSTANT)]
        if backend == "frozen":
            of_backend.sort(key=lambda peer: peer not in CONSTANT)
        contenders[backend] = pair.contender(pair.copy(backend), tuple(of_backend))
    size = pair.x.element_size()
    shape, train = pair.shape, pair.train
    flop, size = shape.flop(train), shape.bytes(train, size)
    return Contest(contenders | peers, flop, size, grad=train)
