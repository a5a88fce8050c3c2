"""The matrix products around a recurrence, over the whole sequence at once, by torch.

They serve backends whose kernels run the recurrence only: igates before it, and after it the
gradients of x and of both weight matrices from dgates (T, B, G, 4H), the gradient of igates. On a
GPU they are cuBLAS. Calls here are padded, not packed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastlstm.backends import gpu
from fastlstm.call import Call


def project(call: Call) -> Tensor:
    """igates (T, B, G, 4H); the input itself where it is igates already."""
    input, weights = call.input, call.weights
    weight_ih = gpu.stack(weights.weight_ih)
    if weight_ih is None:
        return input
    T, B = input.shape[:2]
    G, four_h, I = weight_ih.shape
    biases = [
        stacked
        for bias in (weights.bias_ih, weights.bias_hh)
        if (stacked := gpu.stack(bias)) is not None
    ]
    bias = sum(biases[1:], biases[0]) if biases else None
    if input.dim() == 3:
        bias = None if bias is None else bias.flatten()
        igates = torch.nn.functional.linear(input, weight_ih.flatten(0, 1), bias)
        return igates.view(T, B, G, four_h)
    x = input.permute(2, 0, 1, 3).reshape(G, T * B, I)
    if bias is None:
        igates = torch.bmm(x, weight_ih.transpose(1, 2))
    else:
        igates = torch.baddbmm(bias[:, None], x, weight_ih.transpose(1, 2))
    return igates.view(G, T, B, four_h).permute(1, 2, 0, 3)


def dinput(dgates: Tensor, call: Call) -> Tensor:
    """dgates W_ih, summed over the groups where they share x; dgates where the input is igates."""
    weight_ih = call.weights.weight_ih
    if not weight_ih:
        return dgates
    T, B, G, four_h = dgates.shape
    if call.input.dim() == 3:
        return dgates.flatten(2) @ torch.cat(tuple(weight_ih))
    rows = dgates.view(T * B, G, four_h).transpose(0, 1)
    return torch.bmm(rows, torch.stack(tuple(weight_ih))).transpose(0, 1).view(call.input.shape)


def dweight_ih(dgates: Tensor, call: Call) -> Tensor:
    """dgates^T x, (G, 4H, I)."""
    T, B, G, four_h = dgates.shape
    input, lengths = call.input, call.layout.lengths
    if lengths is not None:  # dgates are zero past a row's length, but x may be anything
        active = torch.arange(T, device=lengths.device)[:, None] < lengths
        input = torch.where(active.view(T, B, *[1] * (input.dim() - 2)), input, 0.0)
    rows = dgates.view(T * B, G * four_h)
    if input.dim() == 3:
        return (rows.t() @ input.reshape(T * B, -1)).view(G, four_h, -1)
    x = input.permute(2, 0, 1, 3).reshape(G, T * B, -1)
    return torch.bmm(rows.view(T * B, G, four_h).permute(1, 2, 0), x)


def dweight_hh(dgates: Tensor, y: Tensor, call: Call) -> Tensor:
    """dgates^T h', (G, 4H, H); h' is y of the step before, and hx at a row's first step.

    At a row's first step h' is hx, which has a product of its own. At a reset h' is zero: a mark at
    step t means that no state crosses from t - 1 to t, nor, in a reversed group, from t to t - 1.
    Where h' is masked in its product with W_hh, so it is here.
    """
    T, B, G, H = y.shape
    reverse, lengths, _, reset = call.layout
    hx, mask = call.hx, None if call.options is None else call.options.hidden_mask
    if mask is not None:
        y, hx = y * mask.transpose(0, 1), hx * mask
    gradients = y.new_empty(G, 4 * H, H)
    for group, backwards in enumerate(reverse):
        d, h = dgates[:, :, group], y[:, :, group]
        later, h_prev = (d[:-1], h[1:]) if backwards else (d[1:], h[:-1])
        first, h_first = d[-1] if backwards else d[0], hx[group]
        if reset is not None:
            h_prev = h_prev.masked_fill(reset[1:, :, None], 0.0)
            h_first = h_first if backwards else h_first.masked_fill(reset[0, :, None], 0.0)
        if backwards and lengths is not None:
            start = lengths.long().clamp(1, T) - 1
            first = d[start, torch.arange(B, device=d.device)]
        torch.mm(first.t(), h_first, out=gradients[group])
        gradients[group].addmm_(later.flatten(0, 1).t(), h_prev.flatten(0, 1))
    return gradients
