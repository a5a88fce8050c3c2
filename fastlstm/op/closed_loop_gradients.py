"""The backward pass of a decoder in closed loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm.backends import reference
from fastlstm.call import (
    Call,
    Gradients,
    LSTMWeights,
    Needs,
    OutputGradients,
    Saved,
    SequenceLayout,
)
from fastlstm.op import functorch, second_order
from fastlstm.op.closed_loop_steps import ClosedLoop, group_weights, run_steps

_IGATES_ONLY = Needs(True, False, False, False, False, False)


class KeptLayer(NamedTuple):
    """What the forward pass keeps of one layer."""

    h: Tensor
    """(steps, B, H)"""
    c: Tensor
    """(steps, B, H)"""
    reserve: Tensor
    """(steps, B, 1, 5H)"""


class Backward(NamedTuple):
    """The backward pass on a fused backend: what it computes from."""

    loop: ClosedLoop
    backend: ModuleType
    inputs: Tensor
    """(steps, B, K) what layer 0 read"""
    readouts: Tensor
    """(steps, B, I)"""
    kept: Sequence[KeptLayer]
    """one a layer"""
    needs: Any
    """a ClosedLoop with flags in the place of tensors: which gradients are asked for"""

    def gradients(self, grad: Tensor) -> list[Tensor | None]:
        """The gradients of ``loop.tensors`` from that of the read-outs (steps, B, I)."""
        if self.loop.options.feedback_gradient and len(grad) > 1:
            found = self._step_by_step(grad)
        else:
            found = self._all_steps_at_once(grad)
        return found.tensors

    def _all_steps_at_once(self, grad: Tensor) -> ClosedLoop:
        """No gradient goes through the emitted frames: what layer 0 read is a constant."""
        loop, needs = self.loop, self.needs
        dcoefficients = self._coefficients(grad)
        assert loop.readout_weight is not None
        dy = dcoefficients @ loop.readout_weight
        dhx, dcx = torch.empty_like(loop.hx), torch.empty_like(loop.cx)
        dweights = list(loop.weights)
        for layer in reversed(range(len(dweights))):
            asked = needs.weights[layer]
            found = self.backend.backward(
                self._call(layer),
                Saved(self.kept[layer].h.unsqueeze(2), self.kept[layer].reserve),
                OutputGradients(dy.unsqueeze(2)),
                Needs(
                    layer > 0 or self._reads_true_frames,
                    asked.weight_ih,
                    asked.bias_ih,
                    asked.weight_hh,
                    bool(asked.weight_ch),
                    False,
                ),
            )
            dy, dhx[layer], dcx[layer] = found.input, found.hx[0], found.cx[0]
            parts = (found.weight_ih, found.weight_hh, found.bias, found.weight_ch)
            d_ih, d_hh, dbias, d_ch = (part[0] if part.numel() else None for part in parts)
            dweights[layer] = _weights(d_ih, d_hh, dbias, d_ch)
        dx = dy if self._reads_true_frames else None
        return self._collected((dhx, dcx), dweights, (grad, dcoefficients), dx)

    def _step_by_step(self, grad: Tensor) -> ClosedLoop:
        """From the last step to the first, so that a frame's gradient reaches the step before."""
        loop = self.loop
        assert loop.readout_weight is not None
        layers, factor = range(len(loop.weights)), self._frame_factor()
        dhx: list[Tensor | None] = [None] * len(layers)
        dcx: list[Tensor | None] = [None] * len(layers)
        digates: list[list[Tensor]] = [[] for _ in layers]
        dreadouts: list[Tensor] = []
        dcoefficients: list[Tensor] = []
        dx: list[Tensor] = []  # of the steps after, the last one first
        for t in reversed(range(len(grad))):
            dreadout = grad[t]
            if t < len(grad) - 1:
                dreadout = torch.addcmul(dreadout, self._pixels(dx[-1]), factor[t])
            dreadouts.append(dreadout)
            dcoefficients.append(self._coefficients(dreadout))
            dy = dcoefficients[-1] @ loop.readout_weight
            for layer in reversed(layers):
                found = self._step_backward(layer, t, OutputGradients(dy, dhx[layer], dcx[layer]))
                dhx[layer], dcx[layer] = found.hx, found.cx
                digates[layer].append(found.input[0, :, 0])
                if layer or t:
                    dy = digates[layer][-1] @ loop.weights[layer].weight_ih
            if t:
                dx.append(dy)
        dweights = [self._weight_gradients(n, _in_order(digates[n])) for n in layers]
        of_readouts = _in_order(dreadouts), _in_order(dcoefficients)
        dinput = _in_order([*dx, torch.zeros_like(dx[0])]) if self._reads_true_frames else None
        states: Any = tuple(torch.cat(d) for d in (dhx, dcx))  # type: ignore[arg-type]
        return self._collected(states, dweights, of_readouts, dinput)

    def _step_backward(self, layer: int, t: int, grads: OutputGradients) -> Gradients:
        """The backward pass of one step of a layer; of its input in the form of igates alone."""
        loop, kept = self.loop, self.kept[layer]
        igates = kept.reserve[t, :, 0, : 4 * kept.h.shape[2]]  # only their size is read
        states = (kept.h[t - 1], kept.c[t - 1]) if t else (loop.hx[layer], loop.cx[layer])
        dy, dhy, dcy, _ = grads
        assert dy is not None
        found: Gradients = self.backend.backward(
            loop.igates_step(layer, igates, *states),
            Saved(kept.h[t : t + 1].unsqueeze(2), kept.reserve[t : t + 1]),
            OutputGradients(dy[None, :, None], dhy, dcy),
            _IGATES_ONLY,
        )
        return found

    def _weight_gradients(self, layer: int, digates: Tensor) -> LSTMWeights:
        """One product over all steps for each weight of a layer, from (steps, B, 4H)."""
        loop, asked, (h, c, _) = self.loop, self.needs.weights[layer], self.kept[layer]
        d_ih = d_hh = dbias = d_ch = None
        if asked.weight_ih:
            x = self.kept[layer - 1].h if layer else self.inputs
            # The first step reads zeros.
            d_ih = _product(digates, x) if layer else _product(digates[1:], x[1:])
        if asked.weight_hh:
            d_hh = _product(digates, torch.cat([loop.hx[layer : layer + 1], h[:-1]]))
        if asked.bias_ih:
            dbias = digates.sum((0, 1))
        if asked.weight_ch:
            before = torch.cat([loop.cx[layer : layer + 1], c[:-1]])
            di, df, _, do = digates.chunk(4, dim=2)
            d_ch = torch.cat(
                [(d * x).sum((0, 1)) for d, x in ((di, before), (df, before), (do, c))]
            )
        return _weights(d_ih, d_hh, dbias, d_ch)

    def _collected(
        self,
        dstates: tuple[Tensor, Tensor],
        dweights: Sequence[LSTMWeights],
        of_readouts: tuple[Tensor, Tensor],
        dx: Tensor | None,
    ) -> ClosedLoop:
        """The gradients in the place of the loop's tensors.

        Args:
            dstates, dweights: of hx and cx, and of the layers' weights.
            of_readouts: those of the read-outs, in pixels and in coefficients.
            dx: that of layer 0's input, if the true frames' is asked for.
        """
        loop, needs = self.loop, self.needs
        dreadouts, dcoefficients = of_readouts
        dtrue = None
        if dx is not None and loop.own is not None and loop.true_frames is not None:
            dtrue = torch.zeros_like(loop.true_frames)
            dtrue[:-1] = self._pixels(dx[1:]).masked_fill(loop.own[:-1], 0)
        dweight = dbias = None
        if needs.readout_weight:
            dweight = _product(dcoefficients, self.kept[-1].h)
        if needs.readout_bias:
            dbias = dreadouts.sum((0, 1))
        return ClosedLoop(*dstates, dweights, dweight, dbias, dtrue, None, loop.options)

    def _frame_factor(self) -> Tensor:
        """(steps - 1, B, I), or sizes that broadcast to it: the derivative of the frames that the
        next step reads with respect to the read-outs, times ``feedback_gradient``.
        """
        options, own, readouts = self.loop.options, self.loop.own, self.readouts[:-1]
        if options.is_binary:
            frames = readouts.sigmoid()
            factor = (1 - frames).mul_(frames).mul_(options.feedback_gradient)
        else:
            factor = torch.full_like(readouts[:, :1, :1], options.feedback_gradient)
        return factor if own is None else factor * own[:-1]

    @property
    def _reads_true_frames(self) -> bool:
        """Whether the gradient of the true frames is asked for."""
        return bool(self.needs.true_frames) and self.loop.own is not None

    def _call(self, layer: int) -> Call:
        """All steps of a layer as one call."""
        x, loop = self.kept[layer - 1].h if layer else self.inputs, self.loop
        states = loop.hx[layer : layer + 1], loop.cx[layer : layer + 1]
        return Call(x, group_weights(loop.weights[layer]), *states, SequenceLayout([False]))

    def _coefficients(self, frames: Tensor) -> Tensor:
        basis, dtype = self.loop.options.basis, self.inputs.dtype
        return frames if basis is None else basis.coefficients(frames.to(dtype))

    def _pixels(self, coefficients: Tensor) -> Tensor:
        basis = self.loop.options.basis
        return coefficients if basis is None else basis.pixels(coefficients)


def _in_order(reversed_steps: list[Tensor]) -> Tensor:
    return torch.stack(reversed_steps[::-1])


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(M, N): the sum over steps and rows of products of (steps, B, M) and (steps, B, N)."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)


def _weights(d_ih: Any, d_hh: Any, dbias: Any, d_ch: Any) -> LSTMWeights:
    return LSTMWeights(d_ih, d_hh, bias_ih=dbias, weight_ch=d_ch)


def differentiable_gradients(
    loop: ClosedLoop, grad: Tensor, is_batched: bool
) -> list[Tensor | None]:
    """The backward pass in plain torch, which can be differentiated any number of times.

    Args:
        loop: as in the forward pass.
        grad: of the read-outs.
        is_batched: whether ``torch.autograd.grad(is_grads_batched=True)`` made ``grad``.
    """
    everything = loop.tensors
    there = [n for n, tensor in enumerate(everything) if tensor is not None]

    def spread(tensors: Sequence[Tensor]) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * len(everything)
        for n, tensor in zip(there, tensors, strict=True):
            found[n] = tensor
        return found

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        new = loop.with_tensors(spread(tensors))

        def step(layer: int, x: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
            results = reference.forward(new.step(layer, x, h, c))
            return results.hy[0], results.cy[0]

        return (torch.stack(run_steps(new, step)[0]),)

    def backward(grad: Tensor) -> tuple[Tensor, ...]:
        given = [tensor for tensor in everything if tensor is not None]
        return second_order.pull_back(forward, given, [grad])

    return spread(functorch.through_vmap(backward, [grad]) if is_batched else backward(grad))
