"""Fused C++ kernels for the CPU (``csrc/cpu``): the whole recurrence in one call each way.

The input projection and all gradients are computed in there too; torch allocates the pointers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.backends import pointers
from fastlstm.backends.cpu import buffer_pool
from fastlstm.backends.cpu.prepacked import PackedWeights
from fastlstm.call import Problem

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
# No kernel multiplies these: they are computed in float32, and rounded when all is done.
_COMPUTED_IN = {torch.float16: torch.float32}
# Where PyTorch's functions are sometimes faster.
_COMPARED = (torch.float32, torch.float64)
# The backward pass needs no reserve if it gets the state before every k-th step.
CHECKPOINTS = True


def supports(problem: Problem) -> str | None:
    """None, or why these kernels cannot run ``problem``."""
    if problem.device != "cpu":
        return f"runs on the cpu, not on {problem.device}"
    if problem.dtype not in _DTYPES and problem.dtype not in _COMPUTED_IN:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*_DTYPES, *_COMPUTED_IN))
        return f"has {known}, not {str(problem.dtype).removeprefix('torch.')}"
    return None


def slower(problem: Problem) -> str | None:
    """None, or why PyTorch's own functions beat these kernels on ``problem``, where they run it.

    Measured on 2 cores of Zen 4 with torch 2.13. One step of one cell is over before packing its
    weights would pay, and ``torch.lstm_cell`` costs less to call: in inference these kernels take
    0.2 to 1 times as long from 1 MFLOP on for four rows and fewer, from 16 on for more, and up to
    2.4 times as long below; in training 0.7 to 1.9 times, mostly above 1. With some 8 units and a
    few steps of 1,000 inputs, packing the input takes longer than its products: 1.2 to 1.4 times;
    with 2 units and 128 inputs 1.1 to 1.7 times up to 10,000 rows, and half as long beyond. In
    bfloat16 PyTorch's are no faster, and in float16 it has none on most CPUs.
    A compiler is not asked for T and B, or it would compile anew for every other answer.
    """
    if problem.cell and problem.requires_grad:
        return "slower than torch's for a single step with gradients"
    compiling = torch.compiler.is_compiling()
    if problem.cell:
        B = 1 if compiling else problem.B
        flops = 8 * B * problem.H * (problem.I + problem.H)
        if flops < (1e6 if B <= 4 else 16e6):
            return f"slower than torch's for a single step of {flops / 1e6:.1f} MFLOP"
    if not problem.requires_grad or problem.dtype not in _COMPARED or compiling:
        return None
    # No size is a variable of its own here: torch.jit.trace names values after those, and its
    # second trace, which need not come this way, would differ from the first.
    few_steps = problem.H <= 8 and problem.I >= 512 and problem.T <= 8
    few_rows = problem.T <= 64 and problem.T * problem.B <= 10000
    if few_steps or (problem.H <= 4 and problem.I >= 128 and few_rows):
        return "slower than torch's for few units and steps of a wide input, with gradients"
    return None


def isas() -> list[str]:
    """The instruction sets that this build and this machine have, fastest first."""
    return list(_C.isas())


def _computed_wider(
    function: Callable[..., tuple[Tensor, ...]], dtype: torch.dtype, *arguments: Any, isa: str
) -> tuple[Tensor, ...]:
    """What ``function`` returns for numbers of a dtype that no kernel has, not yet rounded."""

    def widen(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [widen(item) for item in value]
        is_narrow = isinstance(value, Tensor) and value.dtype == dtype
        return value.to(_COMPUTED_IN[dtype]) if is_narrow else value

    return function(*map(widen, arguments), isa=isa)


def _sums(dtype: torch.dtype) -> torch.dtype:
    """What the kernels sum up in, and keep c in."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


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
    checkpoint_every: int = 0,
    return_sequence: bool = True,
    packed: PackedWeights | None = None,
    isa: str = "auto",
) -> tuple[Tensor, ...]:
    """(y, hy, cy, cells, reserve).

    y is empty unless ``return_sequence``, which training needs without ``checkpoint_every``; cells
    are empty unless ``return_all_cells``. reserve is empty unless ``train``: (T, B, G, 5H) or
    (N, G, 5H), or with ``checkpoint_every`` = k the states (ceil(T / k), G, B, P + H), in float32
    or wider. ``isa`` forces an instruction set, one of :func:`isas`.
    """
    dtype = input.dtype
    if dtype in _COMPUTED_IN:
        weights = (weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr)
        course = (reverse, lengths, batch_sizes, reset)
        options = (train, return_all_cells, checkpoint_every, return_sequence, packed)
        arguments = (input, *weights, hx, cx, *course, *options)
        *outputs, reserve = _computed_wider(forward, dtype, *arguments, isa=isa)
        if not (train and checkpoint_every):
            reserve = reserve.to(dtype)
        return *(output.to(dtype) for output in outputs), reserve
    (G, B, P), H = hx.shape, cx.shape[2]
    rows = input.shape[: 1 if batch_sizes is not None else 2]
    new_empty = input.new_empty
    y = new_empty(*rows, G, P) if return_sequence else new_empty(0)
    hy, cy = new_empty(G, B, P), new_empty(G, B, H)
    cells = new_empty(*rows, G, H) if return_all_cells else new_empty(0)
    steps = rows[0] if batch_sizes is None else batch_sizes.shape[0]
    if train and checkpoint_every:
        sizes_of_states = (-(-steps // checkpoint_every), G, B, P + H)
        reserve = new_empty(sizes_of_states, dtype=_sums(dtype))
    else:
        reserve = buffer_pool.empty((*rows, G, 5 * H), dtype) if train else new_empty(0)
    if hy.numel() == 0:
        return y, hy, cy, cells, reserve

    I, proj_size = weight_ih[0].shape[1] if weight_ih else 0, P if weight_hr else 0
    T, about_rows, _row_owners = pointers.about_rows(rows[0], B, lengths, batch_sizes, reset)
    sizes = (_DTYPES[dtype], T, B, G, H, I, proj_size)
    threads = torch.get_num_threads()
    input, hx, cx = pointers.unit_stride(input), hx.contiguous(), cx.contiguous()
    parameters = (weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr)
    (w_ih, b_ih, b_hh, w_hh, w_ch, w_hr), _owners = zip(
        *map(pointers.grid, parameters), strict=True
    )
    kept = None
    # A call that reads each weight a few times only packs none, and needs no checksum.
    if packed is not None and not _C.lstm_forward_streams(*sizes, isa):
        kept = packed.of(sizes[0], sizes[3:], w_ih, w_hh, threads, isa)
    workspace = pointers.workspace(_C.lstm_forward_workspace(*sizes, threads, isa))
    _C.lstm_forward(
        *sizes,
        reverse=reverse,
        **about_rows,
        input=input.data_ptr(),
        input_stride=pointers.outer_strides(input, batch_sizes is not None),
        weight_ih=w_ih,
        bias_ih=b_ih,
        bias_hh=b_hh,
        weight_hh=w_hh,
        weight_ch=w_ch,
        weight_hr=w_hr,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        y=y.data_ptr() if return_sequence else 0,
        hy=hy.data_ptr(),
        cy=cy.data_ptr(),
        cells=cells.data_ptr() if return_all_cells else 0,
        checkpoint_every=checkpoint_every,
        reserve=reserve.data_ptr() if train and not checkpoint_every else 0,
        states=reserve.data_ptr() if train and checkpoint_every else 0,
        packed=pointers.address(kept),
        is_packed=kept is not None,
        workspace=workspace.data_ptr(),
        num_threads=threads,
        isa=isa,
    )
    return y, hy, cy, cells, reserve


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
    checkpoint_every: int = 0,
    isa: str = "auto",
) -> tuple[Tensor, ...]:
    """(dinput, dweight_ih, dbias, dweight_hh, dweight_ch, dweight_hr, dhx, dcx).

    The weights' are over the groups. ``needs`` says which of the first six are asked for; the
    others are empty. With ``checkpoint_every`` the reserve holds states, y may be empty, and the
    gradients are those without, bit for bit; but not in float16, where the reserve was rounded.
    """
    dtype = y.dtype
    if dtype in _COMPUTED_IN:
        weights = (weight_ih, bias_ih, bias_hh, weight_hh, weight_ch, weight_hr)
        course = (reverse, lengths, batch_sizes, reset)
        grads, options = (dy, dhy, dcy, dcells), (needs, checkpoint_every)
        arguments = (*grads, y, reserve, input, *weights, hx, cx, *course, *options)
        gradients = _computed_wider(backward, dtype, *arguments, isa=isa)
        return tuple(gradient.to(dtype) for gradient in gradients)
    (G, B, P), H = hx.shape, cx.shape[2]
    I = weight_ih[0].shape[1] if weight_ih else 0
    sizes_of = ((G, 4 * H, I), (G, 4 * H), (G, 4 * H, P), (G, 3 * H), (G, P, H))
    dinput = y.new_empty(input.shape if needs[0] else 0)
    dweights = [
        y.new_empty(size if needed else 0, dtype=_sums(dtype))
        for size, needed in zip(sizes_of, needs[1:], strict=True)
    ]
    dhx, dcx = y.new_empty(G, B, P), y.new_empty(G, B, H)
    if hx.numel() == 0:
        return dinput, *(dweight.zero_().to(dtype) for dweight in dweights), dhx, dcx

    rows, is_packed = input.shape[0], batch_sizes is not None
    T, about_rows, _row_owners = pointers.about_rows(rows, B, lengths, batch_sizes, reset)
    sizes = (_DTYPES[dtype], T, B, G, H, I, P if weight_hr else 0)
    threads = torch.get_num_threads()
    dy = None if dy is None else pointers.unit_stride(dy)
    dhy, dcy, dcells = (None if d is None else d.contiguous() for d in (dhy, dcy, dcells))
    reads_input = bool(weight_ih) or checkpoint_every > 0
    x = pointers.unit_stride(input) if reads_input else None
    hx, cx = hx.contiguous(), cx.contiguous()
    # As forward wrote them, unless vmap or a hook on saved tensors laid them out anew.
    y, reserve = y.contiguous(), reserve.contiguous()
    biases = (bias_ih, bias_hh) if checkpoint_every else ((), ())
    parameters = (weight_ih, *biases, weight_hh, weight_ch, weight_hr)
    (w_ih, b_ih, b_hh, w_hh, w_ch, w_hr), _owners = zip(
        *map(pointers.grid, parameters), strict=True
    )
    workspace = pointers.workspace(
        _C.lstm_backward_workspace(*sizes, checkpoint_every, threads, isa)
    )
    asked = [
        pointers.address(gradient if need else None)
        for gradient, need in zip((dinput, *dweights), needs, strict=True)
    ]
    _C.lstm_backward(
        *sizes,
        reverse=reverse,
        **about_rows,
        dy=pointers.address(dy),
        dy_stride=pointers.outer_strides(dy, is_packed),
        dhy=pointers.address(dhy),
        dcy=pointers.address(dcy),
        dcells=pointers.address(dcells),
        checkpoint_every=checkpoint_every,
        reserve=0 if checkpoint_every else reserve.data_ptr(),
        states=reserve.data_ptr() if checkpoint_every else 0,
        y=y.data_ptr() if y.numel() else 0,
        input=pointers.address(x),
        input_stride=pointers.outer_strides(x, is_packed),
        weight_ih=w_ih,
        bias_ih=b_ih,
        bias_hh=b_hh,
        weight_hh=w_hh,
        weight_ch=w_ch,
        weight_hr=w_hr,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        dinput=asked[0],
        dinput_stride=pointers.outer_strides(dinput if needs[0] else None, is_packed),
        dweight_ih=asked[1],
        dbias=asked[2],
        dweight_hh=asked[3],
        dweight_ch=asked[4],
        dweight_hr=asked[5],
        dhx=dhx.data_ptr(),
        dcx=dcx.data_ptr(),
        workspace=workspace.data_ptr(),
        num_threads=threads,
        isa=isa,
    )
    return dinput, *(dweight.to(dtype) for dweight in dweights), dhx, dcx
