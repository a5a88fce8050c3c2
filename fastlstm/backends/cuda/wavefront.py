"""All layers of one LSTM as a wavefront by ``csrc/cuda``: one persistent launch for each pass.

A layer computes a step while the layer below it computes the next one (Appleyard et al., 2016).
There are T + L - 1 barriers in the place of L * T, h goes from layer to layer without a matrix
product between them, and the blocks of all layers work at the same time. The W_hh of all layers,
and the W_ih of all but the first, must fit on the multiprocessors together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlstm.backends import gpu
from fastlstm.backends.cuda import recurrence, ways
from fastlstm.backends.gpu import matmuls
from fastlstm.call import Call, Gradients, Needs, OutputGradients, Results, Saved
from fastlstm.problem import Problem


def why_not(kernels: Any, problem: Problem, direction: str) -> str | None:
    """Why the layers of ``problem`` run one after the other in that pass; None if they do not."""
    p = problem
    apart = {
        "each head of a layer is a group of its own": p.num_heads > 1,
        "a layer's second direction begins at the last step of the layer below": p.G > 1,
        "there is a single step": p.T == 1,
        "cells of every step are asked for": p.return_all_cells,
        "checkpoints are kept of one layer at a time": p.checkpointed,
        "there is dropout between them": p.dropout,
        "a PackedSequence is padded around each": p.is_packed_sequence,
        "torch.func transforms the call": p.transformed,
    }
    for reason, holds in apart.items():
        if holds:
            return reason
    sizes = (recurrence.DTYPES[p.dtype], p.B, p.L, p.H)
    return _why_slower(kernels, direction, sizes, p.T, gpu.precision(), gpu.number(p))


@lru_cache(maxsize=1024)
def _why_slower(
    kernels: Any,
    direction: str,
    sizes: tuple[str, int, int, int],
    T: int,
    precision: str,
    number: int,
) -> str | None:
    """Why a wavefront does not fit, or is expected to take longer than its layers; None if not.

    The model does not count the time of the products between layers.
    """
    dtype, B, L, H = sizes
    plan, reason = recurrence.best_plan(kernels, direction, sizes, precision, number, True)
    if plan is None:
        return reason
    how = {"products": precision, "plan": plan, "costs": kernels.costs()}
    step = kernels.step_ns(direction, *sizes, layered=True, **how)
    wave = ways.persistent_ns(ways.Pass(direction, *sizes, T), plan, step, layered=True)
    one = ways.Pass(direction, dtype, B, 1, H, T)
    apart = L * min(recurrence.expected_ns(kernels, one, precision, number))
    if wave < apart:
        return None
    wave, apart = (ns / 1e3 / T for ns in (wave, apart / L))
    return f"a model expects {wave:.1f} us for a step of all layers, {apart:.1f} us for one of each"


def forward(kernels: Any, call: Call, train: bool) -> tuple[Results, Tensor]:
    """Run all layers of an LSTM of one direction, which reads forward.

    Args:
        kernels: the compiled module, or its emulation.
        call: its groups are the layers: all but the first read the y of the one before them, and
            their weight_ih is (4H, H).
        train: keep what the backward pass needs.

    Returns:
        y (T, B, H) of the last layer, hy and cy (L, B, H), and reserve (L, T, B, 5H); and y of the
        other layers, (L - 1, T, B, H). The last two are empty unless ``train``.
    """
    (T, B), (L, _, H) = call.input.shape[:2], call.cx.shape
    new_empty = call.input.new_empty
    y, hy, cy = new_empty(T, B, H), new_empty(L, B, H), new_empty(L, B, H)
    below = new_empty(L - 1, T, B, H) if train else new_empty(0)
    reserve = new_empty(L, T, B, 5 * H) if train else new_empty(0)
    weight_ih, bias = gpu.stack(call.weights.weight_ih[1:]), _bias(call)
    about_layers = _about_layers(weight_ih) | {
        "bias": (bias.data_ptr(), bias.stride(0)),
        "y_below": below.data_ptr() if train else 0,
    }
    results = Results(y, hy, cy, new_empty(0), reserve)
    launch, igates = (
        _launch(kernels, "forward", y, call),
        matmuls.project(_layer(call, 0, call.input)),
    )
    recurrence.forward(launch, igates, call, results, about_layers)
    return results, below


def backward(
    kernels: Any, call: Call, saved: Saved, below: Tensor, grads: OutputGradients, needs: Needs
) -> Gradients:
    """Run the backward pass of :func:`forward`.

    Layers go one after the other where this pass is expected to be faster so.

    Args:
        kernels, call: as in :func:`forward`.
        saved, below: as :func:`forward` returned them.
        grads: dy (T, B, H) of the last layer, dhy and dcy (L, B, H).
        needs: which gradients are asked for.

    Returns:
        The gradients; those of weights are over the layers, and weight_ih's is a list, since the
        first layer's has another size.
    """
    y, (T, B, H), L = saved.y, saved.y.shape, len(saved.reserve)
    sizes = (recurrence.DTYPES[y.dtype], B, L, H)
    number = y.device.index if y.device.type == "cuda" else 0
    slower = _why_slower(kernels, "backward", sizes, T, gpu.precision(), number)
    run = _recur_together if slower is None else _recur_one_by_one
    ys = [*below, y]
    dgates, dbias, dweight_ch, dhx, dcx = run(kernels, call, ys, saved.reserve, grads, needs)
    calls = [_layer(call, layer, x) for layer, x in enumerate([call.input, *below])]
    nothing = y.new_empty(0)
    dweight_ih: Any = nothing
    if needs.weight_ih:
        dweight_ih = [matmuls.dweight_ih(d, one)[0] for d, one in zip(dgates, calls, strict=True)]
    dweight_hh = nothing
    if needs.weight_hh:
        each = zip(dgates, ys, calls, strict=True)
        dweight_hh = torch.cat([matmuls.dweight_hh(d, h.unsqueeze(2), one) for d, h, one in each])
    return Gradients(
        input=matmuls.dinput(dgates[0], calls[0]) if needs.input else nothing,
        weight_ih=dweight_ih,
        bias=dbias,
        weight_hh=dweight_hh,
        weight_ch=dweight_ch,
        weight_hr=nothing,
        hx=dhx,
        cx=dcx,
    )


def _layer(call: Call, layer: int, x: Tensor) -> Call:
    """The call of one layer, which reads x."""
    own = slice(layer, layer + 1)
    layout = call.layout._replace(reverse=[False])
    return Call(x, call.weights.of(own), call.hx[own], call.cx[own], layout)


def _recur_together(
    kernels: Any,
    call: Call,
    ys: Sequence[Tensor],
    reserve: Tensor,
    grads: OutputGradients,
    needs: Needs,
) -> tuple[Any, ...]:
    """A list of the layers' dgates (T, B, 1, 4H); dbias, dweight_ch or empty; dhx and dcx."""
    launch, saved = _launch(kernels, "backward", ys[-1], call), Saved(ys[-1], reserve)
    weight_ih = gpu.stack(call.weights.weight_ih[1:])
    found = recurrence.backward(launch, call, saved, grads, needs, _about_layers(weight_ih))
    return found[0].split(1, 2), *found[1:]


def _about_layers(weight_ih: Tensor | None) -> dict[str, Any]:
    """The kernels' arguments about layers; the caller keeps weight_ih alive."""
    assert weight_ih is not None
    return {"layered": True, "weight_ih": (weight_ih.data_ptr(), weight_ih.stride(0))}


def _recur_one_by_one(
    kernels: Any,
    call: Call,
    ys: Sequence[Tensor],
    reserve: Tensor,
    grads: OutputGradients,
    needs: Needs,
) -> tuple[Any, ...]:
    """Return what :func:`_recur_together` returns, from one launch a layer, the last one first."""
    dy = None if grads.dy is None else grads.dy.unsqueeze(2)
    found: list[tuple[Tensor, ...]] = []
    for layer in reversed(range(len(ys))):
        own = slice(layer, layer + 1)
        one = _layer(call, layer, ys[layer - 1] if layer else call.input)
        saved = Saved(ys[layer].unsqueeze(2), reserve[layer].unsqueeze(2))
        launch = recurrence.prepare(kernels, "backward", saved.y, one.layout)
        dhy, dcy = (None if d is None else d[own] for d in (grads.dhy, grads.dcy))
        own_grads = OutputGradients(dy, dhy, dcy)
        found.insert(0, recurrence.backward(launch, one, saved, own_grads, needs))
        if layer:
            dy = matmuls.dinput(found[0][0], one).unsqueeze(2)
    dgates, *others = zip(*found, strict=True)
    return list(dgates), *(torch.cat(tensors) for tensors in others)


def _launch(kernels: Any, direction: str, y: Tensor, call: Call) -> recurrence.Launch:
    layers = len(call.weights.weight_hh)
    launch = recurrence.prepare(kernels, direction, y, call.layout, layers)
    assert launch.plan is not None  # or the layers would not be here
    return launch


def _bias(call: Call) -> Tensor:
    """The sums of both biases of all layers but the first, (L - 1, 4H)."""
    biases = (call.weights.bias_ih, call.weights.bias_hh)
    stacked = [torch.stack(tuple(bias[1:])) for bias in biases if bias]
    if not stacked:
        return call.input.new_zeros(len(call.weights.weight_hh) - 1, 4 * call.cx.shape[2])
    return sum(stacked[1:], stacked[0])
