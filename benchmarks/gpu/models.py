"""Time whole models on a GPU, and an LSTM on a very long sequence.

    python -m benchmarks.gpu.models --out FOLDER [--device cpu --small]

The first rows are a training step (forward, loss, backward, Adam) of CompositeLSTM with 2,048
units, 1 and 2 layers and batch size 100, under autocast in bfloat16, compared with the same model
built on nn.LSTM (without peepholes) and on a loop over the steps in PyTorch: sequences per second
and peak memory. The last row is an LSTM with peepholes on T = 100,000 steps, with and without
checkpoints, by the cuda backend, beside nn.LSTM. A row that hangs or crashes does not end the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import fastlstm
from benchmarks.composite import TorchComposite, training_step
from benchmarks.gpu import record
from benchmarks.timing import median_ms, paired, ratio


def peak(device: str, call: Callable[[], object]) -> float | None:
    """Return the peak of allocated GPU memory during a call in GB; None on a CPU."""
    if device == "cpu":
        return None
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 1e9


def composite(device: str, layers: int, small: bool) -> dict[str, Any]:
    """Measure one row: sequences per second, ratio and memory of the three models."""
    I, H, B, T = (64, 16, 4, 3) if small else (4096, 2048, 100, 10)
    frames, future = torch.rand(2, T, B, I, device=device)
    sizes: dict[str, Any] = {"input_size": I, "hidden_size": H, "num_layers": layers}
    backend = "cuda" if device == "cuda" else "cpu"
    ours = fastlstm.CompositeLSTM(**sizes, backend=backend, device=device)
    loop = fastlstm.CompositeLSTM(**sizes, backend="reference", device=device)
    loop.load_state_dict(ours.state_dict())
    theirs = TorchComposite(ours).to(device)

    def step(model: nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        return training_step(model, loss, device, is_bfloat16=True)

    with torch.no_grad():
        losses = [float(model.loss(frames, future).total) for model in (ours, loop)]
    steps = {
        "ours": step(ours, lambda: ours.loss(frames, future).total),
        "nn.LSTM, no peepholes": step(theirs, lambda: theirs.loss(frames, future)),
        "torch loop, peepholes": step(loop, lambda: loop.loss(frames, future).total),
    }
    row: dict[str, Any] = {"model": "CompositeLSTM", **sizes, "B": B, "losses": losses}
    seconds = paired(steps, record.ROUNDS, device=device)
    for name, samples in seconds.items():
        row[f"{name} sequences/s"] = 1e3 * B / median_ms(samples)
        row[f"{name} GB"] = peak(device, steps[name])
        if name != "ours":
            row[f"{name} / ours"] = ratio(seconds, name, "ours")
    return {"row": row}


def long_sequence(device: str, small: bool) -> dict[str, Any]:
    """Measure one row: ms and GB of a forward and backward pass over a long sequence."""
    T, B, H = (200, 1, 16) if small else (100_000, 4, 256)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    row: dict[str, Any] = {"model": "LSTM", "T": T, "B": B, "hidden_size": H}
    # With peepholes: without them "auto" is cuDNN, and the row would compare nn.LSTM with itself.
    backend = "cuda" if device == "cuda" else "cpu"
    own: dict[str, Any] = {"device": device, "dtype": dtype, "backend": backend, "peephole": True}
    ways: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: fastlstm.LSTM(H, H, **own),
        "ours, checkpoints": lambda: fastlstm.LSTM(H, H, checkpoint_every="auto", **own),
        "nn.LSTM": lambda: nn.LSTM(H, H, device=device, dtype=dtype),
    }
    x = torch.randn(T, B, H, device=device, dtype=dtype)
    for name, make in ways.items():
        module = make()

        def run(module: nn.Module = module) -> None:
            module.zero_grad(set_to_none=True)
            module(x)[0].float().square().mean().backward()

        try:
            seconds = paired({name: run}, rounds=3, device=device)[name]
        except (RuntimeError, ValueError) as error:
            row[f"{name} refused"] = str(error).splitlines()[0]
            continue
        row[f"{name} ms"] = median_ms(seconds)
        row[f"{name} GB"] = peak(device, run)
    return {"row": row}


def main() -> None:
    arguments = record.parser(__doc__, minutes=9).parse_args()
    results, worker = record.Results(arguments, "models"), record.worker(arguments)
    rows: list[tuple[str, dict[str, Any]]] = [("composite", {"layers": n}) for n in (1, 2)]
    for function, how in [*rows, ("long_sequence", {})]:
        if results.seconds_left < 5:
            break
        how = {"device": arguments.device, "small": arguments.small, **how}
        answer = worker.ask(f"benchmarks.gpu.models:{function}", how, results.seconds_left)
        results.add(**answer.get("row", {"model": function, "error": answer.get("ended"), **how}))
    worker.close()


if __name__ == "__main__":
    main()
