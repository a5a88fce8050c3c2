"""Compare fastlstm.LSTM with nn.LSTM, and with ONNX Runtime where it is installed.

    python -m benchmarks.lstm [--shape T,B,I,H,L[,bi] ...] [--mode inference training]
        [--dtype float32 bfloat16 autocast] [--rounds 7] [--threads N] [--json FILE]

nn.LSTM runs on one thread and on all, and its better time counts. With --dtype autocast both run
under torch.autocast(bfloat16) on float32 weights. Results are compared before they are timed. The
contenders take turns in one process. A ratio is the median over the rounds; above 1 fastlstm is
faster. Training is a forward and a backward pass, counted as three times the operations of the
forward pass. "peak" is the share of the machine's peak of float32 multiply-adds in vector
registers, which is measured with every row; bfloat16 and AMX can exceed it. ONNX Runtime, whose
weights are constants, is compared with fastlstm.LSTM after freeze().
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks import common, onnx_runtime
from benchmarks.timing import median_ms, paired_with_torch, ratio
from fastlstm import _C

SHAPES = [
    "128,1,256,256,1",
    "1,1,512,512,1",
    "100,32,128,128,1",
    "100,32,256,256,1",
    "100,32,512,512,1",
    "50,64,1024,1024,1",
    "20,64,4096,2048,1",
    "20,80,4096,2048,2",
    "1000,8,128,128,1",
    "5000,4,64,64,1",
    "1000,1,512,512,2",
    "200,32,256,256,1,bi",
]
Results = list[Tensor]  # y, and in training the gradients of x and of every parameter


class Shape(NamedTuple):
    """The sizes of one row, as nn.LSTM names them."""

    T: int
    B: int
    I: int
    H: int
    L: int
    bidirectional: bool

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Parse "T,B,I,H,L" or "T,B,I,H,L,bi"."""
        T, B, I, H, L, *direction = text.split(",")
        return cls(int(T), int(B), int(I), int(H), int(L), direction == ["bi"])

    def module(self, kind: type[nn.RNNBase]) -> nn.RNNBase:
        """Create an LSTM of these sizes."""
        return kind(self.I, self.H, self.L, bidirectional=self.bidirectional)

    def gflop(self, train: bool) -> float:
        """Return the operations of all matrix products in 1e9; a multiply-add is two."""
        D = 2 if self.bidirectional else 1
        columns = sum((self.I if layer == 0 else D * self.H) + self.H for layer in range(self.L))
        return (3 if train else 1) * 8e-9 * self.T * self.B * D * self.H * columns


def run(module: nn.Module, x: Tensor, dy: Tensor, train: bool, autocast: bool) -> Results:
    """Call a module; with ``train`` also compute the gradients of x and of all parameters."""
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with torch.set_grad_enabled(train), context:
        y = module(x)[0]
        if not train:
            return [y]
        inputs = [x, *module.parameters()]
        return [y, *torch.autograd.grad(y, inputs, dy.to(y.dtype))]


def check(ours: Results, theirs: Results, exact: Results) -> None:
    """Raise AssertionError unless a module computes the same as nn.LSTM.

    The error of each result against nn.LSTM in float64 may be three times that of nn.LSTM in the
    dtype of the measurement, plus 16 epsilon for results where nn.LSTM happens to be exact.
    """
    for index, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        few = 16 * torch.finfo(b.dtype).eps
        size = c.norm().clamp_min(torch.finfo(torch.float64).tiny)  # dW_hh of a first step is 0
        mine, their = ((t.double() - c).norm() / size for t in (a, b))
        if not mine <= 3 * their + few:
            raise AssertionError(f"result {index}: error {mine:.1e}, nn.LSTM's {their:.1e}")


class Pair:
    """An nn.LSTM and a fastlstm.LSTM with the same weights, an input, and the exact results."""

    def __init__(self, shape: Shape, train: bool, dtype: str = "float32") -> None:
        self.train, self.autocast = train, dtype == "autocast"
        stored = torch.float32 if self.autocast else getattr(torch, dtype)
        self.theirs = shape.module(nn.LSTM)
        x = torch.randn(shape.T, shape.B, shape.I)
        self.dy = torch.randn(shape.T, shape.B, (2 if shape.bidirectional else 1) * shape.H)
        double = x.double().requires_grad_(train)
        self.exact = run(self.theirs.double(), double, self.dy, train, False)
        self.theirs = self.theirs.to(stored)
        self.x = x.to(stored).requires_grad_(train)
        self.result = self.call(self.theirs)
        self.ours = self.copy(shape)

    def copy(self, shape: Shape, backend: str = "auto") -> nn.RNNBase:
        """Create a fastlstm.LSTM with the same weights, and check that it computes the same."""
        ours = shape.module(fastlstm.LSTM)
        ours.backend = backend
        ours.to(self.x.dtype).load_state_dict(self.theirs.state_dict())
        check(self.call(ours), self.result, self.exact)
        return ours

    def call(self, module: nn.Module) -> Results:
        """Call :func:`run` on the input."""
        return run(module, self.x, self.dy, self.train, self.autocast)


def measure(shape: Shape, train: bool, dtype: str, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one row of the table."""
    pair = Pair(shape, train, dtype)
    calls: dict[str, Callable[[], object]] = {
        "fastlstm": lambda: pair.call(pair.ours),
        "nn.LSTM": lambda: pair.call(pair.theirs),
    }
    onnx = None
    if not train and dtype == "float32" and onnx_runtime.is_installed():
        onnx, x = onnx_runtime.Session(pair.theirs, threads), pair.x.numpy()
        onnx.open()
        check([torch.from_numpy(onnx(x))], pair.result, pair.exact)
        calls["ONNX Runtime"] = lambda: onnx(x)
        frozen = copy.deepcopy(pair.ours).freeze()  # as ONNX Runtime's weights are
        calls["frozen"] = lambda: pair.call(frozen)

    def before(name: str) -> None:
        if onnx:
            onnx.open() if name == "ONNX Runtime" else onnx.close()

    seconds, peer = paired_with_torch(calls, rounds, threads, before)
    before("")
    peak = _C.fma_flops("auto", threads) / 1e9
    gflops = shape.gflop(train) / statistics.median(seconds["fastlstm"])
    return {
        "shape": shape._asdict(),
        "mode": "training" if train else "inference",
        "dtype": dtype,
        "ms": {name: median_ms(s) for name, s in seconds.items()},
        "nn.LSTM ms": median_ms(seconds[peer]),
        "nn.LSTM / fastlstm": ratio(seconds, peer, "fastlstm"),
        "gflops": gflops,
        "fma_peak_gflops": peak,
        "of_peak": gflops / peak,
        "ONNX Runtime / frozen": (
            ratio(seconds, "ONNX Runtime", "frozen") if "ONNX Runtime" in seconds else None
        ),
    }


def line(shape: str, row: dict[str, Any]) -> str:
    """Format a row of the table."""
    text = f"{shape:<20}{row['mode']:<10}{row['dtype']:<9}{row['ms']['fastlstm']:>10.3f}"
    text += f"{row['nn.LSTM ms']:>11.3f}{row['nn.LSTM / fastlstm']:>7.2f}"
    text += f"{row['gflops']:>8.0f}{row['of_peak']:>6.0%}"
    if row["ONNX Runtime / frozen"] is not None:
        text += f"{row['ms']['frozen']:>10.3f}{row['ms']['ONNX Runtime']:>10.3f}"
        text += f"{row['ONNX Runtime / frozen']:>7.2f}"
    return text


def main() -> None:
    """Parse arguments, measure, print a table, and write JSON if asked to."""
    parser = common.parser(__doc__)
    parser.add_argument("--shape", nargs="+", default=SHAPES, help="T,B,I,H,L or T,B,I,H,L,bi")
    parser.add_argument("--mode", nargs="+", default=["inference", "training"])
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    arguments = parser.parse_args()
    machine = common.begin(arguments, onnxruntime=onnx_runtime.version())
    print(
        f"{'T,B,I,H,L':<20}{'':<10}{'':<9}{'fastlstm ms':>11}{'nn.LSTM ms':>11}{'ratio':>6}", end=""
    )
    print(f"{'GFLOP/s':>8}{'peak':>6}{'frozen ms':>10}{'ONNX ms':>10}{'ratio':>7}")
    rows = []
    for shape in arguments.shape:
        for mode in arguments.mode:
            for dtype in arguments.dtype:
                sizes, train = Shape.parse(shape), mode == "training"
                row = measure(sizes, train, dtype, arguments.rounds, arguments.threads)
                rows.append(row)
                print(line(shape, row), flush=True)
                common.write(arguments.json, machine, rows)


if __name__ == "__main__":
    main()
