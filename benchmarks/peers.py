"""What fastlstm.LSTM is compared with: a function that makes a contender, for each peer.

To add a peer, write such a function, give it a line in ``PEERS`` and a word in
``fastlstm_bench.PEERS``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import onnx_runtime
from .contests import Contender, Results
from .lstm import Pair


class Peer(NamedTuple):
    """How to make a contender, the packages it needs, and what it can do."""

    make: Callable[[Pair, int], Contender]
    packages: tuple[str, ...] = ()
    train: bool = True
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16", "autocast")
    device: str = ""  # the only one; empty: both

    def why_not(self, train: bool, dtype: str, device: str) -> str | None:
        """Return why the peer cannot take part, or None."""
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            return f"{' and '.join(missing)} not installed"
        if train and not self.train:
            return "inference only"
        if dtype not in self.dtypes:
            return f"not in {dtype}"
        return f"{self.device} only" if self.device not in ("", device) else None


def torch_lstm(pair: Pair, threads: int) -> Contender:
    """Return nn.LSTM itself, on one thread and on all."""
    counts = (1, threads) if pair.x.device.type == "cpu" else ()
    return Contender(lambda: pair.call(pair.theirs), threads=counts)


def _arrays(pair: Pair, session: Any, threads: int) -> Contender:
    """Return a session that maps numpy arrays to numpy arrays as a contender."""
    x = pair.x.detach().numpy()

    def results() -> Results:
        return [torch.from_numpy(np.array(session(x)))]

    return Contender(
        lambda: session(x),
        lambda: pair.check(results),
        threads=(1, threads),
        start=session.open,
        stop=session.close,
    )


def onnxruntime(pair: Pair, threads: int) -> Contender:
    """Return ONNX Runtime's LSTM nodes."""
    return _arrays(pair, onnx_runtime.Session(pair.theirs), threads)


class _OpenVINO:
    """An nn.LSTM in OpenVINO: a function from x (T, B, I) to y (T, B, D * H)."""

    def __init__(self, module: nn.LSTM) -> None:
        self._graph = onnx_runtime.graph(module)
        self._request: Any = None

    def open(self, threads: int) -> None:
        """Compile the model and start the threads."""
        import openvino

        core = openvino.Core()
        options = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        model = core.read_model(model=self._graph, weights=b"")
        self._request = core.compile_model(model, "CPU", options).create_infer_request()

    def close(self) -> None:
        """End the threads."""
        self._request = None

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self._request.infer([x], share_inputs=True, share_outputs=True)[0]


def openvino(pair: Pair, threads: int) -> Contender:
    """Return OpenVINO, with its latency hint, in float32."""
    return _arrays(pair, _OpenVINO(pair.theirs), threads)


def cell(
    igates: Tensor, h: Tensor, c: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute a step of an LSTM from the projected input."""
    i, f, g, o = (igates + F.linear(h, weight, bias)).chunk(4, dim=1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


class _Loop(nn.Module):
    """The nn.LSTM of a pair as a loop over the steps in PyTorch; its input is projected first."""

    def __init__(self, lstm: nn.LSTM, step: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.lstm, self.step = lstm, step

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """Map x (T, B, I) to y (T, B, D * H)."""
        for layer in range(self.lstm.num_layers):
            suffixes = ("", "_reverse")[: 2 if self.lstm.bidirectional else 1]
            x = torch.cat([self._direction(x, f"_l{layer}{s}", bool(s)) for s in suffixes], 2)
        return x, None

    def _direction(self, x: Tensor, suffix: str, reverse: bool) -> Tensor:
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        w_ih, w_hh, b_ih, b_hh = (getattr(self.lstm, name + suffix) for name in names)
        igates = F.linear(x, w_ih, b_ih)
        h = c = igates.new_zeros(x.shape[1], self.lstm.hidden_size)
        y = []
        for step in reversed(igates.unbind()) if reverse else igates.unbind():
            h, c = self.step(step, h, c, w_hh, b_hh)
            y.append(h)
        return torch.stack(y[::-1] if reverse else y)


def loop(pair: Pair, threads: int) -> Contender:
    """Return a loop over the steps in PyTorch, on one thread and on all."""
    return pair.contender(_Loop(pair.theirs, cell))._replace(threads=(1, threads))


def compiled_loop(pair: Pair, threads: int) -> Contender:
    """Return a loop over the steps whose step is compiled by torch.compile."""
    torch.compiler.reset()  # the sizes before would make this one's dynamic
    module = _Loop(pair.theirs, torch.compile(cell, dynamic=False))
    return pair.contender(module)._replace(threads=(1, threads))


def jax(pair: Pair, threads: int) -> Contender:
    """Return jax.lax.scan over the steps, compiled by XLA; JAX chooses its threads."""
    from .jax_lstm import Scan

    scan = Scan(pair.theirs, pair.x, pair.dy, pair.train)
    return Contender(scan, lambda: pair.check(scan.results))


PEERS = {
    "nn.LSTM": Peer(torch_lstm),
    "onnxruntime": Peer(onnxruntime, ("onnx", "onnxruntime"), False, ("float32",), "cpu"),
    "openvino": Peer(openvino, ("onnx", "openvino"), False, ("float32",), "cpu"),
    "loop": Peer(loop),
    "compiled-loop": Peer(compiled_loop),
    "jax": Peer(jax, ("jax",), dtypes=("float32",), device="cpu"),
}
DEFAULT = ("nn.LSTM", "onnxruntime")


def chosen(words: list[str] | None, train: bool, dtype: str, device: str) -> list[str]:
    """Return the peers that take part: those of ``--peer`` that can, by default ``DEFAULT``."""
    names = words or DEFAULT
    return [name for name in names if not PEERS[name].why_not(train, dtype, device)]


def absent(name: str, options: argparse.Namespace) -> str | None:
    """Return why a peer takes part in nothing that the options ask for, or None."""
    modes = options.mode or ("inference", "training")
    reasons = [
        PEERS[name].why_not(mode == "training", dtype, options.device)
        for mode in modes
        for dtype in options.dtype
    ]
    return reasons[0] if all(reasons) else None
