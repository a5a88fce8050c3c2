"""Make tasks train and resume in every precision of the trainer."""

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer

_HALF = torch.float16


def prepare(optimizer: Optimizer) -> Optimizer:
    """Return the optimiser, prepared for the trainer's precision.

    Raises:
        ValueError: parameters are float16 (precision 16-true), and the optimiser's ``eps`` is 0 or
            a subnormal number in float16.
    """
    # A fused optimiser declares that its step unscales float16 gradients itself, that is, after
    # they were clipped. The trainer therefore refuses to clip, also in bfloat16, where nothing is
    # scaled. Without the declaration the trainer unscales, clips, and calls the same fused step.
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    least = torch.finfo(_HALF).tiny
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if isinstance(eps, float) and eps < least and _HALF in {p.dtype for p in group["params"]}:
            # Averages of squared gradients underflow to 0 in float16. After 150 steps a ByteLSTM
            # had 3,094 bits per byte with eps 1e-8, NaN with 1e-7, 5.2 with 1e-4 (float32: 5.1).
            raise ValueError(
                f"optimizer.eps: expected at least {least:.1e}, float16's smallest normal number,"
                f" with --trainer.precision 16-true, got {eps}; give --model.optimizer.eps 1e-4, or"
                " --trainer.precision 16-mixed or bf16-true"
            )
    return optimizer


def widen(module: LightningModule) -> None:
    """Convert a module to float64 if the trainer's precision is 64-true, before weights are loaded.

    Lightning converts the module after loading, which would round float64 weights to float32.
    """
    trainer = module._trainer
    if trainer is not None and trainer.precision == "64-true":
        module.double()
