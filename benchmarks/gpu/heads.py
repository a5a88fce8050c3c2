"""Compare LSTM(num_heads=n) with FlashRNN, whose recurrence has the same heads.

    python -m benchmarks.gpu.heads --out FOLDER [--minutes 4] [--device cpu --small]

FlashRNN (https://github.com/NX-AI/flashrnn, ``pip install flashrnn``) takes the projected input, so
its contender has a product of torch before it. T = 512 and I = H; heads of 64 and 128 units; the
forward pass alone and with the backward pass. Before the timing, results are compared with those of
the reference in float32: a contender that errs by more than 5% in bfloat16, 1e-4 in float32,
relative to the largest number, is not timed. Times are microseconds per step, by paired rounds of
CUDA events; ``ratio`` is the time of the fastest FlashRNN over that of the contender.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastlstm
from benchmarks.gpu import record
from benchmarks.gpu.compare import errors, outputs
from benchmarks.timing import median_ms, paired, ratio

_BOX_S = 90  # seconds that a row may take; FlashRNN compiles its kernels at the first call
_TOLERANCE = {"bfloat16": 5e-2, "float32": 1e-4}


class Cell(NamedTuple):
    """The sizes of one row of the table."""

    precision: str
    H: int
    num_heads: int
    B: int
    train: bool


class FlashRNN(nn.Module):
    """FlashRNN's LSTM with the parameters of an ``LSTM(num_heads=n, batch_first=False)``.

    Args:
        like: the module whose parameters it has.
        backend: of FlashRNN: "cuda_fused", "cuda", "triton_fused" or "vanilla", in plain torch.
    """

    def __init__(self, like: fastlstm.LSTM, backend: str) -> None:
        super().__init__()
        from flashrnn.flashrnn import flashrnn

        self.call, self.backend = flashrnn, backend
        self.num_heads = like.num_heads
        for name, parameter in like.named_parameters():
            self.register_parameter(name, nn.Parameter(parameter.detach().clone()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y (T, B, H) of x (T, B, I), and FlashRNN's last states."""
        T, B, _ = x.shape
        width = self.weight_hh_l0.shape[1]
        bias = self.bias_ih_l0 + self.bias_hh_l0
        igates = nn.functional.linear(x.transpose(0, 1), self.weight_ih_l0)
        states, last = self.call(
            igates.reshape(B, T, 4, self.num_heads, width),
            self.weight_hh_l0.reshape(4, self.num_heads, width, width),
            bias.reshape(4, self.num_heads, width),
            function="lstm",
            backend=self.backend,
            dtype=str(x.dtype).removeprefix("torch."),
        )
        return states[0].reshape(B, T, -1).transpose(0, 1), last


def cells(small: bool) -> Iterator[Cell]:
    """Yield the sizes to measure, in order."""
    if small:
        yield from (Cell("float32", 8, 2, 8, train) for train in (False, True))
        return
    for precision in ("bfloat16", "float32"):
        for H, num_heads in ((1024, 16), (1024, 8), (768, 12), (2048, 16)):
            for B in (16, 64, 1):
                for train in (True, False):
                    yield Cell(precision, H, num_heads, B, train)


def measure(cell: Cell, T: int, device: str) -> dict[str, Any]:
    """Measure one row: us/step, ratio and error of each contender, or why it was not timed."""
    dtype = getattr(torch, cell.precision)
    sizes: dict[str, Any] = {"num_heads": cell.num_heads, "device": device}
    torch.manual_seed(0)
    exact = fastlstm.LSTM(cell.H, cell.H, backend="reference", **sizes)
    x32 = torch.randn(T, cell.B, cell.H, device=device).requires_grad_(cell.train)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    truth = outputs(exact, x32, cell.train)

    x = x32.detach().to(dtype).requires_grad_(cell.train)
    ours, theirs = (
        (("cuda", "triton"), ("cuda_fused", "triton_fused"))
        if device == "cuda"
        else (("cpu",), ("vanilla",))
    )
    make: dict[str, Callable[[], nn.Module]] = {
        backend: lambda backend=backend: fastlstm.LSTM(
            cell.H, cell.H, dtype=dtype, backend=backend, **sizes
        )
        for backend in ours
    }
    for backend in theirs:
        make[f"FlashRNN {backend}"] = lambda backend=backend: FlashRNN(exact, backend).to(dtype)
    row: dict[str, Any] = {**cell._asdict(), "T": T}
    contenders: dict[str, Callable[[], object]] = {}
    for name, build in make.items():
        try:
            module = build()
            module.load_state_dict(exact.state_dict())
            error = errors(outputs(module, x, cell.train), truth)
        except Exception as refusal:  # FlashRNN's builds and limits raise many types
            row[f"{name} refused"] = (str(refusal).splitlines() or [type(refusal).__name__])[0]
            continue
        row[f"{name} error"] = error
        if error > _TOLERANCE[cell.precision]:
            row[f"{name} refused"] = f"errs by {error:.1e}"
            continue
        contenders[name] = lambda module=module: outputs(module, x, cell.train)
    with torch.set_grad_enabled(cell.train):
        seconds = paired(contenders, record.ROUNDS, device=device)
    for name, samples in seconds.items():
        row[f"{name} us"] = 1e3 * median_ms(samples) / T
    flash = [name for name in seconds if name.startswith("FlashRNN")]
    if flash:
        fastest = min(flash, key=lambda name: median_ms(seconds[name]))
        for name in set(seconds) - set(flash):
            row[f"{name} ratio"] = ratio(seconds, fastest, name)
    return row


def row(device: str, cell: list[Any], T: int) -> dict[str, Any]:
    """Measure one row; a task of :mod:`benchmarks.gpu.worker`."""
    return {"row": measure(Cell(*cell), T, device)}


def main() -> None:
    arguments = record.parser(__doc__, minutes=4).parse_args()
    results, worker = record.Results(arguments, "heads", resume=True), record.worker(arguments)
    done = {tuple(row[name] for name in Cell._fields) for row in results.rows}
    for cell in cells(arguments.small):
        if tuple(cell) in done:
            continue
        if results.seconds_left < 0:
            break
        how = {"cell": list(cell), "T": 8 if arguments.small else 512}
        answer = worker.ask("benchmarks.gpu.heads:row", {"device": arguments.device, **how}, _BOX_S)
        results.add(**answer.get("row", {**cell._asdict(), "error": answer.get("ended")}))
    worker.close()


if __name__ == "__main__":
    main()
