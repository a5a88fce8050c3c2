"""Compare every backend with nn.LSTM (cuDNN), and with the modelled least time of a step.

    python -m benchmarks.gpu.compare --out FOLDER [--minutes 9] [--device cpu --small]
    python -m benchmarks.gpu.compare --out FOLDER --plot       # draw the rows in FOLDER

T = 512 and I = H; all combinations of H, B, layers, directions and precision, for the forward pass
alone and with the backward pass, the most important first. Another run continues where the last one
stopped. The output and gradients of each contender are compared with those of nn.LSTM in float32
before the timing; a contender whose error is more than four times that of nn.LSTM in the same
precision is not timed. A row that hangs or crashes ends only the process that measures it. Times
are microseconds per step, by paired rounds of CUDA events. ``ratio`` is the time of nn.LSTM over
that of the contender, and ``floor`` the modelled least time over it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

import fastlstm
from benchmarks.gpu import record
from benchmarks.timing import median_ms, paired, ratio

# Modelled time of a step in us, (forward, backward) by (H, B), in bfloat16 with W_hh on the chip:
# the largest of the times of matrix products, shared memory and L2 at the peak rates of an H100.
_FLOOR = {
    (256, 64): (0.2, 0.4),
    (512, 64): (0.5, 0.9),
    (1024, 1): (0.6, 0.9),
    (1024, 16): (0.8, 1.1),
    (1024, 64): (1.9, 2.3),
    (1024, 128): (3.5, 4.3),
    (2048, 1): (1.5, 2.1),
    (2048, 16): (2.0, 3.1),
    (2048, 64): (6.9, 12.0),
    (2048, 128): (13.0, 23.0),
}
_WAIT = 1.3  # us of a barrier and an access to L2, which each step of each pass adds
BACKENDS = ("cuda", "triton")
_BOX_S = 60  # seconds that a row may take; after a first one it takes about 2


class Cell(NamedTuple):
    """The sizes of one row of the table."""

    precision: str
    H: int
    B: int
    L: int
    D: int
    train: bool


def cells(small: bool) -> Iterator[Cell]:
    """Yield the sizes to measure, in order."""
    if small:
        yield from (
            Cell("float32", 8, 2, L, D, t) for L, D in ((1, 1), (2, 2)) for t in (False, True)
        )
        return
    stacks = ((1, 1), (2, 1), (1, 2), (2, 2))
    for precision in ("bfloat16", "float16", "tf32"):
        for L, D in stacks:
            for B in (16, 64, 1, 128):
                for H in (1024, 512, 2048, 256, 768, 128):
                    for train in (True, False):
                        yield Cell(precision, H, B, L, D, train)


def floor(cell: Cell) -> float | None:
    """Return the modelled least time in us/step; None for sizes without a model."""
    work = _FLOOR.get((cell.H, cell.B))
    if work is None or cell.precision == "tf32":
        return None
    # Layers add up: they could overlap only if the weights of all of them stayed on the chip.
    return cell.L * (work[0] + _WAIT + cell.train * (work[1] + _WAIT))


def errors(found: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """Return the largest error of all tensors relative to their largest number; inf for a NaN."""
    pairs = zip(found, truth, strict=True)
    each = [(f.float() - t).abs().max() / t.abs().max() for f, t in pairs]
    return float(torch.stack(each).nan_to_num(nan=torch.inf).max())


def outputs(module: nn.Module, x: torch.Tensor, train: bool) -> list[torch.Tensor]:
    """Return the output, and with ``train`` the gradients of x and of the parameters."""
    output = module(x)[0]
    if not train:
        return [output.detach()]
    leaves = [x, *module.parameters()]
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), leaves)]


def measure(cell: Cell, T: int, device: str, backends: Sequence[str] = BACKENDS) -> dict[str, Any]:
    """Measure one row: us/step, ratio and error of each contender, or why it was not timed."""
    dtype = (
        torch.float32 if cell.precision in ("tf32", "float32") else getattr(torch, cell.precision)
    )
    sizes: dict[str, Any] = {"num_layers": cell.L, "bidirectional": cell.D == 2, "device": device}
    torch.manual_seed(0)
    exact = nn.LSTM(cell.H, cell.H, **sizes)
    x32 = torch.randn(T, cell.B, cell.H, device=device).requires_grad_(cell.train)
    torch.backends.cudnn.allow_tf32 = False
    truth = outputs(exact, x32, cell.train)
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    torch.backends.cuda.matmul.allow_tf32 = cell.precision == "tf32"

    x = x32.detach().to(dtype).requires_grad_(cell.train)
    modules: dict[str, nn.Module] = {"nn.LSTM": nn.LSTM(cell.H, cell.H, dtype=dtype, **sizes)}
    for backend in backends if device == "cuda" else ("cpu",):
        modules[backend] = fastlstm.LSTM(cell.H, cell.H, dtype=dtype, backend=backend, **sizes)
    contenders: dict[str, Callable[[], object]] = {}
    row: dict[str, Any] = {**cell._asdict(), "T": T, "floor_us": floor(cell)}
    limit = 0.0
    for name, module in modules.items():
        module.load_state_dict(exact.state_dict())
        try:
            error = errors(outputs(module, x, cell.train), truth)
        except (ValueError, RuntimeError, torch.cuda.OutOfMemoryError) as refusal:
            row[f"{name} refused"] = str(refusal).splitlines()[0]
            continue
        limit = limit or 4 * error + 1e-6
        row[f"{name} error"] = error
        if error > limit:
            row[f"{name} refused"] = f"errs by {error:.1e}, more than {limit:.1e}"
            continue
        contenders[name] = lambda module=module: outputs(module, x, cell.train)
    with torch.set_grad_enabled(cell.train):
        seconds = paired(contenders, record.ROUNDS, device=device)
    for name, samples in seconds.items():
        us = 1e3 * median_ms(samples) / T
        row[f"{name} us"] = us
        if row["floor_us"] is not None:
            row[f"{name} floor"] = row["floor_us"] / us
        if name != "nn.LSTM" and "nn.LSTM" in seconds:
            row[f"{name} ratio"] = ratio(seconds, "nn.LSTM", name)
    return row


def row(device: str, cell: list[Any], T: int, backends: Sequence[str] = BACKENDS) -> dict[str, Any]:
    """Measure one row; a task of :mod:`benchmarks.gpu.worker`."""
    return {"row": measure(Cell(*cell), T, device, backends)}


def plot(arguments: argparse.Namespace) -> None:
    """Draw the ratios in ``compare.json`` over H, a panel for each precision and batch size."""
    import matplotlib.pyplot as plt

    found = record.read(arguments.out / "compare.json")
    rows = [row for row in found["rows"] if row["train"]]
    panels = sorted({(row["precision"], row["B"]) for row in rows})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(3.2 * len(panels), 3.4), squeeze=False, sharey=True
    )
    for panel, (precision, B) in zip(axes[0], panels, strict=True):
        chosen = [row for row in rows if (row["precision"], row["B"]) == (precision, B)]
        for L, D in sorted({(row["L"], row["D"]) for row in chosen}):
            for name in (*BACKENDS, "cpu"):
                points = sorted(
                    (row["H"], row[f"{name} ratio"])
                    for row in chosen
                    if (row["L"], row["D"]) == (L, D) and f"{name} ratio" in row
                )
                if points:
                    panel.plot(*zip(*points, strict=True), "o-", label=f"{name}, L={L}, D={D}")
        panel.axhline(1, color="gray", linestyle=":")
        panel.set(title=f"{precision}, B={B}", xlabel="H", xscale="log", yscale="log")
    axes[0][0].set_ylabel("nn.LSTM's time / ours, training")
    axes[0][-1].legend(fontsize=6)
    figure.suptitle(str(found["device"]))
    figure.tight_layout()
    figure.savefig(arguments.out / "compare.png", dpi=110)


def main() -> None:
    options = record.parser(__doc__, minutes=8.5)
    options.add_argument("--plot", action="store_true", help="draw the rows, measure nothing")
    arguments = options.parse_args()
    if arguments.plot:
        plot(arguments)
        return
    results, worker = record.Results(arguments, "compare", resume=True), record.worker(arguments)
    done = {tuple(row[name] for name in Cell._fields) for row in results.rows}
    for cell in cells(arguments.small):
        if tuple(cell) in done:
            continue
        if results.seconds_left < 0:
            break
        how = {"cell": list(cell), "T": 8 if arguments.small else 512}
        answer = worker.ask(
            "benchmarks.gpu.compare:row", {"device": arguments.device, **how}, _BOX_S
        )
        results.add(**answer.get("row", {**cell._asdict(), "error": answer.get("ended")}))
    worker.close()
    plot(arguments)


if __name__ == "__main__":
    main()
