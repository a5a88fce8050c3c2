"""CUDA kernels for NVIDIA GPUs (``csrc/cuda``), which have not yet run on one.

Where W_hh fits on the GPU's multiprocessors, each pass of the recurrence is one persistent launch:
every block keeps its part of W_hh and waits at a barrier in each step. Elsewhere, for a single
step and with layer norm (:mod:`normalized`), a step is a matrix product by cuBLAS and a fused cell.
Layers whose weights fit together run as a wavefront (:mod:`wavefront`), where a model expects that
to be faster than one after the other.
The input projection and the gradients of weights and input are matrix products over the whole
sequence.

The kernels multiply float32 in TF32 where cuDNN, and so ``nn.LSTM``, does; torch's own products
follow ``torch.backends.cuda.matmul``. No gradient is summed up by atomics, so two runs give the
same bits. Nothing waits for the GPU, so calls can be captured by ``torch.cuda.graph``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.backends import gpu, pointers
from fastlstm.backends.cuda import normalized, recurrence, wavefront
from fastlstm.backends.gpu import matmuls, packed_sequence
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
from fastlstm.problem import Problem

_GROUPS = 256  # kMaxGroups of csrc/cuda/recurrence.h

_MOST = 2**31 - 1  # kMostRows there: rows and steps are counted in 32 bits

_NORMALIZED_BYTES = 96 * 1024  # of shared memory, two sums a unit; every GPU here has 99 KiB

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
        number = gpu.number(problem)
        found = gpu.capability(number)
        reason = gpu.why_not(found) or _why_no_code(found) or _why_no_driver(kernels, number)
        if reason is not None:
            return reason
    if problem.G > _GROUPS:
        return f"takes at most {_GROUPS} groups, not {problem.G}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    reason = _why_too_many(problem)
    if reason is not None:
        return reason
    if "layer_norm" in problem.cell_options:
        most = _NORMALIZED_BYTES // (2 * gpu.sums(problem.dtype).itemsize)
        if most < problem.H:
            return f"has layer norm for at most {most} units in {problem.dtype}, not {problem.H}"
    return None


def _why_too_many(problem: Problem) -> str | None:
    """Why a problem has more rows or time steps than the kernels can count; None if it has not.

    A compiler is not asked for them, as they are other numbers in other calls. The launchers check
    them too.
    """
    if torch.compiler.is_compiling():
        return None
    rows = problem.B * problem.G * -(-problem.H // 256)
    if rows > _MOST:
        return f"takes at most {_MOST} rows of up to 256 units in all groups, not {rows}"
    if problem.T >= _MOST:
        return f"takes at most {_MOST - 1} time steps, not {problem.T}"
    return None


def _why_no_code(capability: tuple[int, int]) -> str | None:
    """Why this build has no code for a GPU; None if it has.

    Machine code runs on GPUs of the same major version from its own minor version on. PTX is
    compiled by the driver for any later GPU.
    """
    major, minor = capability
    machine = any(n // 10 == major and n % 10 <= minor for n in kernels.architectures)
    if machine or any(n <= 10 * major + minor for n in kernels.ptx) or not kernels.architectures:
        return None
    built = ", ".join(f"sm_{n}" for n in kernels.architectures)
    return f"was built for {built}, without code for sm_{major}{minor}"


@lru_cache(maxsize=64)
def _ask_driver(kernels: Any, number: int) -> str | None:
    try:
        kernels.device(number)
    except RuntimeError as error:
        return f"cannot use this GPU: {error}"
    return None


def _why_no_driver(kernels: Any, number: int) -> str | None:
    """What the driver has against these kernels on a GPU; it is asked once. None if nothing.

    torch may run where they do not: it brings a CUDA runtime of its own, and a driver that is
    older than the one linked here refuses every call. A compiler cannot trace the question.
    """
    return None if torch.compiler.is_compiling() else _ask_driver(kernels, number)


def _prepare(direction: str, y: Tensor, call: Call) -> recurrence.Launch:
    """Prepare a pass; with layer norm it goes step by step."""
    launch = recurrence.prepare(kernels, direction, y, call.layout)
    return launch._replace(plan=None) if gpu.has_norm(call) else launch


@packed_sequence.forward
def forward(call: Call, wanted: Wanted) -> Results:
    """Run a call; y is computed whether it is wanted or not."""
    call = gpu.with_cast_options(pointers.materialized_call(call))
    (T, B), (G, _, H) = call.input.shape[:2], call.cx.shape
    new_empty = call.input.new_empty
    y, hy, cy = new_empty(T, B, G, H), new_empty(G, B, H), new_empty(G, B, H)
    cells = new_empty(T, B, G, H) if wanted.cells else new_empty(0)
    reserve = new_empty(T, B, G, reserve_width(call)) if wanted.train else new_empty(0)
    results = Results(y, hy, cy, cells, reserve)
    if y.numel():
        with torch.cuda.device_of(y):
            launch = _prepare("forward", y, call)
            recurrence.forward(launch, matmuls.project(call), call, results)
    return results


@packed_sequence.backward
def backward(call: Call, saved: Saved, grads: OutputGradients, needs: Needs) -> Gradients:
    """Run the backward pass of a call."""
    call, saved, grads = pointers.materialized_backward(call, saved, grads)
    call, y = gpu.with_cast_options(call), saved.y
    if y.numel() == 0:
        return gpu.zero_gradients(call, needs)
    with torch.cuda.device_of(y):
        launch = _prepare("backward", y, call)
        if gpu.has_norm(call):
            return normalized.backward(launch, call, saved, grads, needs)
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
