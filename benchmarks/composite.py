"""Compare the training speed of CompositeLSTM with the same model built on torch.nn.LSTM.

    python -m benchmarks.composite [--config demo] [--rounds 9] [--steps 4]

Both models take whole training steps (forward, loss, backward, optimiser) on the same batch, in
turns A B A B, so that other load on the machine affects both. The script prints medians over the
turns. CompositeLSTM runs as configured, with peepholes. nn.LSTM has none, and its unconditioned
decoders read one zero per step, because it needs an input. Before the timing, the script checks
that both models have the same loss and gradient, without peepholes and with the same weights.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from benchmarks.timing import paired
from fastlstm import CompositeLSTM, configs
from fastlstm.training import MovingMNISTData


class TorchComposite(nn.Module):
    """The unconditioned composite model, built on nn.LSTM."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__()
        self.encoder = nn.LSTM(input_size, hidden_size, num_layers)
        self.decoders = nn.ModuleList(nn.LSTM(1, hidden_size, num_layers) for _ in range(2))
        self.readouts = nn.ModuleList(nn.Linear(hidden_size, input_size) for _ in range(2))

    def loss(self, frames: Tensor, future: Tensor) -> Tensor:
        """Return the loss in nats per frame, as ``CompositeLSTM.loss(...).total``.

        Args:
            frames: (T_in, B, I) in [0, 1].
            future: (T_out, B, I) in [0, 1].
        """
        _, state = self.encoder(frames)
        total = frames.new_zeros(())
        targets = (frames.flip(0), future)
        for decoder, readout, target in zip(self.decoders, self.readouts, targets, strict=True):
            steps, batch = target.shape[:2]
            y, _ = decoder(target.new_zeros(()).expand(steps, batch, 1), state)
            error = F.binary_cross_entropy_with_logits(readout(y), target, reduction="sum")
            total = total + error / (steps * batch)
        return total

    @torch.no_grad()
    def copy_from(self, model: CompositeLSTM) -> None:
        """Copy the weights of a CompositeLSTM, whose one bias becomes b_ih; b_hh becomes 0."""
        ours = (model.encoder, model.reconstruction_decoder, model.future_decoder)
        for theirs, stack in zip((self.encoder, *self.decoders), ours, strict=True):
            given = dict(stack.named_parameters(recurse=False))
            for name, parameter in theirs.named_parameters():
                parameter.copy_(given[name]) if name in given else parameter.zero_()
        for theirs, stack in zip(self.readouts, ours[1:], strict=True):
            theirs.load_state_dict(stack.readout.state_dict())


def check(size: dict[str, int], frames: Tensor, future: Tensor) -> None:
    """Raise AssertionError unless both models have the same loss and gradient of the encoder."""
    ours = CompositeLSTM(**size, peephole=False).to(frames.device)
    theirs = TorchComposite(**size).to(frames.device)
    theirs.copy_from(ours)
    losses = ours.loss(frames, future).total, theirs.loss(frames, future)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(
        ours.encoder.weight_hh_l0.grad, theirs.encoder.weight_hh_l0.grad, rtol=1e-2, atol=1e-3
    )


def training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Return a function that takes one training step with Adam."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def repeated(step: Callable[[], None], steps: int) -> Callable[[], None]:
    """Return a function that takes ``steps`` steps."""

    def run() -> None:
        for _ in range(steps):
            step()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="demo", help="file, or name in `fastlstm configs`")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each model")
    parser.add_argument("--steps", type=int, default=4, help="training steps in a turn")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)

    config = yaml.safe_load(Path(configs.find(options.config)).read_text())
    chosen = config["model"]["model"]
    arguments = chosen["init_args"]
    if chosen["class_path"] != "fastlstm.CompositeLSTM" or any(
        arguments.get(name) for name in ("conditional_reconstruction", "conditional_future")
    ):
        parser.error(f"--config: expected an unconditioned fastlstm.CompositeLSTM, got {chosen}")
    size = {k: arguments.get(k, 1) for k in ("input_size", "hidden_size", "num_layers")}
    data = MovingMNISTData(**config["data"]["init_args"])
    batch = data.training_sample(data.batch_size)
    frames, future = (part.to(device).float() / 255 for part in batch)

    check(size, frames, future)
    ours = CompositeLSTM(**arguments).to(device)
    theirs = TorchComposite(**size).to(device)
    contenders = {
        f"fastlstm.CompositeLSTM{', peepholes' if ours.config['peephole'] else ''}": training_step(
            ours, lambda: ours.loss(frames, future).total
        ),
        "the same on nn.LSTM, no peepholes": training_step(
            theirs, lambda: theirs.loss(frames, future)
        ),
    }
    turns = {name: repeated(step, options.steps) for name, step in contenders.items()}
    times = paired(turns, options.rounds, device=device.type)

    print(
        f"{size['input_size']} -> {size['hidden_size']}, {size['num_layers']} layer(s),"
        f" {len(frames)}+{len(future)} frames, batch {data.batch_size}, float32 on {device},"
        f" {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    for name, seconds in times.items():
        ordered = sorted(options.steps * data.batch_size / s for s in seconds)
        median = statistics.median(ordered)
        print(f"  {name:<36}{median:8.1f} sequences/s  ({ordered[0]:.1f} to {ordered[-1]:.1f})")
    ratio = [theirs_s / ours_s for ours_s, theirs_s in zip(*times.values(), strict=True)]
    print(f"  ratio {statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})")


if __name__ == "__main__":
    main()
