"""Make tasks train and resume in every precision of the trainer."""

from typing import Any, Literal

import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer

from fastlstm.backends import cpu

_HALF = torch.float16
_KEY = "fastlstm_precision"  # in checkpoints
_FAST_BFLOAT16 = {"amx": "AMX-BF16", "avx512bf16": "AVX-512 BF16"}


class AutoPrecisionTrainer(Trainer):
    """Lightning's trainer, whose precision can also be ``auto``.

    Args:
        *args: as of Lightning's trainer.
        accelerator: likewise: "cpu", "gpu", "auto" and others.
        precision: likewise: "32-true", "bf16-mixed" and others; "auto" is bf16-mixed where bfloat16
            is fast and 32-true elsewhere, see ``find_precision``. Default: 32-true.
        **kwargs: as of Lightning's trainer.
    """

    def __init__(
        self,
        *args: Any,
        accelerator: Any = "auto",
        precision: _PRECISION_INPUT | Literal["auto"] | None = None,
        **kwargs: Any,
    ) -> None:
        if precision == "auto":
            precision, reason = find_precision(accelerator)
            rank_zero_info(f"precision: {precision} ({reason})")
        super().__init__(*args, accelerator=accelerator, precision=precision, **kwargs)


def find_precision(accelerator: Any) -> tuple[Literal["bf16-mixed", "32-true"], str]:
    """Return bf16-mixed if this machine computes bfloat16 fast, else 32-true, and the reason.

    bfloat16 is fast on a CPU with AVX-512 BF16 or AMX-BF16, and on GPUs of compute capability 8.0
    or higher.

    Args:
        accelerator: the trainer's argument; "auto" is a GPU if there is one.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") or isinstance(accelerator, CUDAAccelerator)
    if on_gpu and torch.cuda.is_available():
        found = min(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
        reason = "this GPU has compute capability {}.{}".format(*found)
        return ("bf16-mixed", reason) if found >= (8, 0) else ("32-true", reason)
    if accelerator in ("auto", "cpu"):
        for isa in cpu.isas():
            if isa in _FAST_BFLOAT16:
                return "bf16-mixed", f"this CPU has {_FAST_BFLOAT16[isa]}"
        return "32-true", "this CPU has neither AVX-512 BF16 nor AMX-BF16"
    return "32-true", f"bfloat16 may be slow on the accelerator {accelerator}"


class PrecisionChange(Callback):
    """Log when a run resumes in another precision than that in which its checkpoint was trained."""

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[_KEY] = trainer.precision

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        before = checkpoint.get(_KEY, trainer.precision)
        if before != trainer.precision and trainer.state.fn == "fit":  # `fit` also tests
            rank_zero_info(
                f"precision: {trainer.precision}, while the checkpoint was trained in {before}"
            )


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
