"""Initial weights for models of images that vary smoothly over the image."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from fastlstm.models.basis import FrameBasis, cosines
from fastlstm.models.encoder_decoder import Decoder


def smooth_over_image(weight: Tensor, basis: FrameBasis | None, sigma: float) -> Tensor:
    """Return a weight whose rows, seen as images, are blurred by a Gaussian.

    The blur is a factor exp(-(pi k sigma / side)**2 / 2) on the frequency k along a side. Images
    are mirrored at their edges.

    Args:
        weight: (N, I), or (N, the basis's ``num_coefficients``).
        basis: the basis of the images; None: they are square images of pixels.
        sigma: standard deviation of the Gaussian in pixels.

    Returns:
        A weight of the same size, scaled to the standard deviation of ``weight``.

    Raises:
        ValueError: rows without a basis are not square images.
    """
    if basis is None:
        side = math.isqrt(weight.shape[1])
        if side * side != weight.shape[1]:
            raise ValueError(f"weight: expected rows of square images, got size {weight.shape[1]}")
        basis = FrameBasis((side, side), side)  # with all frequencies: the pixels themselves
    transform = cosines(basis.size, basis.size).to(weight)
    k = torch.arange(basis.size, device=weight.device, dtype=weight.dtype)

    def blur(side: int) -> Tensor:
        factors = torch.exp(-0.5 * (math.pi * sigma / side * k) ** 2)
        return transform.T @ (factors.unsqueeze(1) * transform)

    images = weight.unflatten(-1, (basis.size, basis.size, basis.channels))
    blurred = torch.einsum("yk,xl,nklc->nyxc", blur(basis.height), blur(basis.width), images)
    blurred = blurred.reshape(weight.shape)
    return blurred * (weight.std() / blurred.std())


class SmoothImageWeights(Callback):
    """Blur the initial weights of a video model from and to pixels, before training.

    Neighbouring pixels have similar meaning. Independent random weights must learn that first, so
    that a run of a few hundred steps reaches a lower error with blurred ones. In a run that resumes
    or tests, the checkpoint's weights replace them.

    The weights of a model with ``basis="dct"`` are blurred in that basis. They keep the standard
    deviation of their coefficients; that of the pixels is K / side times as large.

    Args:
        input_sigma: standard deviation in pixels of the Gaussian blur of all input weights that
            read frames (the encoder's and those of conditional decoders); 0: no blur. Default: 3.
        output_sigma: the same for the weights from the decoders' state to pixels. Default: 1.5.
        input_gain: factor on all input weights that read frames. The blurred weights of the pixels
            of a stroke add up, and without a factor below 1 may saturate the gates. Default: 1.
        decoder_gain: a further factor on the input weights of conditional decoders; 0: they start
            by ignoring the frame that they read. Default: 1.

    Raises:
        ValueError: an argument is negative; or, when the weights of a model with ``basis="pixels"``
            are blurred, frames are not square images of one channel.

    Example:
        >>> import fastlstm
        >>> model = fastlstm.CompositeLSTM(32 * 32, 8)
        >>> before = model.encoder.weight_ih_l0.clone()
        >>> SmoothImageWeights(input_sigma=3.0, input_gain=0.1).apply(model)
        >>> round(float(model.encoder.weight_ih_l0.std() / before.std()), 3)
        0.1
    """

    def __init__(
        self,
        input_sigma: float = 3.0,
        output_sigma: float = 1.5,
        input_gain: float = 1.0,
        decoder_gain: float = 1.0,
    ) -> None:
        for name, value in (
            ("input_sigma", input_sigma),
            ("output_sigma", output_sigma),
            ("input_gain", input_gain),
            ("decoder_gain", decoder_gain),
        ):
            if value < 0:
                raise ValueError(f"{name}: expected at least 0, got {value}")
        self.input_sigma = input_sigma
        self.output_sigma = output_sigma
        self.input_gain = input_gain
        self.decoder_gain = decoder_gain

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.apply(pl_module.model)

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Blur the weights of a video model in place."""
        for name, weight in model.named_parameters():
            module = model.get_submodule(name.rpartition(".")[0])
            basis = getattr(module, "basis", None)
            if name.endswith("weight_ih_l0"):
                if self.input_sigma:
                    weight.copy_(smooth_over_image(weight, basis, self.input_sigma))
                weight.mul_(self.input_gain)
                if isinstance(module, Decoder):
                    weight.mul_(self.decoder_gain)
            elif name.endswith("readout.weight") and self.output_sigma:
                weight.copy_(smooth_over_image(weight.T, basis, self.output_sigma).T)
