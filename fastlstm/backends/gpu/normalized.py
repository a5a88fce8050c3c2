"""The gradients of calls with layer norm, as the kernels of both backends leave them.

z is W_hh (hidden_mask * h'), which the kernels normalise in each step. So W_hh has its gradient
from dz, the gradient of z, and the input has that of the gates. The input is igates, which
:func:`fastlstm.masks.normalized` made.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastlstm.backends import gpu
from fastlstm.backends.gpu import matmuls
from fastlstm.call import Call, Gradients, Needs


class Written(NamedTuple):
    """What the kernels of all steps write; the sums are one for each of the tiles of the batch."""

    dgates: Tensor
    """(T, B, G, 4H), the gradient of igates"""
    dz: Tensor
    """(T, B, G, 4H)"""
    dweight_ch: Tensor | None
    """(tiles, G, 3H), to which the steps add; None if it is not asked for"""
    dnorm_hh: Tensor
    """(tiles, G, 4H)"""
    dnorm_c: Tensor | None
    """(tiles, G, 2H); None without that norm"""


def new(call: Call, y: Tensor, tiles: int, needs_weight_ch: bool) -> Written:
    """Memory for the gradients of the call whose output is ``y`` (T, B, G, H), the sums zero."""
    T, B, G, H = y.shape
    norm_c = None if call.options is None else call.options.norm_c

    def sums(width: int) -> Tensor:
        return y.new_zeros(tiles, G, width, dtype=gpu.sums(y.dtype))

    return Written(
        dgates=y.new_empty(T, B, G, 4 * H),
        dz=y.new_empty(T, B, G, 4 * H),
        dweight_ch=sums(3 * H) if needs_weight_ch else None,
        dnorm_hh=sums(4 * H),
        dnorm_c=None if norm_c is None else sums(2 * H),
    )


class Found(NamedTuple):
    """The gradients of a recurrence; those that are not asked for are empty."""

    dgates: Tensor
    dz: Tensor
    dweight_ch: Tensor
    """(G, 3H)"""
    dnorm_hh: Tensor
    """(G, 4H)"""
    dnorm_c: Tensor
    """(G, 2, H)"""
    dhx: Tensor
    dcx: Tensor


def add_up(written: Written, dhx: Tensor, dcx: Tensor) -> Found:
    """Add up the sums of the tiles."""
    dgates, dz, dweight_ch, dnorm_hh, dnorm_c = written
    G, _, H = dhx.shape
    of_norm_c = gpu.total(dnorm_c, dhx)
    return Found(
        dgates,
        dz,
        gpu.total(dweight_ch, dhx),
        gpu.total(dnorm_hh, dhx),
        of_norm_c if dnorm_c is None else of_norm_c.view(G, 2, H),
        dhx,
        dcx,
    )


def gradients(found: Found, y: Tensor, call: Call, needs: Needs) -> Gradients:
    """The gradients of the call whose output is ``y`` (T, B, G, H)."""
    nothing = y.new_empty(0)
    return Gradients(
        input=found.dgates if needs.input else nothing,
        weight_ih=nothing,
        bias=nothing,
        weight_hh=matmuls.dweight_hh(found.dz, y, call) if needs.weight_hh else nothing,
        weight_ch=found.dweight_ch,
        weight_hr=nothing,
        hx=found.dhx,
        cx=found.dcx,
        norm_hh=found.dnorm_hh,
        norm_c=found.dnorm_c,
    )
