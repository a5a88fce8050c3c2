"""CUDA kernels for NVIDIA GPUs (``csrc/cuda``), which have not yet run on one.

Where the GPU can hold W_hh on chip, the recurrence is one persistent launch each way, in which the
blocks keep their parts of W_hh and meet every step. Elsewhere, and for a single step, it is a
matrix product by cuBLAS and a fused cell a step. Layers whose weights it can hold all together go
at once, as a wavefront (``cuda_wavefront``), where a model expects that to be faster than one after
the other. The input projection and the gradients of weights
and input are matrix products over the whole sequence.

The kernels' products of float32 are TF32 where cuDNN's, and so ``nn.LSTM``'s, are; those by torch
follow ``torch.backends.cuda.matmul``. No gradient is summed up by atomics: two runs give the same
bits. Nothing waits for the GPU, so calls can be captured by ``torch.cuda.graph``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.backends import gpu
from fastlstm.backends.cuda import recurrence, wavefront
from fastlstm.backends.gpu import matmuls, packed_sequence
from fastlstm.call import Call, Problem

_GROUPS = 256  # kMaxGroups of csrc/cuda/recurrence.h

# The tests put here kernels that are emulated on the CPU, and let them run on its tensors.
kernels: Any = _C.cuda


def runs_on(device_type: str) -> bool:
    """Whether the kernels read tensors on devices of this type."""
    return device_type == "cuda"


def supports(problem: Problem) -> str | None:
    """None, or why these kernels cannot run ``problem``."""
    if not runs_on(problem.device):
        return f"needs tensors on cuda, not on {problem.device}"
    if not kernels.built:
        return f"this build has no CUDA kernels: {kernels.reason}"
    if problem.dtype not in recurrence.DTYPES:
        return f"has floating-point numbers of 16 to 64 bits, not {problem.dtype}"
    if problem.device == "cuda":
        found = gpu.capability()
        reason = gpu.refusal(found)
        if reason is not None:
            return reason
        oldest = min(kernels.architectures)
        if found[0] * 10 + found[1] < oldest:
            return f"was built for sm_{oldest} and later, not for sm_{found[0]}{found[1]}"
    if problem.G > _GROUPS:
        return f"takes at most {_GROUPS} groups, not {problem.G}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    return None


@packed_sequence.forward
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
    train: bool,
    return_all_cells: bool,
) -> tuple[Tensor, ...]:
    """(y, hy, cy, cells, reserve).

    cells are empty unless ``return_all_cells``, and reserve, (T, B, G, 5H) or (N, G, 5H), is empty
    unless ``train``.
    """
    (T, B), (G, _, H) = input.shape[:2], cx.shape
    new_empty = input.new_empty
    y, hy, cy = new_empty(T, B, G, H), new_empty(G, B, H), new_empty(G, B, H)
    cells = new_empty(T, B, G, H) if return_all_cells else new_empty(0)
    reserve = new_empty(T, B, G, 5 * H) if train else new_empty(0)
    if y.numel() == 0:
        return y, hy, cy, cells, reserve

    with torch.cuda.device_of(y):
        w_ih, w_hh = gpu.stack(weight_ih), gpu.stack(weight_hh)
        assert w_hh is not None
        if w_ih is not None:
            input = matmuls.project(input, w_ih, gpu.stack(bias_ih), gpu.stack(bias_hh))
        launch = recurrence.prepare(kernels, "forward", y, reverse, lengths, reset)
        outputs = (y, hy, cy, cells if return_all_cells else None, reserve if train else None)
        recurrence.forward(launch, input, w_hh, weight_ch, hx, cx, *outputs)
    return y, hy, cy, cells, reserve


@packed_sequence.backward
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
) -> tuple[Tensor, ...]:
    """Gradients of input, weight_ih, bias, weight_hh, weight_ch, weight_hr, hx and cx.

    Those of weights are over the groups. ``needs`` says which of the first six are asked for; the
    others are empty.
    """
    G, H = y.shape[2:]
    if y.numel() == 0:
        I = weight_ih[0].shape[1] if weight_ih else 0
        sizes = input.shape, (G, 4 * H, I), (G, 4 * H), (G, 4 * H, H), (G, 3 * H), (0,)
        zeros = [y.new_zeros(s if need else 0) for s, need in zip(sizes, needs, strict=True)]
        return *zeros, torch.empty_like(hx), torch.empty_like(cx)

    with torch.cuda.device_of(y):
        launch = recurrence.prepare(kernels, "backward", y, reverse, lengths, reset)
        grads, w_hh = (dy, dhy, dcy, dcells), gpu.stack(weight_hh)
        assert w_hh is not None
        dgates, dbias, dweight_ch, dhx, dcx = recurrence.backward(
            launch, *grads, y, reserve, w_hh, weight_ch, hx, cx, needs[2], needs[4]
        )
        dinput, dweight_ih, dweight_hh, dweight_hr = (y.new_empty(0) for _ in range(4))
        if needs[0]:
            dinput = matmuls.dinput(dgates, input, weight_ih) if weight_ih else dgates
        if needs[1]:
            dweight_ih = matmuls.dweight_ih(dgates, input, lengths)
        if needs[3]:
            dweight_hh = matmuls.dweight_hh(dgates, y, hx, reverse, lengths, reset)
    return dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dweight_hr, dhx, dcx


def layers_refusal(problem: Problem, direction: str) -> str | None:
    """None, or why the layers of ``problem`` run one after the other in a pass, "forward" or so."""
    return wavefront.refusal(kernels, problem, direction)


def layers_forward(call: Call, train: bool) -> tuple[Tensor, ...]:
    """(y, hy, cy, below, reserve) of all layers at once; see :func:`wavefront.forward`."""
    with torch.cuda.device_of(call.input):
        return wavefront.forward(kernels, call, train)


def layers_backward(
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    y: Tensor,
    below: Tensor,
    reserve: Tensor,
    call: Call,
    needs: Sequence[bool],
) -> tuple[Any, ...]:
    """The gradients of ``call``; see :func:`wavefront.backward`."""
    with torch.cuda.device_of(y):
        return wavefront.backward(kernels, grads, y, below, reserve, call, needs)
