"""A decoder that reads the frames which it emits (in closed loop), in differentiable torch code.

At step t the L layers make one step, and the read-out gives logits (or values) r_t. The frame of
step t is sigmoid(r_t), or r_t. The next step reads that frame, or the true frame of step t where a
mask says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.call import Call, GroupWeights, LSTMWeights, SequenceLayout


class ImageBasis(Protocol):
    """A fixed orthonormal basis of images: two linear maps, the adjoints of one another."""

    def coefficients(self, frames: Tensor) -> Tensor:
        """Return the coefficients (..., K) of frames (..., I)."""

    def pixels(self, coefficients: Tensor) -> Tensor:
        """Return the frames (..., I) that have these coefficients (..., K)."""

    def in_dtype(self, dtype: torch.dtype) -> ImageBasis:
        """Return the same basis for tensors of another dtype."""


class ClosedLoopOptions(NamedTuple):
    """What a closed loop depends on beside tensors."""

    steps: int
    is_binary: bool
    """frames are sigmoid(r), else r"""
    feedback_gradient: float = 0.0
    """factor on the gradient that comes back through an emitted frame"""
    basis: ImageBasis | None = None
    """weight_ih of layer 0 reads, and the read-out's weight gives, coefficients of this basis"""
    readout: Callable[[Tensor], Tensor] | None = None
    """a read-out that is more than its weight and bias, such as a module with hooks"""


class ClosedLoop(NamedTuple):
    """A decoder in closed loop: all that its read-outs are a function of."""

    hx: Tensor
    """(L, B, H)"""
    cx: Tensor
    """(L, B, H)"""
    weights: Sequence[LSTMWeights]
    """one entry a layer, with bias_ih and without bias_hh; layer 0 reads frames"""
    readout_weight: Tensor | None
    """(I, H); with a basis (K, H); None: ``options.readout`` has it"""
    readout_bias: Tensor | None
    """(I)"""
    true_frames: Tensor | None
    """(steps, B, I); None: there are none"""
    own: Tensor | None
    """(steps, B, 1) true where the next step reads the emitted frame, not the true one; None: all
    are true"""
    options: ClosedLoopOptions

    @property
    def tensors(self) -> list[Tensor | None]:
        """The tensors that have gradients."""
        states = (self.hx, self.cx, self.readout_weight, self.readout_bias, self.true_frames)
        layers = ((w.weight_ih, w.weight_hh, w.bias_ih, w.weight_ch) for w in self.weights)
        return [*states, *(tensor for layer in layers for tensor in layer)]

    def with_tensors(self, tensors: Iterable[Any]) -> ClosedLoop:
        """The same loop with others in the place of :attr:`tensors`."""
        hx, cx, weight, bias, true_frames, *parameters = tensors
        weights = [
            LSTMWeights(w_ih, w_hh, bias_ih=b, weight_ch=w_ch)
            for w_ih, w_hh, b, w_ch in zip(*(parameters[n::4] for n in range(4)), strict=True)
        ]
        return ClosedLoop(hx, cx, weights, weight, bias, true_frames, self.own, self.options)

    def step(self, layer: int, x: Tensor | None, h: Tensor, c: Tensor) -> Call:
        """One step of a layer as a call: x (B, K), or None for zeros, h and c (B, H).

        In 16 bits PyTorch multiplies x. On one core of Zen 4 with 32 rows of 4096 values and 512
        units a step takes 4.6 ms then, and 5.8 where the kernels do; in float32 10 and 7.3.
        """
        weights = self.weights[layer]
        if x is None or x.element_size() < 4:
            bias = weights.bias_ih
            assert bias is not None
            igates = bias.expand(h.shape[0], -1)
            if x is not None:
                igates = F.linear(x, weights.weight_ih, bias)
            return self.igates_step(layer, igates, h, c)
        layout = SequenceLayout([False])
        return Call(x[None], group_weights(weights), h.unsqueeze(0), c.unsqueeze(0), layout)

    def igates_step(self, layer: int, igates: Tensor, h: Tensor, c: Tensor) -> Call:
        """One step of a layer as a call without an input product: igates (B, 4H)."""
        weights = group_weights(self.weights[layer])._replace(weight_ih=(), bias_ih=())
        states = h.unsqueeze(0), c.unsqueeze(0)
        return Call(igates[None, :, None], weights, *states, SequenceLayout([False]))


def group_weights(weights: LSTMWeights) -> GroupWeights:
    """The parameters of a layer as those of a single group."""
    return GroupWeights(*[() if parameter is None else (parameter,) for parameter in weights])


Step = Callable[[int, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor]]
"""One step of a layer: its number, x (B, K) or None for zeros, h and c (B, H) to (h, c)."""


def run_steps(loop: ClosedLoop, step: Step) -> tuple[list[Tensor], list[Tensor]]:
    """Run a decoder in closed loop.

    Returns:
        The read-out (B, I) of every step, and what layer 0 reads from the second step on.
    """
    options, basis = loop.options, loop.options.basis
    h, c = list(loop.hx.unbind()), list(loop.cx.unbind())
    readouts: list[Tensor] = []
    inputs: list[Tensor] = []
    for t in range(options.steps):
        x = inputs[-1] if t else None
        for layer in range(len(h)):
            h[layer], c[layer] = step(layer, x, h[layer], c[layer])
            x = h[layer]
        assert x is not None
        readouts.append(_read_out(loop, x))
        if t == options.steps - 1:
            break
        frame = readouts[t].sigmoid() if options.is_binary else readouts[t]
        frame = frame.to(loop.hx.dtype)  # with a basis logits are wider under autocast
        frame = _scale_gradient(frame, options.feedback_gradient)
        if loop.own is not None and loop.true_frames is not None:
            frame = torch.where(loop.own[t], frame, loop.true_frames[t])
        inputs.append(frame if basis is None else basis.coefficients(frame))
    return readouts, inputs


def _read_out(loop: ClosedLoop, h: Tensor) -> Tensor:
    basis, readout = loop.options.basis, loop.options.readout
    if readout is not None:
        return readout(h)
    assert loop.readout_weight is not None and loop.readout_bias is not None
    if basis is None:
        return F.linear(h, loop.readout_weight, loop.readout_bias)
    return basis.pixels(F.linear(h, loop.readout_weight)) + loop.readout_bias


def _scale_gradient(tensor: Tensor, factor: float) -> Tensor:
    """The same numbers, whose gradient and tangent are multiplied by a factor."""
    if factor == 1 or not torch.is_grad_enabled():
        return tensor
    constant = tensor.detach()
    return constant if factor == 0 else constant + factor * (tensor - constant)
