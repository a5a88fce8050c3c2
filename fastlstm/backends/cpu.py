"""Fused C++ kernels for the CPU (``csrc/cpu``): the whole recurrence in one call each way.

The input projection and all gradients are computed in there too; torch allocates the memory.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.types import Problem

# A larger workspace is given back after the call. The system clears fresh memory page by page: of
# 36 MB that took 10 ms, as long as the rest of that call.
_KEPT_BYTES = 256 * 2**20

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def supports(problem: Problem) -> str | None:
    """None, or why these kernels cannot run ``problem``."""
    if problem.device != "cpu":
        return f"runs on the cpu, not on {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"has float32, float64 and bfloat16, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    if problem.reset or problem.return_all_cells:
        return "has neither a reset mask nor all cell states"
    return None


def slower(problem: Problem) -> str | None:
    """None, or why PyTorch's own functions beat these kernels on ``problem``, where they run it.

    Measured on 2 cores of Zen 4 with torch 2.13. One step of one cell is over before packing its
    weights would pay, and ``torch.lstm_cell`` costs less to call: in inference these kernels take
    0.2 to 1 times as long from 1 MFLOP on for four rows and fewer, from 16 on for more, and up to
    2.4 times as long below; in training 0.7 to 1.9 times, mostly above 1. With some 8 units and a
    few steps of 1,000 inputs, packing the input takes longer than its products: 1.2 to 1.4 times.
    """
    if problem.cell and problem.train:
        return "slower than torch's for a single step with gradients"
    if problem.cell:
        flops = 8 * problem.B * problem.H * (problem.I + problem.H)
        if flops < (1e6 if problem.B <= 4 else 16e6):
            return f"slower than torch's for a single step of {flops / 1e6:.1f} MFLOP"
    if problem.train and problem.H <= 8 and problem.I >= 512 and problem.T <= 8:
        return "slower than torch's for few units and steps of a wide input, with gradients"
    return None


def isas() -> list[str]:
    """The instruction sets that this build and this machine have, fastest first."""
    return list(_C.isas())


def _grid(weights: Sequence[Tensor]) -> tuple[tuple[int, int], Tensor | None]:
    """One parameter of all groups: ((group 0's address, elements to the next group's), owner).

    Two contiguous matrices nearly always lie on such a grid. Others are stacked, at the price of
    a copy: if they are strided, or their addresses unevenly spaced or no whole elements apart. The
    owner of the memory must outlive the kernel.
    """
    if not weights:
        return (0, 0), None
    first = weights[0]
    step = weights[1].data_ptr() - first.data_ptr() if len(weights) > 1 else 0
    size = first.element_size()
    even = all(b.data_ptr() - a.data_ptr() == step for a, b in pairwise(weights))
    if step % size or not even or not all(w.is_contiguous() for w in weights):
        first = torch.stack(tuple(weights))
        step = first.stride(0) * size
    return (first.data_ptr(), step // size), first


def _address(tensor: Tensor | None) -> int:
    """Of the first element, or null. Who calls keeps the tensor alive."""
    return 0 if tensor is None else tensor.data_ptr()


def _unit_stride(tensor: Tensor) -> Tensor:
    """With neighbours side by side in the last dimension; the others may have any stride."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _outer_strides(tensor: Tensor | None) -> tuple[int, int, int]:
    """Of T, B and G in a tensor (T, B, G, n), or (T, B, n) that all groups share."""
    if tensor is None:
        return 0, 0, 0
    strides = tensor.stride()
    return strides[0], strides[1], strides[2] if len(strides) == 4 else 0


def _bytes(size: int) -> Tensor:
    """Memory of the CPU, whatever the user's default device is."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class _Scratch(threading.local):
    """The workspace that a thread keeps for its next call."""

    memory = _bytes(0)


_scratch = _Scratch()


def _workspace(size: int) -> Tensor:
    """At least ``size`` bytes, with anything in them."""
    if size > _KEPT_BYTES:
        return _bytes(size)
    if _scratch.memory.numel() < size:
        _scratch.memory = _bytes(size)
    return _scratch.memory


def _safe_lengths(lengths: Tensor | None, T: int) -> Tensor | None:
    """Within 0..T, whatever came: a kernel that trusts a wrong length writes past the end."""
    return None if lengths is None else lengths.to(torch.int64).clamp(0, T).contiguous()


def pack(weight_ih: Sequence[Tensor], weight_hh: Sequence[Tensor], isa: str = "auto") -> Tensor:
    """The weights of a layer in the order in which ``forward`` reads them, as bytes.

    It is a copy: what is written to the weights afterwards is not in it.
    """
    G, H, I = len(weight_hh), weight_hh[0].shape[1], weight_ih[0].shape[1]
    dtype = _DTYPES[weight_hh[0].dtype]
    packed = _bytes(_C.lstm_forward_packed(dtype, G, H, I, isa))
    (w_ih, _ih), (w_hh, _hh) = _grid(weight_ih), _grid(weight_hh)
    _C.lstm_pack(
        dtype=dtype,
        G=G,
        H=H,
        I=I,
        weight_ih=w_ih,
        weight_hh=w_hh,
        packed=packed.data_ptr(),
        num_threads=torch.get_num_threads(),
        isa=isa,
    )
    return packed


def forward(
    input: Tensor,
    weight_ih: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    weight_hr: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    packed: Tensor | None,
    train: bool,
    return_all_cells: bool,
    isa: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(y, hy, cy, cells, reserve); reserve (T, B, G, 5H) is empty unless ``train``.

    ``isa`` forces an instruction set, one of :func:`isas`.
    """
    (T, B), (G, _, H) = input.shape[:2], cx.shape
    y = input.new_empty(T, B, G, H)
    hy, cy = input.new_empty(G, B, H), input.new_empty(G, B, H)
    reserve = input.new_empty(T, B, G, 5 * H) if train else input.new_empty(0)
    if y.numel() == 0:
        return y, hy, cy, input.new_empty(0), reserve

    sizes = (_DTYPES[y.dtype], T, B, G, H, weight_ih[0].shape[1] if weight_ih else 0)
    threads = torch.get_num_threads()
    input, hx, cx = _unit_stride(input), hx.contiguous(), cx.contiguous()
    lengths = _safe_lengths(lengths, T)
    parameters = (weight_ih, bias_ih, bias_hh, weight_hh, weight_ch)
    (w_ih, b_ih, b_hh, w_hh, w_ch), _owners = zip(*map(_grid, parameters), strict=True)
    workspace = _workspace(_C.lstm_forward_workspace(*sizes, threads, isa))
    _C.lstm_forward(
        *sizes,
        reverse=reverse,
        lengths=_address(lengths),
        input=input.data_ptr(),
        input_stride=_outer_strides(input),
        weight_ih=w_ih,
        bias_ih=b_ih,
        bias_hh=b_hh,
        weight_hh=w_hh,
        weight_ch=w_ch,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        y=y.data_ptr(),
        hy=hy.data_ptr(),
        cy=cy.data_ptr(),
        reserve=reserve.data_ptr() if train else 0,
        packed=_address(packed),
        is_packed=packed is not None,
        workspace=workspace.data_ptr(),
        num_threads=threads,
        isa=isa,
    )
    return y, hy, cy, input.new_empty(0), reserve


def backward(
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    dcells: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    input: Tensor,
    weight_ih: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    weight_hr: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    reset: Tensor | None,
    needs: Sequence[bool],
    isa: str = "auto",
) -> tuple[Tensor, ...]:
    """(dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dhx, dcx), the weights' over the groups.

    ``input`` is None if forward read igates. ``needs`` says which of the first five are asked for;
    the others are empty.
    """
    T, B, G, H = y.shape
    I = weight_ih[0].shape[1] if weight_ih else 0
    # The kernels sum a weight's gradient up in float32 if the weights are narrower.
    sums = torch.float32 if y.dtype == torch.bfloat16 else y.dtype
    dinput, *dweights = (
        y.new_empty(size if needed else 0, dtype=dtype)
        for size, needed, dtype in (
            (input.shape, needs[0], y.dtype),
            ((G, 4 * H, I), needs[1], sums),
            ((G, 4 * H), needs[2], sums),
            ((G, 4 * H, H), needs[3], sums),
            ((G, 3 * H), needs[4], sums),
        )
    )
    dhx, dcx = y.new_empty(G, B, H), y.new_empty(G, B, H)
    if y.numel() == 0:
        return (
            dinput,
            *(dweight.zero_().to(y.dtype) for dweight in dweights),
            hx.new_empty(0),
            dhx,
            dcx,
        )

    sizes = (_DTYPES[y.dtype], T, B, G, H, I)
    threads = torch.get_num_threads()
    dy = None if dy is None else _unit_stride(dy)
    dhy, dcy = (None if state is None else state.contiguous() for state in (dhy, dcy))
    x = _unit_stride(input) if weight_ih else None
    hx, cx, lengths = hx.contiguous(), cx.contiguous(), _safe_lengths(lengths, T)
    # As forward wrote them, unless vmap or a hook on saved tensors laid them out anew.
    y, reserve = y.contiguous(), reserve.contiguous()
    parameters = (weight_ih, weight_hh, weight_ch)
    (w_ih, w_hh, w_ch), _owners = zip(*map(_grid, parameters), strict=True)
    workspace = _workspace(_C.lstm_backward_workspace(*sizes, threads, isa))
    asked = [
        _address(gradient if need else None)
        for gradient, need in zip((dinput, *dweights), needs[:5], strict=True)
    ]
    _C.lstm_backward(
        *sizes,
        reverse=reverse,
        lengths=_address(lengths),
        dy=_address(dy),
        dy_stride=_outer_strides(dy),
        dhy=_address(dhy),
        dcy=_address(dcy),
        reserve=reserve.data_ptr(),
        y=y.data_ptr(),
        input=_address(x),
        input_stride=_outer_strides(x),
        weight_ih=w_ih,
        weight_hh=w_hh,
        weight_ch=w_ch,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        dinput=asked[0],
        dinput_stride=_outer_strides(dinput if needs[0] else None),
        dweight_ih=asked[1],
        dbias=asked[2],
        dweight_hh=asked[3],
        dweight_ch=asked[4],
        dhx=dhx.data_ptr(),
        dcx=dcx.data_ptr(),
        workspace=workspace.data_ptr(),
        num_threads=threads,
        isa=isa,
    )
    return dinput, *(dweight.to(y.dtype) for dweight in dweights), hx.new_empty(0), dhx, dcx
