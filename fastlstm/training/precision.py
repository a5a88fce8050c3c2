"""What a task needs so that it trains, and resumes, in every precision of the trainer."""

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer

_HALF = torch.float16


def prepare(optimizer: Optimizer) -> Optimizer:
    """The optimiser, ready for the trainer's precision.

    Raises:
        ValueError: parameters in float16 (16-true) whose steps would divide by an `eps` that is 0
            there, or close to it.
    """
    # A fused optimiser would unscale float16's gradients within its step, after they were clipped.
    # The trainer therefore refuses to clip, in bfloat16 too, where there is nothing to unscale.
    # Without this mark it unscales them itself, clips, and calls the same fused step.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    least = torch.finfo(_HALF).tiny
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if isinstance(eps, float) and eps < least and _HALF in {p.dtype for p in group["params"]}:
            # Averages of squared gradients vanish in float16: after 150 steps a model of bytes had
            # 3,094 bits a byte with an eps of 1e-8, NaN with 1e-7, 5.2 with 1e-4 (float32: 5.1).
            raise ValueError(
                f"optimizer.eps: expected at least {least:.1e}, float16's smallest normal number,"
                f" with --trainer.precision 16-true, got {eps}; give --model.optimizer.eps 1e-4, or"
                " --trainer.precision 16-mixed or bf16-true"
            )
    return optimizer


def widen(module: LightningModule) -> None:
    """To be called before weights are loaded into it: of float64 they keep all their bits.

    Lightning loads them into float32 and makes them float64 again afterwards.
    """
    trainer = module._trainer
    if trainer is not None and trainer.precision == "64-true":
        module.double()
