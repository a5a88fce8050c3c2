"""Fixed bases of images in which a video model's weights read and emit frames."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from fastlstm.checks import check_like
from fastlstm.tracing import autocast_dtype

Basis = Literal["pixels", "dct"]
PIXELS: dict[str, Any] = {"basis": "pixels", "basis_size": None, "frame_shape": None}
"""The arguments of a video model without a basis, as its ``config`` has them."""


class FrameBasis(nn.Module):
    """The lowest frequencies of a frame, as the values of a smaller image.

    The two-dimensional orthonormal discrete cosine transform (DCT-II) of a frame is cut to its
    K x K lowest frequencies, and these are turned back into an image of K x K values:
    ``rows @ x @ columns.T`` for an image x of height h and width w, with ``rows = F(K, K).T @
    F(K, h)``, where ``F(K, h)[k, y]`` is sqrt(2 / h) cos(pi k (2 y + 1) / (2 h)), divided by
    sqrt(2) for k = 0, and ``columns`` likewise. This is down-sampling with an ideal low-pass; the
    basis functions are bumps around the points of a K x K grid.

    The rows of both matrices are orthonormal. So :meth:`pixels` is the adjoint (transpose) of
    :meth:`coefficients`, and ``coefficients(pixels(c))`` is c. Weights for the frequencies
    themselves would give the same functions, but Adam, which scales each weight's step by itself,
    trains them worse: 468 nats per frame in place of 445 after 1,000 steps of the demo's model.

    Args:
        frame_shape: (height, width), or (height, width, channels) with the channel varying fastest;
            each channel is transformed by itself.
        size: K, number of frequencies that are kept along each axis, the lowest ones.

    Attributes:
        rows: (K, height). Neither matrix is in the ``state_dict``.
        columns: (K, width).
        frame_size: I, number of values in a frame.
        num_coefficients: K * K * channels.

    Example:
        >>> from fastlstm.models.basis import FrameBasis
        >>> basis = FrameBasis((6, 8), 3)
        >>> basis.coefficients(torch.rand(5, 2, 48)).shape
        torch.Size([5, 2, 9])
        >>> basis.pixels(torch.rand(5, 2, 9)).shape
        torch.Size([5, 2, 48])
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, frame_shape: Sequence[int], size: int) -> None:
        super().__init__()
        self.height, self.width = frame_shape[:2]
        self.channels = math.prod(frame_shape[2:])
        self.size = size
        self.frame_size = math.prod(frame_shape)
        self.num_coefficients = size * size * self.channels
        for name, length in (("rows", self.height), ("columns", self.width)):
            matrix = _low_pass(size, length).to(torch.empty(()))
            self.register_buffer(name, matrix, persistent=False)

    def coefficients(self, frames: Tensor) -> Tensor:
        """Return the coefficients of frames.

        Args:
            frames: (..., I).

        Returns:
            (..., K * K * channels): an image of height and width K.

        Raises:
            RuntimeError, ValueError: a wrong size, device or dtype, as in ``nn.LSTM``.
        """
        if frames.shape[-1] != self.frame_size:
            raise RuntimeError(
                "input.size(-1) must be equal to input_size. "
                f"Expected {self.frame_size}, got {frames.shape[-1]}"
            )
        check_like("frames", frames, "the model", self.rows, autocast_dtype(frames) is not None)
        images = self._images(frames, self.height, self.width)
        return self._flat(self.rows @ (images @ self.columns.T))

    def pixels(self, coefficients: Tensor) -> Tensor:
        """Return the frames (..., I) that have these coefficients (..., K * K * channels)."""
        small = self._images(coefficients, self.size, self.size)
        # The larger product comes last here and first above: it is one large matrix product, the
        # other is a small one for each frame.
        return self._flat((self.rows.T @ small) @ self.columns)

    def in_dtype(self, dtype: torch.dtype) -> FrameBasis:
        """Return this basis with its matrices in another dtype; they are copies of its own."""
        basis = copy.copy(self)
        basis._buffers = {name: matrix.to(dtype) for name, matrix in self.named_buffers()}
        return basis

    def _images(self, values: Tensor, height: int, width: int) -> Tensor:
        """Return (..., height, width), with an axis of channels before these if there are many."""
        if self.channels == 1:
            return values.unflatten(-1, (height, width))
        return values.unflatten(-1, (height, width, self.channels)).movedim(-1, -3)

    def _flat(self, images: Tensor) -> Tensor:
        """Undo :meth:`_images`."""
        if self.channels == 1:
            return images.flatten(-2)
        return images.movedim(-3, -1).flatten(-3)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # Computed anew: a model that was bfloat16 for a while keeps nothing of the rounding, and
        # one that was on "meta" gets values.
        self.rows = _low_pass(self.size, self.height).to(self.rows)
        self.columns = _low_pass(self.size, self.width).to(self.columns)
        return self

    def options(self) -> dict[str, Any]:
        """Return the arguments of a video model with this basis, as its ``config`` has them."""
        shape = [self.height, self.width] + [self.channels] * (self.channels > 1)
        return {"basis": "dct", "basis_size": self.size, "frame_shape": shape}  # a list, as in JSON

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"({self.height}, {self.width}, {self.channels}), size={self.size}"


class Readout(nn.Linear):
    """A linear read-out whose weight emits coefficients in a basis, and whose bias is per pixel.

    Args:
        hidden_size: H, number of values that it reads.
        basis: the basis. ``weight`` is (its ``num_coefficients``, H), ``bias`` is (I).
    """

    def __init__(self, hidden_size: int, basis: FrameBasis) -> None:
        super().__init__(hidden_size, basis.num_coefficients)
        self.bias = nn.Parameter(torch.zeros(basis.frame_size))
        self.basis = basis

    def forward(self, h: Tensor) -> Tensor:
        """Return frames (..., I) for h (..., H), as logits or values."""
        # Under autocast the sum with a float32 bias is float32, the dtype that the loss needs.
        return self.basis.pixels(F.linear(h, self.weight)) + self.bias


def make_basis(
    basis: Basis, basis_size: int | None, frame_shape: Sequence[int] | None, input_size: int
) -> FrameBasis | None:
    """Check the arguments of a video model, and make its basis; None for pixels.

    Args:
        basis: "pixels" or "dct".
        basis_size: K; None: half of the shorter side of a frame. Not read for pixels.
        frame_shape: (height, width) or (height, width, channels); None: square, of one channel.
            Not read for pixels.
        input_size: I, number of values in a frame.

    Raises:
        ValueError: an argument is none of these, or they do not fit one another.
    """
    if basis not in get_args(Basis):
        raise ValueError(f"basis: expected 'pixels' or 'dct', got {basis!r}")
    if basis == "pixels":
        return None
    side = math.isqrt(input_size)
    if frame_shape is None and side * side != input_size:
        raise ValueError(
            f"frame_shape: expected (height, width), since input_size={input_size} is no square of"
            " an integer, got None"
        )
    shape = (side, side) if frame_shape is None else tuple(frame_shape)
    if len(shape) not in (2, 3) or min(shape) < 1 or math.prod(shape) != input_size:
        raise ValueError(
            "frame_shape: expected (height, width) or (height, width, channels) with the product"
            f" input_size={input_size}, got {shape}"
        )
    shorter = min(shape[:2])
    size = max(shorter // 2, 1) if basis_size is None else basis_size
    if not 1 <= size <= shorter:
        raise ValueError(
            f"basis_size: expected 1 to {shorter}, the shorter side of a frame, got {size}"
        )
    return FrameBasis(shape, size)


def dense_weights(weights: Mapping[str, Tensor], basis: FrameBasis) -> dict[str, Tensor]:
    """Return the ``state_dict`` of pixels that does the same as one of coefficients.

    Args:
        weights: the ``state_dict`` of a video model or an encoder with this basis.
        basis: the basis.
    """
    dense = dict(weights)
    with torch.autocast(basis.rows.device.type, enabled=False):  # it would round them to bfloat16
        for name, weight in weights.items():
            if name.endswith("weight_ih_l0"):  # its product with coefficients(x) is pixels(it) @ x
                dense[name] = basis.pixels(weight)
            elif name.endswith("readout.weight"):
                dense[name] = basis.pixels(weight.T).T.contiguous()
    return dense


def _low_pass(size: int, length: int) -> Tensor:
    """Return the matrix (size, length) that keeps the lowest frequencies of an axis, in float64."""
    return cosines(size, size).T @ cosines(size, length)


def cosines(size: int, length: int) -> Tensor:
    """Return the first rows of the orthonormal DCT-II matrix, (size, length), in float64."""
    k = torch.arange(size, dtype=torch.float64, device="cpu").unsqueeze(1)
    places = torch.arange(length, dtype=torch.float64, device="cpu") + 0.5
    matrix = math.sqrt(2 / length) * torch.cos(math.pi / length * k * places)
    matrix[0] *= math.sqrt(0.5)
    return matrix
