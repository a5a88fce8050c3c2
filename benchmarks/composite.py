"""The suite "model": training steps of CompositeLSTM and of the same model on torch.nn.LSTM.

    fastlstm bench --suite model
    python -m benchmarks.composite [--config demo] [--rounds 9]

Both models take whole training steps (forward, loss, backward, optimiser) on the same batch, in
turns, in the configuration's precision and with the same read-outs. CompositeLSTM runs as
configured, with peepholes. nn.LSTM has none, and its unconditioned decoders read one zero per step,
because it needs an input. Before the timing, both models are checked to have the same loss and
gradient, without peepholes and with the same weights.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from fastlstm import CompositeLSTM, configs

from .cases import Case, case, ways
from .contests import Contender, Contest, Effort, measure

PEER = "nn.LSTM, no peepholes"


class TorchComposite(nn.Module):
    """The unconditioned composite model on nn.LSTM, with the basis and read-outs of another model.

    Args:
        model: the model whose sizes and initial read-outs it has.
    """

    def __init__(self, model: CompositeLSTM) -> None:
        super().__init__()
        stack = model.encoder
        hidden = stack.hidden_size, stack.num_layers
        self.encoder = nn.LSTM(stack.get_parameter("weight_ih_l0").shape[1], *hidden)
        self.decoders = nn.ModuleList(nn.LSTM(1, *hidden) for _ in range(2))
        ours = (model.reconstruction_decoder, model.future_decoder)
        self.readouts = nn.ModuleList(copy.deepcopy(decoder.readout) for decoder in ours)
        self.inputs = stack.inputs

    def loss(self, frames: Tensor, future: Tensor) -> Tensor:
        """Return the loss in nats per frame, as ``CompositeLSTM.loss(...).total``.

        Args:
            frames: (T_in, B, I) in [0, 1].
            future: (T_out, B, I) in [0, 1].
        """
        _, state = self.encoder(self.inputs(frames))
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
        """Copy the LSTMs' weights of a model, whose one bias becomes b_ih; b_hh becomes 0."""
        ours = (model.encoder, model.reconstruction_decoder, model.future_decoder)
        for theirs, stack in zip((self.encoder, *self.decoders), ours, strict=True):
            given = dict(stack.named_parameters(recurse=False))
            for name, parameter in theirs.named_parameters():
                parameter.copy_(given[name]) if name in given else parameter.zero_()


def check(arguments: dict[str, Any], frames: Tensor, future: Tensor) -> tuple[float, float]:
    """Raise AssertionError unless both models have the same loss and gradient of the encoder."""
    ours = CompositeLSTM(**{**arguments, "peephole": False}).to(frames.device)
    theirs = TorchComposite(ours).to(frames.device)
    theirs.copy_from(ours)
    losses = ours.loss(frames, future).total, theirs.loss(frames, future)
    torch.testing.assert_close(*losses, rtol=1e-4, atol=0)
    for loss in losses:
        loss.backward()
    gradients = [model.encoder.weight_hh_l0.grad for model in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3)
    error = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    return error, error  # float32 against float32: neither is exact


def training_step(
    model: nn.Module, loss: Callable[[], Tensor], device: str, is_bfloat16: bool
) -> Callable[[], None]:
    """Return a function that takes one training step with Adam, in bfloat16 under autocast."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=is_bfloat16):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def contest(config: str, effort: Effort) -> Contest:
    """Return training steps of both models on the same batch.

    Raises:
        ValueError: the configuration's model is not an unconditioned CompositeLSTM.
    """
    device = torch.device(effort.device)
    read = yaml.safe_load(Path(configs.find(config)).read_text())
    chosen = read["model"]["model"]
    arguments = chosen["init_args"]
    if chosen["class_path"] != "fastlstm.CompositeLSTM" or any(
        arguments.get(name) for name in ("conditional_reconstruction", "conditional_future")
    ):
        raise ValueError(f"config: expected an unconditioned fastlstm.CompositeLSTM, got {chosen}")
    # These need the packages of fastlstm[train].
    from fastlstm.training import MovingMNISTData
    from fastlstm.training.precision import find_precision

    precision = read["trainer"].get("precision")
    if precision == "auto":
        precision, _ = find_precision("gpu" if device.type == "cuda" else "cpu")
    data = MovingMNISTData(**read["data"]["init_args"])
    batch = data.training_sample(data.batch_size)
    frames, future = (part.to(device).float() / 255 for part in batch)
    ours = CompositeLSTM(**arguments).to(device)
    theirs = TorchComposite(ours).to(device)
    how = device.type, precision == "bf16-mixed"
    step = training_step(ours, lambda: ours.loss(frames, future).total, *how)
    peer = training_step(theirs, lambda: theirs.loss(frames, future), *how)
    return Contest(
        {
            "auto": Contender(step, lambda: check(arguments, frames, future), (PEER,)),
            PEER: Contender(peer),
        }
    )


def cases(options: argparse.Namespace, config: str = "demo") -> Iterator[Case]:
    """Yield a training step of a configuration's model."""
    for way in ways(options, ["float32"]):
        if way["mode"] == "training":
            params = {"shape": f"CompositeLSTM-{config}", **way}
            yield case("model", params, ["auto"], lambda effort: contest(config, effort))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="demo", help="file, or name in `fastlstm configs`")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    effort = Effort(options.rounds, 60, torch.get_num_threads(), options.device)
    try:
        measured = measure(contest(options.config, effort), effort)
    except ValueError as error:
        parser.error(str(error))
    if measured.failed:
        raise SystemExit(f"not timed: {measured.failed}")
    for name in ("auto", PEER):
        seconds = statistics.median(measured.best(name)[1])
        label = "fastlstm.CompositeLSTM" if name == "auto" else name
        print(f"  {label:<32}{1e3 * seconds:8.1f} ms a step")
    ratio = measured.info("auto")["ratio"]
    print(f"  ratio {ratio['median']:.2f} ({ratio['q25']:.2f} to {ratio['q75']:.2f})")


if __name__ == "__main__":
    main()
