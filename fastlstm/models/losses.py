"""The loss and the error of frames, by the type of their values.

Binary frames have values in [0, 1]; a model emits logits for them, and its loss is the
cross-entropy in nats (natural logarithm). Real frames have any values; a model emits the values
themselves, and its loss is half the squared error. Both are summed over the values of a frame and
averaged over frames and batch: "nats per frame" is the unit of the paper's tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor

from fastlstm.backends.cpu import bernoulli_loss
from fastlstm.layout_checks import can_read_values
from fastlstm.tracing import Mode, find_mode

FrameType = Literal["binary", "real"]


class VideoLoss(NamedTuple):
    """A video model's loss per frame, summed over a frame's values: what its ``loss`` returns.

    The unit is nats for binary frames (cross-entropy with the natural logarithm) and half the
    squared error for real ones.

    Attributes:
        total: scalar, the sum of the parts.
        reconstruction: scalar, averaged over the frames that were read and the batch. None for a
            model without the reconstruction decoder.
        future: scalar, averaged over the frames that follow and the batch. None for a model without
            the future decoder.

    Example:
        >>> model, video = fastlstm.CompositeLSTM(16, 8), torch.rand(6, 2, 16)
        >>> loss = model.loss(video[:3], video[3:])
        >>> torch.equal(loss.total, loss.reconstruction + loss.future)
        True
    """

    total: Tensor
    reconstruction: Tensor | None
    future: Tensor | None


def check_frame_type(frame_type: FrameType, frames: FrameType | None = None) -> FrameType:
    """Return the frame type.

    Args:
        frame_type: the argument.
        frames: the argument under its name in version 0.1; None if not given.

    Raises:
        ValueError: neither "binary" nor "real", or ``frame_type`` is given too and differs.
    """
    name, value = ("frame_type", frame_type) if frames is None else ("frames", frames)
    if value not in get_args(FrameType):
        raise ValueError(f"{name}: expected 'binary' or 'real', got {value!r}")
    if frame_type not in ("binary", value):  # "binary" is the default
        raise ValueError(f"frames: expected that of frame_type, {frame_type!r}, got {frames!r}")
    return value


def readout_to_frames(readout: Tensor, frame_type: FrameType) -> Tensor:
    """Turn what a decoder emits into frames: logits into probabilities, values as they are."""
    return readout.sigmoid() if frame_type == "binary" else readout


def frame_loss(readout: Tensor, target: Tensor, frame_type: FrameType) -> Tensor:
    """Compute the loss per frame of what a decoder emits.

    Args:
        readout: (T, B, I) logits for binary frames, values for real ones.
        target: (T, B, I) the true frames, in [0, 1] if binary.
        frame_type: "binary", cross-entropy in nats; "real", half the squared error.

    Returns:
        Scalar, in float32 or, if an argument is float64, in float64.

    Raises:
        ValueError: no frames to average over, or binary targets outside [0, 1].
    """
    num_frames = target.shape[0] * target.shape[1]
    if num_frames == 0:
        raise ValueError(f"frames: expected at least one, got size {tuple(target.shape)}")
    if frame_type == "real":
        dtype = _sum_dtype(readout)
        return 0.5 * F.mse_loss(readout.to(dtype), target.to(dtype), reduction="sum") / num_frames
    mode = find_mode((readout, target))
    if (
        mode in (Mode.AUTOGRAD, Mode.NONE)
        and not target.requires_grad
        and bernoulli_loss.can_run(readout, target)
    ):
        if mode is Mode.NONE:
            return _run_kernel(readout, target, num_frames, needs_gradient=False)[0]
        return _BernoulliLoss.apply(readout, target, num_frames)
    _check_binary(readout, target)
    dtype = _sum_dtype(readout)
    readout, target = readout.to(dtype), target.to(dtype)
    # softplus(a) - t a is the cross-entropy of t against sigmoid(a), for 0 < t < 1 too. A dot
    # product saves one pass over memory.
    return (F.softplus(readout).sum() - readout.flatten().dot(target.flatten())) / num_frames


def loss_by_frame(readout: Tensor, target: Tensor, frame_type: FrameType) -> Tensor:
    """Compute the loss of every frame of every video, (T, B); arguments as in ``frame_loss``."""
    dtype = _sum_dtype(readout)
    readout, target = readout.to(dtype), target.to(dtype)
    if frame_type == "real":
        return 0.5 * (readout - target).square().sum(-1)
    return F.binary_cross_entropy_with_logits(readout, target, reduction="none").sum(-1)


def _sum_dtype(readout: Tensor) -> torch.dtype:
    """Return the loss's dtype: under autocast the read-out's is too narrow for a sum."""
    return torch.promote_types(readout.dtype, torch.float32)


def _check_binary(readout: Tensor, target: Tensor) -> None:
    """Raise ValueError if a value of a binary target is outside [0, 1], or NaN."""
    if target.numel() == 0 or not can_read_values(target):
        return
    low, high = (float(extreme) for extreme in target.to(_sum_dtype(readout)).aminmax())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"frames: expected binary values in [0, 1], got {low}..{high}")


def _run_kernel(
    readout: Tensor, target: Tensor, num_frames: int, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss per frame of binary frames on the CPU, and the gradient of the read-out."""
    total, is_certain, gradient = bernoulli_loss.run(
        readout, target, 1 / num_frames, needs_gradient
    )
    if not is_certain:
        _check_binary(readout, target)
    return torch.tensor(total / num_frames, dtype=_sum_dtype(readout), device="cpu"), gradient


class _BernoulliLoss(torch.autograd.Function):
    """The loss of binary frames, whose forward pass computes the gradient too.

    In torch's functions forward and backward pass take 7 passes over memory, an eighth of a
    training step.
    """

    @staticmethod
    def forward(ctx: Any, readout: Tensor, target: Tensor, num_frames: int) -> Tensor:
        loss, ctx.gradient = _run_kernel(readout, target, num_frames, needs_gradient=True)
        ctx.save_for_backward(readout, target)
        ctx.num_frames = num_frames
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        readout, target = ctx.saved_tensors
        is_watched = find_mode((grad,)) is not Mode.NONE or is_legacy_batchedtensor(grad)
        if torch.is_grad_enabled() or is_watched:  # a second derivative, or a batch of gradients
            dtype = _sum_dtype(readout)
            difference = readout.to(dtype).sigmoid() - target.to(dtype)
            return (difference * (grad / ctx.num_frames)).to(readout.dtype), None, None
        # Autograd may make this tensor a leaf's .grad and add to it. So it is returned only once.
        gradient = vars(ctx).pop("gradient", None)
        if gradient is None:
            gradient = _run_kernel(readout, target, ctx.num_frames, needs_gradient=True)[1]
        return gradient if grad.item() == 1 else gradient.mul_(grad), None, None


def video_loss(
    readouts: Sequence[Tensor | None], targets: Sequence[Tensor | None], frame_type: FrameType
) -> VideoLoss:
    """Compute the loss of what the reconstruction and the future decoder emit, and their sum.

    Args:
        readouts: of the two decoders, None for one that the model does not have; at least one.
        targets: the true frames, likewise.
        frame_type: "binary" or "real".

    Raises:
        ValueError: as :func:`frame_loss` does.
    """
    reconstruction, future = (
        None if readout is None or target is None else frame_loss(readout, target, frame_type)
        for readout, target in zip(readouts, targets, strict=True)
    )
    parts = [part for part in (reconstruction, future) if part is not None]
    return VideoLoss(sum(parts, start=parts[0].new_zeros(())), reconstruction, future)


def frame_error(predicted: Tensor, target: Tensor, frame_type: FrameType) -> Tensor:
    """Compute the error per frame of predicted frames, in the unit of the model's loss.

    Args:
        predicted: (T, B, I), or what broadcasts to it; probabilities if ``frame_type`` is "binary".
        target: (T, B, I) the true frames, in [0, 1] if ``frame_type`` is "binary".
        frame_type: "binary", cross-entropy in nats; "real", half the squared error.

    Returns:
        Scalar in float32. A probability of exactly 0 or 1 that is wrong costs 100 nats, the bound
        of ``torch.nn.functional.binary_cross_entropy``.

    Example:
        >>> from fastlstm.models.losses import frame_error
        >>> frame_error(torch.zeros(1, 1, 4), torch.ones(1, 1, 4), "real")
        tensor(2.)
    """
    predicted = predicted.float().expand_as(target)
    target = target.float()
    num_frames = target.shape[0] * target.shape[1]
    # Under autocast torch refuses the cross-entropy of probabilities.
    with torch.autocast(target.device.type, enabled=False):
        if frame_type == "binary":
            return F.binary_cross_entropy(predicted, target, reduction="sum") / num_frames
        return 0.5 * F.mse_loss(predicted, target, reduction="sum") / num_frames
