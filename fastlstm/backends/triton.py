"""Triton kernels for GPUs (``kernels/``), which have not yet run on one.

Where W_hh fits on one multiprocessor, each pass of the recurrence is a single launch
(``lstm_forward``, ``lstm_backward``). Elsewhere, and for a single step, a step is a matrix product
by cuBLAS and a fused cell (``lstm_cell``), and so it is with layer norm (``normalized_forward``,
``normalized_backward``). The input projection and the gradients of weights and input are matrix
products over the whole sequence. The kernels multiply float32 in TF32 where cuDNN, and so
``nn.LSTM``, does; torch's own products follow ``torch.backends.cuda.matmul``. No gradient is summed
up by atomics, so two runs give the same bits.

Nothing waits for the GPU, and no loop over steps allocates memory: after a first call, which
compiles the kernels, a call can be captured by ``torch.cuda.graph``. The user must do that, because
a captured call keeps the addresses of its tensors. It helps where launches take longer than
kernels: in a loop over steps with a small batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from fastlstm.backends import gpu, pointers
from fastlstm.backends.gpu import matmuls, normalized, packed_sequence
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
from fastlstm.kernels import INTERPRETED, configurations
from fastlstm.kernels.configurations import Configuration
from fastlstm.problem import Problem

_GROUPS = 32  # their directions are bits of one word
_INSTALLED = find_spec("triton") is not None
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

CHECKPOINTS = False


def why_not(problem: Problem) -> str | None:
    """Why these kernels cannot run ``problem``; None if they can."""
    if problem.device != "cuda" and not (problem.device == "cpu" and INTERPRETED):
        return (
            "needs cuda; on the cpu its kernels are only "
            "interpreted, if TRITON_INTERPRET=1 was set before fastlstm was imported"
        )
    if not _INSTALLED:
        return "needs the package triton: pip install 'fastlstm[triton]'"
    if problem.dtype not in _DTYPES:
        return f"computes in float16, bfloat16, float32 and float64, not {problem.dtype}"
    if problem.device == "cuda":
        reason = gpu.why_not(_capability(gpu.number(problem)))
        if reason is not None:
            return reason
    if problem.G > _GROUPS:
        return f"takes at most {_GROUPS} groups, not {problem.G}"
    if problem.proj_size:
        return f"has no projection (proj_size={problem.proj_size})"
    if problem.has_reset or problem.return_all_cells:
        return "has neither a reset mask nor all cell states"
    return None


def _capability(number: int | None) -> tuple[int, int]:
    """The compute capability of a GPU; an H100's under the interpreter, which has no limits."""
    return (9, 0) if INTERPRETED or number is None else gpu.capability(number)


def _single_launch(tensor: Tensor, H: int) -> Configuration | None:
    """How a whole sequence, ``tensor`` (T, B, G, ...), runs in one launch; None if step by step.

    Those kernels have 32 bits for an offset within a step of the reserve.
    """
    T, B, G, _ = tensor.shape
    if T == 1 or 5 * B * G * H >= 2**31:
        return None
    capability = _capability(tensor.device.index)
    return configurations.single_launch(capability, tensor.element_size(), H)


def _bits(flags: Sequence[bool]) -> int:
    """A word with a bit for each reversed group; vmap can make more groups than the problem had."""
    if len(flags) > _GROUPS:
        raise ValueError(f"reverse: expected at most {_GROUPS} groups, got {len(flags)}")
    return sum(1 << group for group, flag in enumerate(flags) if flag)


@packed_sequence.forward
def forward(call: Call, wanted: Wanted) -> Results:
    """Run a call; y is computed whether it is wanted or not. Cells are empty."""
    from fastlstm.kernels.lstm_cell import lstm_cell_forward
    from fastlstm.kernels.lstm_forward import lstm_forward
    from fastlstm.kernels.normalized_forward import normalized_cell_forward

    call = gpu.with_cast_options(pointers.materialized_call(call))
    input, weights, hx, cx, layout, options = call
    (T, B), (G, _, H) = input.shape[:2], cx.shape
    y = input.new_empty(T, B, G, H)
    hy, cy = input.new_empty(G, B, H), input.new_empty(G, B, H)
    reserve = input.new_empty(0)
    if wanted.train:
        reserve = input.new_empty(T, B, G, reserve_width(call))
    results = Results(y, hy, cy, input.new_empty(0), reserve)
    if y.numel() == 0:
        return results

    igates = pointers.unit_stride(matmuls.project(call))
    lengths, reverse = gpu.contiguous(layout.lengths), _bits(layout.reverse)
    w_hh, w_ch = gpu.stack(weights.weight_hh), gpu.stack(weights.weight_ch)
    assert w_hh is not None
    filled = reserve if wanted.train else None
    configuration = None if gpu.has_norm(call) else _single_launch(y, H)
    launch: Any = normalized_cell_forward if gpu.has_norm(call) else lstm_cell_forward
    with torch.cuda.device_of(y):
        if configuration is not None:
            lstm_forward(
                igates,
                w_hh,
                w_ch,
                hx.contiguous(),
                cx.contiguous(),
                lengths,
                y,
                hy,
                cy,
                filled,
                reverse=reverse,
                precision=gpu.precision(),
                configuration=configuration,
                options=options,
            )
            return results
        hy.copy_(hx)
        mask = None if options is None else options.hidden_mask
        masked = None if mask is None else hy * mask
        c = cx.to(gpu.sums(cx.dtype), copy=True, memory_format=torch.contiguous_format)
        hgates = hy.new_empty(G, B, 4 * H)
        for step in range(T):
            torch.bmm(hy if masked is None else masked, w_hh.transpose(1, 2), out=hgates)
            launch(
                igates,
                hgates,
                w_ch,
                lengths,
                hy,
                c,
                y,
                filled,
                reverse=reverse,
                step=step,
                options=options,
                masked_h=masked,
            )
        cy.copy_(c)
    return results


@packed_sequence.backward
def backward(call: Call, saved: Saved, grads: OutputGradients, needs: Needs) -> Gradients:
    """Run the backward pass of a call."""
    call, saved, grads = pointers.materialized_backward(call, saved, grads)
    y, nothing = saved.y, saved.y.new_empty(0)
    if y.numel() == 0:
        return gpu.zero_gradients(call, needs)
    lengths = gpu.contiguous(call.layout.lengths)
    call = gpu.with_cast_options(call._replace(layout=call.layout._replace(lengths=lengths)))
    if gpu.has_norm(call):
        return _normalized_backward(call, saved, grads, needs)
    dgates, dweight_ch, dhx, dcx = _recurrence(call, saved.reserve, grads, needs.weight_ch)
    dbias = nothing
    if needs.bias:
        dbias = dgates.sum((0, 1), dtype=gpu.sums(y.dtype)).to(y.dtype)
    return Gradients(
        input=matmuls.dinput(dgates, call) if needs.input else nothing,
        weight_ih=matmuls.dweight_ih(dgates, call) if needs.weight_ih else nothing,
        bias=dbias,
        weight_hh=matmuls.dweight_hh(dgates, y, call) if needs.weight_hh else nothing,
        weight_ch=nothing if dweight_ch is None else dweight_ch.sum(0).to(y.dtype),
        weight_hr=nothing,
        hx=dhx,
        cx=dcx,
    )


def _recurrence(
    call: Call, reserve: Tensor, grads: OutputGradients, needs_weight_ch: bool
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """dgates (T, B, G, 4H), summands of dweight_ch (n, G, 3H), dhx and dcx (G, B, H)."""
    from fastlstm.kernels.lstm_backward import lstm_backward
    from fastlstm.kernels.lstm_cell import lstm_cell_backward

    T, B, G, five_h = reserve.shape
    H, sums = five_h // 5, gpu.sums(reserve.dtype)
    configuration = _single_launch(reserve, H)
    tiles = -(-B // (configuration or configurations.CELL).block_b)
    dweight_ch = reserve.new_zeros(tiles, G, 3 * H, dtype=sums) if needs_weight_ch else None
    dgates = reserve.new_empty(T, B, G, 4 * H)
    dy, dhy, dcy, _ = grads
    dy = None if dy is None else pointers.unit_stride(dy)
    w_hh, w_ch = gpu.stack(call.weights.weight_hh), gpu.stack(call.weights.weight_ch)
    assert w_hh is not None
    cx, lengths, reverse = call.cx.contiguous(), call.layout.lengths, _bits(call.layout.reverse)
    with torch.cuda.device_of(reserve):
        if configuration is not None:
            dhx, dcx = torch.empty_like(cx), torch.empty_like(cx)
            lstm_backward(
                dy,
                gpu.contiguous(dhy),
                gpu.contiguous(dcy),
                reserve,
                w_hh,
                w_ch,
                cx,
                lengths,
                dgates,
                dhx,
                dcx,
                dweight_ch,
                reverse=reverse,
                precision=gpu.precision(),
                configuration=configuration,
                options=call.options,
            )
            return dgates, dweight_ch, dhx, dcx

        def launch(dh: Tensor, dc: Tensor, dhgates: Tensor, step: int) -> None:
            lstm_cell_backward(
                dy,
                reserve,
                w_ch,
                cx,
                lengths,
                dh,
                dc,
                dgates,
                dhgates,
                dweight_ch,
                reverse=reverse,
                step=step,
                options=call.options,
            )

        return dgates, dweight_ch, *_run_backwards(call, T, w_hh, grads, launch)


def _run_backwards(
    call: Call,
    T: int,
    w_hh: Tensor,
    grads: OutputGradients,
    launch: Callable[[Tensor, Tensor, Tensor, int], None],
) -> tuple[Tensor, Tensor]:
    """Run all steps, the last one first; dhx and dcx (G, B, H).

    ``launch(dh, dc, dhgates, step)`` is the kernel of a step; see ``lstm_cell_backward``.
    """
    cx, mask = call.cx, None if call.options is None else call.options.hidden_mask
    G, B, H = cx.shape
    dh, dc = torch.zeros_like(cx), torch.zeros_like(cx, dtype=gpu.sums(cx.dtype))
    if grads.dhy is not None:
        dh.copy_(grads.dhy)
    if grads.dcy is not None:
        dc.copy_(grads.dcy)
    dhgates = cx.new_empty(G, B, 4 * H)
    product = None if mask is None else torch.empty_like(mask)
    for step in reversed(range(T)):
        launch(dh, dc, dhgates, step)
        if mask is None:
            dh.baddbmm_(dhgates, w_hh)
        else:
            dh.addcmul_(mask, torch.bmm(dhgates, w_hh, out=product))
    return dh, dc.to(cx.dtype)


def _normalized_backward(
    call: Call, saved: Saved, grads: OutputGradients, needs: Needs
) -> Gradients:
    """Run the backward pass of a call with layer norm."""
    from fastlstm.kernels.normalized_backward import normalized_cell_backward

    T, B, _, H = saved.y.shape
    tiles = -(-B // configurations.normalized_cell(H).block_b)
    written = normalized.new(call, saved.y, tiles, needs.weight_ch)
    dy = None if grads.dy is None else pointers.unit_stride(grads.dy)
    w_hh, w_ch = gpu.stack(call.weights.weight_hh), gpu.stack(call.weights.weight_ch)
    assert w_hh is not None
    cx, lengths, reverse = call.cx.contiguous(), call.layout.lengths, _bits(call.layout.reverse)

    def launch(dh: Tensor, dc: Tensor, dhgates: Tensor, step: int) -> None:
        normalized_cell_backward(
            dy,
            saved.reserve,
            w_ch,
            cx,
            lengths,
            dh,
            dc,
            dhgates,
            *written,
            reverse=reverse,
            step=step,
            options=call.options,
        )

    with torch.cuda.device_of(cx):
        dhx, dcx = _run_backwards(call, T, w_hh, grads, launch)
    found = normalized.add_up(written, dhx, dcx)
    return normalized.gradients(found, saved.y, call, needs)
