"""Fused C++ kernels for the CPU (``csrc/cpu``): the whole recurrence in one call each way.

The kernels compute the input projection and all gradients, too; torch allocates the memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlstm import _C
from fastlstm.backends import pointers
from fastlstm.backends.cpu import cell_options, normalized
from fastlstm.backends.cpu.prepacked import PrepackedWeights
from fastlstm.call import Call, Gradients, Needs, OutputGradients, Results, Saved, Wanted
from fastlstm.problem import Problem

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
# No kernel multiplies these: they are computed in float32, and rounded when all is done.
_COMPUTED_IN = {torch.float16: torch.float32}
_MISSING = None if _C.isas() else f"has no kernels: {_C.cuda.reason}"
_SIZES: tuple[Any, ...] = ("dtype", "T", "B", "G", "H", "I", "P")
# The dtypes in which PyTorch's functions are sometimes faster.
_COMPARED = (torch.float32, torch.float64)
# The backward pass needs no reserve if it gets the state before every k-th step.
CHECKPOINTS = True


def why_not(problem: Problem) -> str | None:
    """Why these kernels cannot run ``problem``; None if they can."""
    if _MISSING is not None:
        return _MISSING
    if problem.device != "cpu":
        return f"runs on the cpu, not on {problem.device}"
    if problem.dtype not in _DTYPES and problem.dtype not in _COMPUTED_IN:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*_DTYPES, *_COMPUTED_IN))
        return f"computes in {known}, not {str(problem.dtype).removeprefix('torch.')}"
    if problem.cell_options and problem.proj_size:
        return f"has no {problem.cell_options[0]} beside proj_size"
    return None


def why_slower(problem: Problem) -> str | None:
    """Why PyTorch's own functions are faster on ``problem``, where they run it; None if not.

    Measured on 2 cores of Zen 4 with torch 2.13. With some 8 units and a few steps of 1,000 inputs,
    packing the input takes longer than its products: 1.2 to 1.4 times; with 2 units and 128 inputs
    1.1 to 1.7 times up to 10,000 rows, and half as long beyond. A single step of up to 64 rows is
    faster than ``torch.lstm_cell`` at all sizes. In bfloat16 PyTorch's are no faster, and in
    float16 it has none on most CPUs.
    Direct calls ask ``is_slower`` of ``csrc/direct/bindings.cpp``, which says the same.
    A compiler is not asked for T and B, or it would compile again for every other answer.
    """
    compiling = torch.compiler.is_compiling()
    if not problem.requires_grad or problem.dtype not in _COMPARED or compiling:
        return None
    # No size is a variable of its own here: torch.jit.trace names values after those, and its
    # second trace, which need not come this way, would differ from the first.
    if problem.T == 1 and problem.B <= 64:
        return None
    few_steps = problem.H <= 8 and problem.I >= 512 and problem.T <= 8
    few_rows = problem.T <= 64 and problem.T * problem.B <= 10000
    if few_steps or (problem.H <= 4 and problem.I >= 128 and few_rows):
        return "slower than torch's for few units and steps of a wide input, with gradients"
    return None


def isas() -> list[str]:
    """The instruction sets that this build and this machine have, fastest first."""
    return list(_C.isas())


def forward(
    call: Call, wanted: Wanted, prepacked: PrepackedWeights | None = None, isa: str = "auto"
) -> Results:
    """Run a call. Training needs y, unless there are checkpoints.

    Args:
        call: its tensors are on the CPU.
        wanted: what to return and to keep.
        prepacked: where the prepacked weights are kept for the next call; not used with options.
        isa: an instruction set, one of :func:`isas`; "auto" is the fastest.
    """
    call, dtype = pointers.materialized_call(call), call.input.dtype
    if dtype in _COMPUTED_IN:
        widened = _cast(call, dtype, _COMPUTED_IN[dtype])
        results = forward(widened, wanted, prepacked, isa)
        *outputs, reserve = results
        if not (wanted.train and wanted.checkpoint_every):
            reserve = reserve.to(dtype)
        return Results._make((*(output.to(dtype) for output in outputs), reserve))
    if call.options is not None:
        if call.options.norm_hh is not None:
            return normalized.forward(call, wanted, isa)
        prepacked, wanted = None, wanted._replace(y=True)
    if prepacked is not None and (done := prepacked.run(call, wanted)) is not None:
        return done
    input, weights, hx, cx, layout, _ = call
    train, returns_y, returns_cells, every = wanted
    (G, B, P), H = hx.shape, cx.shape[2]
    is_packed = layout.batch_sizes is not None
    rows = input.shape[: 1 if is_packed else 2]
    new_empty = input.new_empty
    y = new_empty(*rows, G, P) if returns_y else new_empty(0)
    hy, cy = new_empty(G, B, P), new_empty(G, B, H)
    cells = new_empty(*rows, G, H) if returns_cells else new_empty(0)
    T, about_rows, _row_owners = pointers.row_arguments(call)
    if train and every:
        sums = torch.float32 if dtype is torch.bfloat16 else dtype  # in which c is kept
        reserve = new_empty(-(-T // every), G, B, P + H, dtype=sums)
    else:
        reserve = _C.pooled_empty((*rows, G, 5 * H), dtype) if train else new_empty(0)
    if hy.numel() == 0:
        return Results(y, hy, cy, cells, reserve)

    I = weights.weight_ih[0].shape[1] if weights.weight_ih else 0
    sizes = (_DTYPES[dtype], T, B, G, H, I, P if weights.weight_hr else 0)
    threads = torch.get_num_threads()
    input = input if input.stride(-1) == 1 else input.contiguous()
    hx, cx = hx.contiguous(), cx.contiguous()
    parameters, _weight_owners = pointers.group_pointers(weights)
    options: tuple[int, Any] = (0, None)
    if call.options is not None:
        options = cell_options.arguments(call, forward=True)
    kept = None
    # A call that reads each weight a few times only packs none, and needs no checksum.
    if prepacked is not None and not _C.lstm_forward_streams(*sizes, isa):
        kept = prepacked.of((sizes[0], *sizes[3:]), parameters, threads, isa)
    _C.lstm_forward(
        **dict(zip(_SIZES, sizes, strict=True)),
        **about_rows,
        input=input.data_ptr(),
        input_stride=pointers.outer_strides(input, is_packed),
        **parameters,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        options=options[0],
        y=y.data_ptr() if returns_y else 0,
        hy=hy.data_ptr(),
        cy=cy.data_ptr(),
        cells=cells.data_ptr() if returns_cells else 0,
        checkpoint_every=every,
        reserve=reserve.data_ptr() if train and not every else 0,
        checkpoints=reserve.data_ptr() if train and every else 0,
        prepacked=0 if kept is None else kept.address,
        is_prepacked=kept is not None,
        num_threads=threads,
        isa=isa,
    )
    return Results(y, hy, cy, cells, reserve)


def backward(
    call: Call, saved: Saved, grads: OutputGradients, needs: Needs, isa: str = "auto"
) -> Gradients:
    """Run the backward pass of a call.

    In bfloat16 the gradients of weights are the kernels' sums, in float32.

    With checkpoint_every the reserve holds the checkpoints and y may be empty. The gradients are
    those without, bit for bit, except in float16, where the reserve was rounded.
    """
    call, saved, grads = pointers.materialized_backward(call, saved, grads)
    dtype = call.input.dtype
    if dtype in _COMPUTED_IN:
        wide = [_cast(each, dtype, _COMPUTED_IN[dtype]) for each in (call, saved, grads)]
        gradients = backward(wide[0], wide[1], wide[2], needs, isa)
        return Gradients(*(gradient.to(dtype) for gradient in gradients))
    if call.options is not None and call.options.norm_hh is not None:
        return normalized.backward(call, saved, grads, needs, isa)
    input, weights, hx, cx, layout, _ = call
    y, reserve, every = saved
    (G, B, P), H = hx.shape, cx.shape[2]
    I = weights.weight_ih[0].shape[1] if weights.weight_ih else 0
    sizes_of = ((G, 4 * H, I), (G, 4 * H), (G, 4 * H, P), (G, 3 * H), (G, P, H))
    dinput = y.new_empty(input.shape if needs.input else 0)
    sums = torch.float32 if dtype is torch.bfloat16 else dtype  # in which the kernels add up
    dweights = [
        _C.pooled_empty(size, sums) if needed else y.new_empty(0, dtype=sums)
        for size, needed in zip(sizes_of, needs[1:], strict=True)
    ]
    dhx, dcx = y.new_empty(G, B, P), y.new_empty(G, B, H)
    if hx.numel() == 0:
        zeros = [dweight.zero_() for dweight in dweights]
        return Gradients(*[dinput, *zeros, dhx, dcx])

    options: tuple[int, Any] = (0, None)
    if call.options is not None:
        options = cell_options.arguments(call, forward=False)
    is_packed = layout.batch_sizes is not None
    T, about_rows, _row_owners = pointers.row_arguments(call)
    sizes = (_DTYPES[dtype], T, B, G, H, I, P if weights.weight_hr else 0)
    threads = torch.get_num_threads()
    dy, dhy, dcy, dcells = grads
    dy = None if dy is None else pointers.unit_stride(dy)
    dhy, dcy, dcells = (None if d is None else d.contiguous() for d in (dhy, dcy, dcells))
    x = pointers.unit_stride(input) if weights.weight_ih or every else None
    hx, cx = hx.contiguous(), cx.contiguous()
    # As forward wrote them, unless vmap or a hook on saved tensors laid them out anew.
    y, reserve = y.contiguous(), reserve.contiguous()
    if not every:  # only the steps that are run again need biases
        weights = weights._replace(bias_ih=(), bias_hh=())
    parameters, _weight_owners = pointers.group_pointers(weights)
    asked = [
        gradient.data_ptr() if need else 0
        for gradient, need in zip((dinput, *dweights), needs, strict=True)
    ]
    _C.lstm_backward(
        **dict(zip(_SIZES, sizes, strict=True)),
        **about_rows,
        dy=0 if dy is None else dy.data_ptr(),
        dy_stride=pointers.outer_strides(dy, is_packed),
        dhy=0 if dhy is None else dhy.data_ptr(),
        dcy=0 if dcy is None else dcy.data_ptr(),
        dcells=0 if dcells is None else dcells.data_ptr(),
        checkpoint_every=every,
        reserve=0 if every else reserve.data_ptr(),
        checkpoints=reserve.data_ptr() if every else 0,
        y=y.data_ptr() if y.numel() else 0,
        input=0 if x is None else x.data_ptr(),
        input_stride=pointers.outer_strides(x, is_packed),
        **parameters,
        hx=hx.data_ptr(),
        cx=cx.data_ptr(),
        options=options[0],
        dinput=asked[0],
        dinput_stride=pointers.outer_strides(dinput if needs.input else None, is_packed),
        dweight_ih=asked[1],
        dbias=asked[2],
        dweight_hh=asked[3],
        dweight_ch=asked[4],
        dweight_hr=asked[5],
        dhx=dhx.data_ptr(),
        dcx=dcx.data_ptr(),
        num_threads=threads,
        isa=isa,
    )
    return Gradients(*[dinput, *dweights, dhx, dcx])


def _cast(value: Any, dtype: torch.dtype, wanted: torch.dtype) -> Any:
    """The object with its tensors of ``dtype`` cast to ``wanted``."""
    if isinstance(value, Tensor):
        return value.to(wanted) if value.dtype == dtype else value
    if not isinstance(value, (tuple, list)):
        return value
    items = [_cast(item, dtype, wanted) for item in value]
    return type(value)(*items) if hasattr(value, "_fields") else items
