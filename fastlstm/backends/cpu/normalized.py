"""The kernels of LSTMs with layer norm (``csrc/layer_norm.h``), which other options may accompany.

The input of such a call is projected and normalised already; see ``fastlstm.masks.normalized``.
"""

from __future__ import annotations

from typing import Any

import torch

from fastlstm import _C
from fastlstm.backends import pointers
from fastlstm.call import (
    Call,
    Gradients,
    Needs,
    OutputGradients,
    Results,
    Saved,
    Wanted,
    reserve_width,
)
from fastlstm.options import CellOptions

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_NONE = (0, 0)


def forward(call: Call, wanted: Wanted, isa: str) -> Results:
    """Run a call with ``norm_hh``. Its tensors are materialized, on the CPU."""
    input, hx, cx, dtype = call.input, call.hx, call.cx, call.input.dtype
    G, B, H = cx.shape
    rows, new_empty = call.rows, input.new_empty
    y = new_empty(*rows, G, H) if wanted.y else new_empty(0)
    cells = new_empty(*rows, G, H) if wanted.cells else new_empty(0)
    reserve = new_empty(0)
    if wanted.train:
        reserve = _C.pooled_empty((*rows, G, reserve_width(call)), dtype)
    hy, cy = new_empty(G, B, H), new_empty(G, B, H)
    if hy.numel() == 0:
        return Results(y, hy, cy, cells, reserve)
    input, hx, cx = pointers.unit_stride(input), hx.contiguous(), cx.contiguous()
    arguments, _owners = _arguments(call, isa)
    _C.layer_norm_forward(
        **arguments,
        input=input.data_ptr(),
        input_stride=pointers.outer_strides(input, call.layout.batch_sizes is not None),
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        y=y.data_ptr() if wanted.y else 0,
        hy=hy.data_ptr(),
        cy=cy.data_ptr(),
        cells=cells.data_ptr() if wanted.cells else 0,
        reserve=reserve.data_ptr() if wanted.train else 0,
        checkpoints=0,
        prepacked=0,
        is_prepacked=False,
    )
    return Results(y, hy, cy, cells, reserve)


def backward(call: Call, saved: Saved, grads: OutputGradients, needs: Needs, isa: str) -> Gradients:
    """Run the backward pass of a call with ``norm_hh``."""
    hx, cx, dtype, layout = call.hx, call.cx, call.input.dtype, call.layout
    (G, B, H), norm_c = cx.shape, _options(call).norm_c
    sums = torch.float32 if dtype is torch.bfloat16 else dtype  # in which the kernels add up
    new_empty = cx.new_empty
    dinput = _C.pooled_empty(call.input.shape, dtype) if needs.input else new_empty(0)
    nothing = new_empty(0, dtype=sums)
    dweight_hh = _C.pooled_empty((G, 4 * H, H), sums) if needs.weight_hh else nothing
    dweight_ch = new_empty(G, 3 * H, dtype=sums) if needs.weight_ch else nothing
    dnorm_hh = new_empty(G, 4 * H, dtype=sums)
    dnorm_c = nothing if norm_c is None else new_empty(G, 2, H, dtype=sums)
    dhx, dcx = new_empty(G, B, H), new_empty(G, B, H)
    dweights = (nothing, nothing, dweight_hh, dweight_ch, nothing)
    if cx.numel() == 0:
        for sum_over_rows in (*dweights, dnorm_hh, dnorm_c):
            sum_over_rows.zero_()
        return Gradients(dinput, *dweights, dhx, dcx, dnorm_hh, dnorm_c)
    if call.T == 0:
        dweight_hh.zero_()
    arguments, _owners = _arguments(call, isa)
    is_packed = layout.batch_sizes is not None
    dy, dhy, dcy, dcells = grads
    dy = None if dy is None else pointers.unit_stride(dy)
    dhy, dcy, dcells = (None if d is None else d.contiguous() for d in (dhy, dcy, dcells))
    cx, reserve = cx.contiguous(), saved.reserve.contiguous()
    hx, y = hx.contiguous(), saved.y.contiguous()
    _C.layer_norm_backward(
        **arguments,
        input=0,
        input_stride=(0, 0, 0),
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        dy=pointers.address(dy),
        dy_stride=pointers.outer_strides(dy, is_packed),
        dhy=pointers.address(dhy),
        dcy=pointers.address(dcy),
        dcells=pointers.address(dcells),
        y=y.data_ptr(),
        reserve=reserve.data_ptr(),
        checkpoints=0,
        dinput=dinput.data_ptr() if needs.input else 0,
        dinput_stride=(0, 0, 0),
        dweight_ih=0,
        dbias=0,
        dweight_hh=dweight_hh.data_ptr() if needs.weight_hh else 0,
        dweight_ch=dweight_ch.data_ptr() if needs.weight_ch else 0,
        dweight_hr=0,
        dhx=dhx.data_ptr(),
        dcx=dcx.data_ptr(),
        dnorm_hh=dnorm_hh.data_ptr(),
        dnorm_c=dnorm_c.data_ptr() if norm_c is not None else 0,
    )
    return Gradients(dinput, *dweights, dhx, dcx, dnorm_hh, dnorm_c)


def _options(call: Call) -> CellOptions:
    assert call.options is not None
    return call.options


def _arguments(call: Call, isa: str) -> tuple[dict[str, Any], list[Any]]:
    """The arguments that both passes have, and the owners of the memory."""
    G, B, H = call.cx.shape
    is_packed = call.layout.batch_sizes is not None
    T, about_rows, row_owners = pointers.row_arguments(call)
    dtype = call.input.dtype
    hidden_mask, keep_h, keep_c, norm_hh, norm_c, cell_clip = _options(call)
    whole = [None if t is None else t.contiguous() for t in (hidden_mask, norm_hh, norm_c)]
    keeps = [None if t is None else pointers.unit_stride(t) for t in (keep_h, keep_c)]
    clip = torch.tensor(cell_clip, dtype=torch.float64, device="cpu") if cell_clip else None
    weight_hh, hh_owner = pointers.grid(call.weights.weight_hh)
    weight_ch, ch_owner = pointers.grid(call.weights.weight_ch)
    arguments = dict(
        dtype=_DTYPES[dtype],
        T=T,
        B=B,
        G=G,
        H=H,
        I=0,
        P=0,
        checkpoint_every=0,
        **about_rows,
        weight_ih=_NONE,
        bias_ih=_NONE,
        bias_hh=_NONE,
        weight_hh=weight_hh,
        weight_ch=weight_ch,
        weight_hr=_NONE,
        options=0,  # those of calls without norms
        hidden_mask=pointers.address(whole[0]),
        norm_hh=pointers.address(whole[1]),
        norm_c=pointers.address(whole[2]),
        keep_h=pointers.address(keeps[0]),
        keep_h_stride=pointers.outer_strides(keeps[0], is_packed),
        keep_c=pointers.address(keeps[1]),
        keep_c_stride=pointers.outer_strides(keeps[1], is_packed),
        cell_clip=pointers.address(clip),
        num_threads=torch.get_num_threads(),
        isa=isa,
    )
    return arguments, [row_owners, whole, keeps, clip, hh_owner, ch_owner]
