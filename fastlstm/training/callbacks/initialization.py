"""A start for models of images: weights that vary smoothly over the picture."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn


def smooth_over_image(weight: Tensor, sigma: float) -> Tensor:
    """Rows of a weight blurred as the square images they are read as, at the spread they had.

    Args:
        weight: (N, side * side).
        sigma: standard deviation of the Gaussian, in pixels; the image wraps around.

    Returns:
        (N, side * side) with the standard deviation of `weight`.

    Raises:
        ValueError: rows that are not square images, or sigma not above 0.
    """
    if sigma <= 0:
        raise ValueError(f"sigma: expected a number above 0, got {sigma}")
    side = round(weight.shape[1] ** 0.5)
    if side * side != weight.shape[1]:
        raise ValueError(f"weight: expected rows of square images, got size {weight.shape[1]}")
    reach = min(round(3 * sigma), side)
    offsets = torch.arange(-reach, reach + 1, device=weight.device, dtype=weight.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    images = F.pad(weight.reshape(-1, 1, side, side), (reach,) * 4, mode="circular")
    images = F.conv2d(F.conv2d(images, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    blurred = images.reshape(weight.shape)
    return blurred * (weight.std() / blurred.std())


class SmoothImageWeights(Callback):
    """Blurs the first weights from and to pixels before training starts.

    Neighbouring pixels mean much the same thing, which independent random weights have to learn
    first: a few hundred steps get further with this. A run that resumes or tests loads its weights
    afterwards and is left as it was.

    Args:
        input_sigma: standard deviation in pixels of the blur of all input weights that read
            frames (the encoder's, a conditional decoder's); 0 for none.
        output_sigma: the same for the decoders' read-outs.
        input_gain: factor on all input weights that read frames. Blurred ones add up over a
            stroke's pixels, and would drive the gates into saturation at their usual size.

    Raises:
        ValueError: a negative sigma or gain, or frames that are not square one-channel images.
    """

    def __init__(
        self, input_sigma: float = 3.0, output_sigma: float = 1.5, input_gain: float = 1.0
    ) -> None:
        for name, value in (
            ("input_sigma", input_sigma),
            ("output_sigma", output_sigma),
            ("input_gain", input_gain),
        ):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        self.input_sigma = input_sigma
        self.output_sigma = output_sigma
        self.input_gain = input_gain

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.apply(pl_module.model)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Blur the weights of a video model, in place."""
        for name, weight in model.named_parameters():
            if name.endswith("weight_ih_l0"):
                if self.input_sigma:
                    weight.copy_(smooth_over_image(weight, self.input_sigma))
                weight.mul_(self.input_gain)
            elif name.endswith("readout.weight") and self.output_sigma:
                weight.copy_(smooth_over_image(weight.T, self.output_sigma).T)
