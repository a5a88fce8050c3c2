"""Fused C++ kernels for the CPU (``csrc/cpu``): the whole recurrence in one call each way.

Torch allocates all memory and does the one GEMM that is left for the recurrent weight gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.types import Problem

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def supports(problem: Problem) -> str | None:
    """None, or why these kernels cannot run ``problem``."""
    if problem.device != "cpu":
        return f"runs on the cpu, not on {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"has float32 and float64, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    return None


def isas() -> list[str]:
    """The instruction sets that this build and this machine have, fastest first."""
    return list(_C.isas())


def _grouped(weights: Sequence[Tensor]) -> tuple[Tensor, int]:
    """A tensor whose address is group 0's, and the elements from one group to the next.

    Two contiguous matrices nearly always lie on such a grid. Others are stacked, at the price of a
    copy: when they are strided, or their addresses unevenly spaced or no whole elements apart.
    """
    step, *others = {b.data_ptr() - a.data_ptr() for a, b in pairwise(weights)} or {0}
    size = weights[0].element_size()
    if others or step % size or not all(w.is_contiguous() for w in weights):
        stacked = torch.stack(tuple(weights))
        return stacked, stacked.stride(0)
    return weights[0], step // size


def _inner_contiguous(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _outer_strides(tensor: Tensor | None) -> tuple[int, int, int]:
    """The strides of T, B and G, in elements."""
    if tensor is None:
        return 0, 0, 0
    T, B, G, _ = tensor.stride()
    return T, B, G


def _safe_lengths(lengths: Tensor | None, T: int) -> Tensor | None:
    """Within 0..T, whatever came: a kernel that trusts a wrong length writes past the end."""
    return None if lengths is None else lengths.to(torch.int64).clamp(0, T).contiguous()


def _run(
    kernel: Callable[..., None],
    workspace_size: Callable[..., int],
    like_y: Tensor,
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    reverse: Sequence[bool],
    isa: str,
    strides: dict[str, tuple[int, int, int]],
    **tensors: Tensor | None,
) -> None:
    """Call a kernel on the addresses of ``tensors``, which this frame keeps alive meanwhile."""
    T, B, G, H = like_y.shape
    sizes: dict[str, Any] = {"dtype": _DTYPES[like_y.dtype], "T": T, "B": B, "G": G, "H": H}
    threads = {"num_threads": torch.get_num_threads(), "isa": isa}
    tensors["workspace"] = torch.empty(workspace_size(**sizes, **threads), dtype=torch.uint8)
    tensors["weight_hh"], weight_hh_stride = _grouped(weight_hh)
    tensors["weight_ch"], weight_ch_stride = _grouped(weight_ch) if weight_ch else (None, 0)
    kernel(
        **sizes,
        **threads,
        **strides,
        reverse=list(reverse),
        weight_hh_stride=weight_hh_stride,
        weight_ch_stride=weight_ch_stride,
        **{name: 0 if t is None else t.data_ptr() for name, t in tensors.items()},
    )


def forward(
    igates: Tensor,
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    train: bool,
    isa: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, hy, cy, reserve); reserve (T, B, G, 5H) is empty unless ``train``.

    ``isa`` forces an instruction set, one of :func:`isas`.
    """
    T, B, G, four_h = igates.shape
    H = four_h // 4
    y = igates.new_empty(T, B, G, H)
    hy, cy = igates.new_empty(G, B, H), igates.new_empty(G, B, H)
    reserve = igates.new_empty(T, B, G, 5 * H) if train else igates.new_empty(0)
    if y.numel() == 0:
        return y, hy, cy, reserve

    igates = _inner_contiguous(igates)
    _run(
        _C.lstm_forward,
        _C.lstm_forward_workspace,
        y,
        weight_hh,
        weight_ch,
        reverse,
        isa,
        {"igates_stride": _outer_strides(igates)},
        igates=igates,
        hx=hx.contiguous(),
        cx=cx.contiguous(),
        lengths=_safe_lengths(lengths, T),
        y=y,
        hy=hy,
        cy=cy,
        reserve=reserve if train else None,
    )
    return y, hy, cy, reserve


def backward(
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    needs_dweight_hh: bool = True,
    isa: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(digates, dweight_hh, dweight_ch, dhx, dcx), the weights' stacked over the groups.

    dweight_hh is empty if it is not asked for, dweight_ch if there are no peepholes.
    """
    T, B, G, H = y.shape
    digates = y.new_empty(T, B, G, 4 * H)
    dhx, dcx = y.new_empty(G, B, H), y.new_empty(G, B, H)
    dweight_ch = y.new_empty(G, 3 * H) if weight_ch else y.new_empty(0)
    dweight_hh = y.new_empty(G, 4 * H, H) if needs_dweight_hh else y.new_empty(0)
    if y.numel() == 0:
        return digates, dweight_hh.zero_(), dweight_ch.zero_(), dhx, dcx

    dy = None if dy is None else _inner_contiguous(dy)
    lengths = _safe_lengths(lengths, T)
    _run(
        _C.lstm_backward,
        _C.lstm_backward_workspace,
        y,
        weight_hh,
        weight_ch,
        reverse,
        isa,
        {"dy_stride": _outer_strides(dy)},
        dy=dy,
        dhy=None if dhy is None else dhy.contiguous(),
        dcy=None if dcy is None else dcy.contiguous(),
        reserve=reserve,
        cx=cx.contiguous(),
        lengths=lengths,
        digates=digates,
        dweight_ch=dweight_ch if weight_ch else None,
        dhx=dhx,
        dcx=dcx,
    )
    if needs_dweight_hh:
        for group in range(G):
            _recurrent_weight_gradient(
                dweight_hh[group],
                digates[:, :, group],
                y[:, :, group],
                hx[group],
                reverse[group],
                lengths,
            )
    return digates, dweight_hh, dweight_ch, dhx, dcx


def _recurrent_weight_gradient(
    dweight_hh: Tensor,
    digates: Tensor,
    y: Tensor,
    hx: Tensor,
    reverse: bool,
    lengths: Tensor | None,
) -> None:
    """dW_hh = sum over t, b of digates_t h_{t-1}^T for one group, written into ``dweight_hh``.

    h_{t-1} is y one step earlier (later in a reversed group), and hx at a row's first step. Past a
    row's length digates are zero, and so is y, which keeps the one GEMM free of masks.
    """
    T, B, H = y.shape
    if reverse:
        first = digates[-1] if lengths is None else _rows_at(digates, lengths - 1)
        digates, previous = digates[:-1], y[1:]
    else:
        first, digates, previous = digates[0], digates[1:], y[:-1]
    torch.mm(first.t(), hx, out=dweight_hh)
    if T > 1:
        rows = (T - 1) * B
        dweight_hh.addmm_(digates.reshape(rows, 4 * H).t(), previous.reshape(rows, H))


def _rows_at(digates: Tensor, t: Tensor) -> Tensor:
    """digates[t[b], b] for every row b; zero where t is negative (an empty row)."""
    rows = digates[t.clamp(min=0), torch.arange(t.numel())]
    return torch.where((t >= 0).unsqueeze(1), rows, 0.0)
