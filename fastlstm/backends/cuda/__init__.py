"""CUDA kernels for NVIDIA GPUs (``csrc/cuda``), which have not yet run on one.

Where W_hh fits on the GPU's multiprocessors, each pass of the recurrence is one persistent launch:
every block keeps its part of W_hh and waits at a barrier in each step. Elsewhere, and for a single
step, a step is a matrix product by cuBLAS and a fused cell. Layers whose weights fit together run
as a wavefront (:mod:`wavefront`), where a model expects that to be faster than one after the other.
The input projection and the gradients of weights and input are matrix products over the whole
sequence.

The kernels multiply float32 in TF32 where cuDNN, and so ``nn.LSTM``, does; torch's own products
follow ``torch.backends.cuda.matmul``. No gradient is summed up by atomics, so two runs give the
same bits. Nothing waits for the GPU, so calls can be captured by ``torch.cuda.graph``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.backends import gpu, pointers
from fastlstm.backends.cuda import recurrence, wavefront
from fastlstm.backends.gpu import matmuls, packed_sequence
from fastlstm.call import Call, Gradients, Needs, OutputGradients, Results, Saved, Wanted
from fastlstm.problem import Problem

_GROUPS = 256  # kMaxGroups of csrc/cuda/recurrence.h

CHECKPOINTS = False
# The tests put here kernels that are emulated on the CPU, and let them run on its tensors.
kernels: Any = _C.cuda


def runs_on(device_type: str) -> bool:
    """Whether the kernels read tensors on devices of this type."""
    return device_type == "cuda"


def why_not(problem: Problem) -> str | None:
    """Why these kernels cannot run ``problem``; None if they can."""
    if not runs_on(problem.device):
        return f"needs tensors on cuda, not on {problem.device}"
    if not kernels.built:
        return f"this build has no CUDA kernels: {kernels.reason}"
    if problem.dtype not in recurrence.DTYPES:
        return f"computes in float16, bfloat16, float32 and float64, not {problem.dtype}"
    if problem.device == "cuda":
        found = gpu.capability()
        reason = gpu.why_not(found)
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
def forward(call: Call, wanted: Wanted) -> Results:
    """Run a call; y is computed whether it is wanted or not."""
    call = pointers.materialized_call(call)
    (T, B), (G, _, H) = call.input.shape[:2], call.cx.shape
    new_empty = call.input.new_empty
    y, hy, cy = new_empty(T, B, G, H), new_empty(G, B, H), new_empty(G, B, H)
    cells = new_empty(T, B, G, H) if wanted.cells else new_empty(0)
    reserve = new_empty(T, B, G, 5 * H) if wanted.train else new_empty(0)
    results = Results(y, hy, cy, cells, reserve)
    if y.numel():
        with torch.cuda.device_of(y):
            launch = recurrence.prepare(kernels, "forward", y, call.layout)
            recurrence.forward(launch, matmuls.project(call), call, results)
    return results


@packed_sequence.backward
def backward(call: Call, saved: Saved, grads: OutputGradients, needs: Needs) -> Gradients:
    """Run the backward pass of a call."""
    call, saved, grads = pointers.materialized_backward(call, saved, grads)
    y = saved.y
    if y.numel() == 0:
        return gpu.zero_gradients(call, needs)
    with torch.cuda.device_of(y):
        launch = recurrence.prepare(kernels, "backward", y, call.layout)
        dgates, dbias, dweight_ch, dhx, dcx = recurrence.backward(launch, call, saved, grads, needs)
        nothing = y.new_empty(0)
        return Gradients(
            input=matmuls.dinput(dgates, call) if needs.input else nothing,
            weight_ih=matmuls.dweight_ih(dgates, call) if needs.weight_ih else nothing,
            bias=dbias,
            weight_hh=matmuls.dweight_hh(dgates, y, call) if needs.weight_hh else nothing,
            weight_ch=dweight_ch,
            weight_hr=nothing,
            hx=dhx,
            cx=dcx,
        )


def why_not_stacked(problem: Problem, direction: str) -> str | None:
    """Why the layers of ``problem`` run one after the other in a pass, "forward" or "backward".

    None if they run as a wavefront.
    """
    return wavefront.why_not(kernels, problem, direction)


def forward_stacked(call: Call, train: bool) -> tuple[Results, Tensor]:
    """Run all layers as a wavefront; see :func:`wavefront.forward`."""
    with torch.cuda.device_of(call.input):
        return wavefront.forward(kernels, pointers.materialized_call(call), train)


def backward_stacked(
    call: Call, saved: Saved, below: Tensor, grads: OutputGradients, needs: Needs
) -> Gradients:
    """Run the backward pass of all layers; see :func:`wavefront.backward`."""
    call, saved, grads = pointers.materialized_backward(call, saved, grads)
    with torch.cuda.device_of(saved.y):
        return wavefront.backward(kernels, call, saved, below, grads, needs)
