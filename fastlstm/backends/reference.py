"""The LSTM in plain torch: right by definition, and slow.

Every other backend is tested against this file in float64. It is built from differentiable torch
operations only, so autograd gives its gradients of every order.

Equations (Graves 2013, as used by Srivastava et al. 2015; without ``weight_ch`` they are
``torch.nn.LSTM``'s, where a_* is the sum of the input and the recurrent projection)::

    i_t = sigmoid(a_i + w_ci * c_{t-1})
    f_t = sigmoid(a_f + w_cf * c_{t-1})
    g_t = tanh(a_g)
    c_t = f_t * c_{t-1} + i_t * g_t
    o_t = sigmoid(a_o + w_co * c_t)        the new cell state
    h_t = o_t * tanh(c_t)                  then W_hr h_t where there is a projection

With the options of a call, each of which may be absent::

    a_t = igates_t + norm_hh * normalise(W_hh (hidden_mask * h_{t-1}))    over the 4H gates
    c~_t = clip(f_t * c_{t-1} + i_t * g_t, -cell_clip, cell_clip)         which o's peephole reads
    h~_t = o_t * tanh(gain * normalise(c~_t) + bias)                      norm_c: gain and bias
    c_t = keep_c * c_{t-1} + (1 - keep_c) * c~_t
    h_t = keep_h * h_{t-1} + (1 - keep_h) * h~_t                          h~_t after its projection
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm.call import Call, Results, Wanted
from fastlstm.options import PLAIN_CELLS, STEPWISE, CellOptions
from fastlstm.problem import Problem

CHECKPOINTS = False


def why_not(problem: Problem) -> str | None:
    """Why this backend cannot run ``problem``: it can run every LSTM, on any device."""
    return None


def lstm_step(
    igates: Tensor,
    weight_hh: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight_ch: Tensor | None = None,
    weight_hr: Tensor | None = None,
    options: CellOptions = PLAIN_CELLS,
) -> tuple[Tensor, Tensor]:
    """One time step: igates (B, 4H), hx (B, P), cx (B, H) to the next (hx, cx).

    ``options`` are those of the group and the step: hidden_mask (B, P), keep_h (B, P) ...
    """
    hidden_mask, keep_h, keep_c, norm_hh, norm_c, cell_clip = options
    hgates = (hx if hidden_mask is None else hidden_mask * hx) @ weight_hh.t()
    if norm_hh is not None:
        hgates = F.layer_norm(hgates, norm_hh.shape, norm_hh)
    i, f, g, o = (igates + hgates).chunk(4, dim=-1)
    if weight_ch is not None:
        w_ci, w_cf, w_co = weight_ch.chunk(3)
        i, f = i + w_ci * cx, f + w_cf * cx
    cy = f.sigmoid() * cx + i.sigmoid() * g.tanh()
    if cell_clip:
        cy = cy.clamp(-cell_clip, cell_clip)
    if weight_ch is not None:
        o = o + w_co * cy
    squashed = cy if norm_c is None else F.layer_norm(cy, norm_c.shape[1:], norm_c[0], norm_c[1])
    hy = o.sigmoid() * squashed.tanh()
    hy = hy if weight_hr is None else hy @ weight_hr.t()
    hy = hy if keep_h is None else keep_h * hx + (1 - keep_h) * hy
    return hy, cy if keep_c is None else keep_c * cx + (1 - keep_c) * cy


def project(
    input: Tensor,
    weight_ih: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
) -> Tensor:
    """igates (T, B, G, 4H) of x (T, B, I), which all groups share, or (T, B, G, I)."""
    groups = []
    for group, weight in enumerate(weight_ih):
        x = input if input.dim() == 3 else input[:, :, group]
        igates = x @ weight.t()
        for bias in (bias_ih, bias_hh):
            igates = igates + bias[group] if bias else igates
        groups.append(igates)
    return torch.stack(groups, dim=2)


def forward(call: Call, wanted: Wanted | None = None) -> Results:
    """Every output of every group over every time step, whatever is ``wanted``, but no reserve."""
    input, weights, hx, cx, (reverse, lengths, batch_sizes, reset), options = call
    if batch_sizes is not None:  # by way of a padded batch
        there, index = _places(batch_sizes.to(input.device))
        padded_layout = call.layout._replace(lengths=there.sum(0), batch_sizes=None)
        if options is not None:
            options = options.map(lambda name, t: t[index] if name in STEPWISE else t)
        padded = forward(call._replace(input=input[index], layout=padded_layout, options=options))
        return Results(padded.y[there], padded.hy, padded.cy, padded.cells[there])
    igates = input
    if weights.weight_ih:
        igates = project(input, weights.weight_ih, weights.bias_ih, weights.bias_hh)
    T, _, G, _ = igates.shape
    everything: list[tuple[Tensor, ...]] = []
    for group in range(G):
        steps = igates[:, :, group].unbind()
        h, c = hx[group], cx[group]
        y: list[Tensor] = [h] * T
        cells: list[Tensor] = [c] * T
        for t in reversed(range(T)) if reverse[group] else range(T):
            if reset is not None:
                afresh = _starts_afresh(t, reverse[group], lengths, reset)
                h, c = torch.where(afresh, 0.0, h), torch.where(afresh, 0.0, c)
            h_t, c_t = lstm_step(
                steps[t],
                weights.weight_hh[group],
                h,
                c,
                weights.weight_ch[group] if weights.weight_ch else None,
                weights.weight_hr[group] if weights.weight_hr else None,
                PLAIN_CELLS if options is None else options.at(t, group),
            )
            if lengths is None:
                h, c = h_t, c_t
                y[t], cells[t] = h, c
            else:  # past its length a row keeps its state and emits zero
                active = (t < lengths).unsqueeze(1)
                h, c = torch.where(active, h_t, h), torch.where(active, c_t, c)
                y[t], cells[t] = torch.where(active, h_t, 0.0), torch.where(active, c_t, 0.0)
        everything.append((torch.stack(y), h, c, torch.stack(cells)))
    ys, hy, cy, all_cells = zip(*everything, strict=True)
    return Results(torch.stack(ys, 2), torch.stack(hy), torch.stack(cy), torch.stack(all_cells, 2))


def _starts_afresh(t: int, reverse: bool, lengths: Tensor | None, reset: Tensor) -> Tensor:
    """(B, 1): where a group drops its state before step t.

    A mark at step t means that no state crosses between t - 1 and t, in either direction. A mark at
    step 0 drops hx and cx of a group that reads forward; no mark drops those of a reversed group.
    """
    T, B = reset.shape
    border = t + 1 if reverse else t
    if border == T:
        return reset.new_zeros(B, 1)
    within = True if lengths is None else border < lengths
    return (reset[border] & within).unsqueeze(1)


def _places(batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """Find which (t, b) a PackedSequence has, and in which row of its data; both (T, B)."""
    row = torch.arange(int(batch_sizes[0]), device=batch_sizes.device)
    there = row < batch_sizes.unsqueeze(1)
    first = batch_sizes.cumsum(0) - batch_sizes
    return there, torch.where(there, first.unsqueeze(1) + row, 0)
