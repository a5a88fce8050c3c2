"""Fused C++ kernels for the CPU (``csrc/cpu``): the whole recurrence in one call each way.

The input projection and all gradients are computed in there too; torch allocates the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.types import Problem

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


def supports(problem: Problem) -> str | None:
    """None, or why these kernels cannot run ``problem``."""
    if problem.device != "cpu":
        return f"runs on the cpu, not on {problem.device}"
    if problem.dtype not in _DTYPES:
        return f"has float32, float64 and bfloat16, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    return None


def isas() -> list[str]:
    """The instruction sets that this build and this machine have, fastest first."""
    return list(_C.isas())


class _Arguments:
    """Collects what a kernel is called with: addresses, and the tensors that must outlive it."""

    def __init__(self, y: Tensor, I: int, isa: str) -> None:
        T, B, G, H = y.shape
        self.sizes: dict[str, Any] = {
            "dtype": _DTYPES[y.dtype],
            "T": T,
            "B": B,
            "G": G,
            "H": H,
            "I": I,
        }
        self.options: dict[str, Any] = {"num_threads": torch.get_num_threads(), "isa": isa}
        self.values: dict[str, Any] = {}
        self._alive: list[Tensor] = []

    def tensor(self, name: str, tensor: Tensor | None) -> None:
        """A contiguous tensor, or null."""
        self.values[name] = 0 if tensor is None else tensor.data_ptr()
        if tensor is not None:
            self._alive.append(tensor)

    def strided(self, name: str, tensor: Tensor | None) -> None:
        """A tensor (T, B, G, n), or (T, B, n) that all groups share, with any outer strides."""
        strides = (0, 0, 0)
        if tensor is not None:
            tensor = tensor if tensor.stride(-1) == 1 else tensor.contiguous()
            outer = tensor.stride()
            strides = (outer[0], outer[1], outer[2] if tensor.dim() == 4 else 0)
        self.tensor(name, tensor)
        self.values[f"{name}_stride"] = strides

    def weights(self, name: str, weights: Sequence[Tensor]) -> None:
        """One parameter of all groups: group 0's address, and the elements to the next group's.

        Two contiguous matrices nearly always lie on such a grid. Others are stacked, at the price
        of a copy: if they are strided, or their addresses unevenly spaced or no whole elements
        apart.
        """
        if not weights:
            self.values[name] = (0, 0)
            return
        step, *others = {b.data_ptr() - a.data_ptr() for a, b in pairwise(weights)} or {0}
        first, size = weights[0], weights[0].element_size()
        if others or step % size or not all(w.is_contiguous() for w in weights):
            first = torch.stack(tuple(weights))
            step = first.stride(0) * size
        self._alive.append(first)
        self.values[name] = (first.data_ptr(), step // size)

    def workspace(self, size: int) -> None:
        """Scratch memory of that many bytes."""
        self.tensor("workspace", torch.empty(size, dtype=torch.uint8))


def _safe_lengths(lengths: Tensor | None, T: int) -> Tensor | None:
    """Within 0..T, whatever came: a kernel that trusts a wrong length writes past the end."""
    return None if lengths is None else lengths.to(torch.int64).clamp(0, T).contiguous()


def pack(weight_ih: Sequence[Tensor], weight_hh: Sequence[Tensor], isa: str = "auto") -> Tensor:
    """The weights of a layer in the order in which ``forward`` reads them, as bytes.

    It is a copy: what is written to the weights afterwards is not in it.
    """
    G, H, I = len(weight_hh), weight_hh[0].shape[1], weight_ih[0].shape[1]
    dtype = _DTYPES[weight_hh[0].dtype]
    packed = torch.empty(_C.lstm_forward_packed(dtype, G, H, I, isa), dtype=torch.uint8)
    call = _Arguments(weight_hh[0].new_empty(0, 0, G, H), I, isa)
    call.weights("weight_ih", weight_ih)
    call.weights("weight_hh", weight_hh)
    call.tensor("packed", packed)
    _C.lstm_pack(dtype=dtype, G=G, H=H, I=I, **call.values, **call.options)
    return packed


def forward(
    input: Tensor,
    weight_ih: Sequence[Tensor],
    bias_ih: Sequence[Tensor],
    bias_hh: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
    packed: Tensor | None,
    train: bool,
    isa: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, hy, cy, reserve); reserve (T, B, G, 5H) is empty unless ``train``.

    ``isa`` forces an instruction set, one of :func:`isas`.
    """
    (T, B), (G, _, H) = input.shape[:2], cx.shape
    y = input.new_empty(T, B, G, H)
    hy, cy = input.new_empty(G, B, H), input.new_empty(G, B, H)
    reserve = input.new_empty(T, B, G, 5 * H) if train else input.new_empty(0)
    if y.numel() == 0:
        return y, hy, cy, reserve

    call = _Arguments(y, weight_ih[0].shape[1] if weight_ih else 0, isa)
    call.strided("input", input)
    call.weights("weight_ih", weight_ih)
    call.weights("bias_ih", bias_ih)
    call.weights("bias_hh", bias_hh)
    call.weights("weight_hh", weight_hh)
    call.weights("weight_ch", weight_ch)
    call.tensor("hx", hx.contiguous())
    call.tensor("cx", cx.contiguous())
    call.tensor("lengths", _safe_lengths(lengths, T))
    call.tensor("y", y)
    call.tensor("hy", hy)
    call.tensor("cy", cy)
    call.tensor("reserve", reserve if train else None)
    call.tensor("packed", packed)
    call.workspace(_C.lstm_forward_workspace(**call.sizes, **call.options))
    _C.lstm_forward(
        **call.sizes,
        **call.options,
        **call.values,
        reverse=list(reverse),
        is_packed=packed is not None,
    )
    return y, hy, cy, reserve


def backward(
    dy: Tensor | None,
    dhy: Tensor | None,
    dcy: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    input: Tensor | None,
    weight_ih: Sequence[Tensor],
    weight_hh: Sequence[Tensor],
    weight_ch: Sequence[Tensor],
    hx: Tensor,
    cx: Tensor,
    reverse: Sequence[bool],
    lengths: Tensor | None,
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
            ((T, B, G, 4 * H) if input is None else input.shape, needs[0], y.dtype),
            ((G, 4 * H, I), needs[1], sums),
            ((G, 4 * H), needs[2], sums),
            ((G, 4 * H, H), needs[3], sums),
            ((G, 3 * H), needs[4], sums),
        )
    )
    dhx, dcx = y.new_empty(G, B, H), y.new_empty(G, B, H)
    if y.numel() == 0:
        return dinput, *(dweight.zero_().to(y.dtype) for dweight in dweights), dhx, dcx

    call = _Arguments(y, I, isa)
    call.strided("dy", dy)
    call.tensor("dhy", None if dhy is None else dhy.contiguous())
    call.tensor("dcy", None if dcy is None else dcy.contiguous())
    call.tensor("reserve", reserve)
    call.tensor("y", y)
    call.strided("input", input)
    call.weights("weight_ih", weight_ih)
    call.weights("weight_hh", weight_hh)
    call.weights("weight_ch", weight_ch)
    call.tensor("hx", hx.contiguous())
    call.tensor("cx", cx.contiguous())
    call.tensor("lengths", _safe_lengths(lengths, T))
    call.strided("dinput", dinput if needs[0] else None)
    names = ("dweight_ih", "dbias", "dweight_hh", "dweight_ch")
    for name, dweight, needed in zip(names, dweights, needs[1:], strict=True):
        call.tensor(name, dweight if needed else None)
    call.tensor("dhx", dhx)
    call.tensor("dcx", dcx)
    call.workspace(_C.lstm_backward_workspace(**call.sizes, **call.options))
    _C.lstm_backward(**call.sizes, **call.options, **call.values, reverse=list(reverse))
    return dinput, *(dweight.to(y.dtype) for dweight in dweights), dhx, dcx
