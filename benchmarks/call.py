"""Measure the time of one call of a small LSTM, in microseconds.

    python -m benchmarks.call [--hidden 4 16 64 128 256 512 1024] [--batch 1 8]
        [--mode inference training] [--sequence T,B,H ...] [--compile]
        [--rounds 7] [--threads N] [--json FILE]

A call is one step with I = H, so the overhead dominates; ``--sequence`` adds calls of T steps to
training, which is a forward and a backward pass. Every call is given h and c. The columns:

    LSTM, Cell                  fastlstm.LSTM and fastlstm.LSTMCell
    frozen                      fastlstm.LSTM after freeze()
    float32, bfloat16, int8     fastlstm.Stream with weights of this type: its method step
    nn.LSTM, nn.LSTMCell        torch's modules, on one thread or all: the better time
    ONNX, IoBinding             ONNX Runtime, if installed: run and run_with_iobinding, on one
                                thread or all: the better time
    c.LSTM, c.nn.LSTMCell       with --compile: torch.compile of fastlstm.LSTM and nn.LSTMCell

Results are compared before they are timed. The contenders take turns in one process; a time is the
median over the rounds, "spread" the interquartile range as a share of it. "nn / this" is how many
times as long the module of torch of the same kind takes; for a Stream it is the faster of both.
"ONNX / this" is the same with the faster of run and IoBinding. Below 1 torch or ONNX Runtime is
faster. fastlstm runs on all threads. If times of many milliseconds appear, other programs use the
cores, and OpenMP's threads wait for each other; ``--threads 1`` can be measured nevertheless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks import common, onnx_runtime
from benchmarks.lstm import Results, check
from benchmarks.timing import (
    ONE_THREAD,
    better_threads,
    fastest_of_torch,
    median_ms,
    paired_with_torch,
    ratio,
    spread,
)

HIDDEN = [4, 16, 64, 128, 256, 512, 1024]
SEQUENCES = ["16,1,64", "16,4,32", "100,1,64"]
STREAMS = {"float32": 1e-5, "bfloat16": 0.02, "int8": 0.05}  # the largest relative error
ONNX = ("ONNX", "IoBinding")
COLUMNS = [
    *("LSTM", "frozen", "Cell", *STREAMS),
    *("nn.LSTM", "nn.LSTMCell", *ONNX, "c.LSTM", "c.nn.LSTMCell"),
]
PEERS = {
    "LSTM": "nn.LSTM",
    "frozen": "nn.LSTM",
    "c.LSTM": "nn.LSTM",
    "Cell": "nn.LSTMCell",
    "c.nn.LSTMCell": "nn.LSTMCell",
}
Calls = dict[str, Callable[[], object]]


class Inputs(NamedTuple):
    """x and dy (T, B, H), h and c (1, B, H), and whether gradients are computed."""

    x: Tensor
    h: Tensor
    c: Tensor
    dy: Tensor
    train: bool

    @classmethod
    def random(cls, T: int, B: int, H: int, train: bool) -> Inputs:
        """Draw all tensors."""
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
    y = module(inputs.x, (inputs.h, inputs.c))[0]
    return [y, *(call(module, inputs)() if inputs.train else [])]


def modules(H: int, T: int, train: bool, compiled: bool) -> dict[str, Any]:
    """Return every module that is measured, with the same weights."""
    theirs: dict[str, Any] = {"nn.LSTM": nn.LSTM(H, H)}
    ours: dict[str, Any] = {"LSTM": fastlstm.LSTM(H, H)}
    if not train:
        ours["frozen"] = fastlstm.LSTM(H, H)
    if T == 1:
        ours["Cell"], theirs["nn.LSTMCell"] = fastlstm.LSTMCell(H, H), nn.LSTMCell(H, H)
    if compiled:
        torch.compiler.reset()  # the sizes before would make this one's dynamic
        ours["c.LSTM"] = fastlstm.LSTM(H, H)
        if T == 1:
            theirs["c.nn.LSTMCell"] = nn.LSTMCell(H, H)
    weights = theirs["nn.LSTM"].state_dict()
    of_cell = {name.removesuffix("_l0"): weight for name, weight in weights.items()}
    for name, module in (every := ours | theirs).items():
        module.load_state_dict(of_cell if "Cell" in name else weights)
        if name.startswith("c."):
            every[name] = torch.compile(module, dynamic=False)
    if not train:
        every["frozen"].freeze()
    return every


def module_calls(every: Mapping[str, Any], inputs: Inputs) -> Calls:
    """Return the functions that call a module, after a check of the results of each."""
    H = inputs.h.shape[-1]
    double = nn.LSTM(H, H).double()
    double.load_state_dict(every["nn.LSTM"].state_dict())
    exact, theirs = (
        results(double, inputs.convert(Tensor.double)),
        results(every["nn.LSTM"], inputs),
    )
    calls: Calls = {}
    for name, module in every.items():
        own = inputs.convert(lambda t: t[0]) if "Cell" in name else inputs
        mine = [a.view_as(b) for a, b in zip(results(module, own), theirs, strict=True)]
        check(mine, theirs, exact)
        calls[name] = call(module, own)
    return calls


def stream_calls(lstm: Any, inputs: Inputs) -> Calls:
    """Return the functions that step a Stream, after a check of the results of each."""
    expected, calls = lstm(inputs.x, (inputs.h, inputs.c))[0], {}
    for dtype, most in STREAMS.items():
        stream = lstm.stream(inputs.x.shape[1], dtype)
        stream.state = inputs.h, inputs.c
        error = (stream.run(inputs.x) - expected).norm() / expected.norm()
        if not error <= most:
            raise AssertionError(f"Stream, {dtype}: relative error {error:.1e}, at most {most}")
        calls[dtype] = _stream_call(stream, inputs.x)
    return calls


def _stream_call(stream: fastlstm.Stream, x: Tensor) -> Callable[[], object]:
    if len(x) > 1:
        return lambda: stream.run(x)
    step = x[0]
    return lambda: stream.step(step)


def onnx_sessions(
    lstm: nn.LSTM, inputs: Inputs, threads: int
) -> dict[str, onnx_runtime.StateSession]:
    """Return closed sessions of ONNX Runtime, after a check of the results of each."""
    arrays = {name: getattr(inputs, name).numpy() for name in ("x", "h", "c")}
    expected, sessions = lstm(inputs.x, (inputs.h, inputs.c))[0], {}
    for name in ONNX:
        for count in {1, threads}:
            session = onnx_runtime.StateSession(lstm, count, arrays, name == "IoBinding")
            session.open()
            torch.testing.assert_close(torch.from_numpy(session.result()), expected)
            session.close()
            sessions[name + (ONE_THREAD if count == 1 else "")] = session
    return sessions


def measure(inputs: Inputs, compiled: bool, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one row of the table."""
    train, (T, B, H) = inputs.train, inputs.x.shape
    every = modules(H, T, train, compiled)
    sessions: dict[str, onnx_runtime.StateSession] = {}
    is_open: list[onnx_runtime.StateSession] = []
    with torch.set_grad_enabled(train):
        calls = module_calls(every, inputs)
        if not train:
            calls |= stream_calls(every["LSTM"], inputs)
            if onnx_runtime.is_installed():
                sessions = onnx_sessions(every["nn.LSTM"], inputs, threads)
                calls |= {name: session.step for name, session in sessions.items()}

        def before(name: str) -> None:
            while is_open:
                is_open.pop().close()
            if name in sessions:
                sessions[name].open()
                is_open.append(sessions[name])

        seconds, _ = paired_with_torch(calls, rounds, threads, before)
        before("")
    return {"T": T, "B": B, "H": H, "mode": "training" if train else "inference"} | row(seconds)


def row(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return times, spreads and ratios, each by column."""
    better = better_threads(seconds)
    best = {name: seconds[better[name]] for name in COLUMNS if name in better}
    torch_fastest = fastest_of_torch(best)
    onnx = min(
        (name for name in ONNX if name in best), key=lambda n: median_ms(best[n]), default=""
    )
    return {
        "us": {name: 1e3 * median_ms(times) for name, times in best.items()},
        "spread": {name: spread(times) for name, times in best.items()},
        "nn / this": {
            name: ratio(best, PEERS.get(name, torch_fastest), name)
            for name in best
            if name in PEERS or name in STREAMS
        },
        "ONNX / this": {
            name: ratio(best, onnx, name) for name in best if onnx and name not in ONNX
        },
        "threads": {name: 1 if ONE_THREAD in better[name] else "all" for name in best},
    }


def lines(row: Mapping[str, Any]) -> str:
    """Format a row of the table: a line of times, and below it spreads and ratios."""
    sizes = f"{row['T']},{row['B']},{row['H']}"
    text = f"{sizes:<10}{'us':>12}" + "".join(
        f"{us:>{_width(n)}.2f}" for n, us in row["us"].items()
    )
    for key, form in (("spread", ".0%"), ("nn / this", ".2f"), ("ONNX / this", ".2f")):
        cells = (format(row[key][name], form) if name in row[key] else "" for name in row["us"])
        if row[key]:
            line = "".join(f"{c:>{_width(n)}}" for n, c in zip(row["us"], cells, strict=True))
            text += f"\n{key:>22}{line.rstrip()}"
    return text


def _width(name: str) -> int:
    return max(9, len(name) + 2)


def main() -> None:
    """Parse arguments, measure, print a table, and write JSON if asked to."""
    parser = common.parser(__doc__)
    parser.add_argument("--hidden", nargs="+", type=int, default=HIDDEN, help="H = I")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8], help="B")
    parser.add_argument("--mode", nargs="+", default=["inference", "training"])
    parser.add_argument("--sequence", nargs="*", default=SEQUENCES, help="T,B,H, in training")
    parser.add_argument("--compile", action="store_true", help="torch.compile too; takes minutes")
    arguments = parser.parse_args()
    machine = common.begin(arguments, onnxruntime=onnx_runtime.version())
    rows: list[dict[str, Any]] = []
    for mode in arguments.mode:
        train = mode == "training"
        cases = [[1, B, H] for B in arguments.batch for H in arguments.hidden]
        if train:
            cases += [[int(size) for size in text.split(",")] for text in arguments.sequence]
        columns: list[str] = []
        for T, B, H in cases:
            inputs = Inputs.random(T, B, H, train)
            rows.append(measure(inputs, arguments.compile, arguments.rounds, arguments.threads))
            if columns != list(rows[-1]["us"]):
                columns = list(rows[-1]["us"])
                print(f"\n{mode}\n{'T,B,H':<22}" + "".join(f"{n:>{_width(n)}}" for n in columns))
            print(lines(rows[-1]), flush=True)
            common.write(arguments.json, machine, rows)


if __name__ == "__main__":
    main()
