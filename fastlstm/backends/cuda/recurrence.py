"""The recurrence by ``csrc/cuda``: one persistent launch, or a matrix product and a cell a step."""

from __future__ import annotations

from collections.abc import Hashable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlstm.backends import gpu, pointers
from fastlstm.backends.cuda import graphs, stepwise, ways
from fastlstm.call import Call, Needs, OutputGradients, Results, Saved, SequenceLayout

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
}

APART: dict[str, Any] = {"layered": False, "weight_ih": (0, 0)}
"""The arguments about layers of a call whose groups are apart."""


GRAPHS = graphs.Graphs()
"""Of passes step by step, whose launches would take longer than the GPU."""


class Launch(NamedTuple):
    """The arguments that all launches of one pass share; made by :func:`prepare`."""

    kernels: Any
    arguments: dict[str, Any]
    """dtype, T, B, G, H, the layout of the sequences, the device's number and the stream"""
    products: str
    plan: dict[str, int] | None
    """that of a persistent launch; None: a matrix product and a cell for each step"""
    in_graph: bool
    """without a plan: whether a CUDA graph of all steps is faster than their launches"""
    owners: tuple[Tensor | None, ...]
    """tensors that own the memory in ``arguments``"""


@lru_cache(maxsize=1024)
def best_plan(
    kernels: Any,
    direction: str,
    sizes: tuple[str, int, int, int],
    products: str,
    number: int,
    layered: bool = False,
) -> tuple[dict[str, int] | None, str]:
    """The best plan by the model of csrc/cuda/plan.cpp, or None, and why the weights do not fit.

    ``sizes`` are dtype, B, G and H, ``number`` the device's; ``layered`` if groups are layers.
    """
    device = kernels.device(number)
    plans, reason = kernels.plans(
        direction, *sizes, layered=layered, products=products, device=device
    )
    return plans[0] if plans else None, reason


@lru_cache(maxsize=1024)
def is_stepwise(
    kernels: Any, about: ways.Pass, products: str, number: int, captured: bool = False
) -> bool:
    """Whether a pass that has a persistent plan is expected to be faster step by step.

    ``number`` is the device's; ``captured`` if a CUDA graph of the user's will launch the steps.
    """
    persistent, by_steps = expected_ns(kernels, about, products, number, captured)
    return by_steps < persistent


def wants_graph(about: ways.Pass, device: torch.device) -> bool:
    """Whether a CUDA graph of all steps is faster than their launches."""
    return device.type == "cuda" and ways.wants_graph(about)


def expected_ns(
    kernels: Any, about: ways.Pass, products: str, number: int, captured: bool = False
) -> tuple[float, float]:
    """The times of a pass by a persistent launch and step by step, measured or by the models."""
    sizes = (about.dtype, about.B, about.G, about.H)
    plan, _ = best_plan(kernels, about.direction, sizes, products, number)
    by_steps = ways.stepwise_ns(about, captured)
    if plan is None:
        return float("inf"), by_steps
    how = {"products": products, "plan": plan, "costs": kernels.costs()}
    step = kernels.step_ns(about.direction, *sizes, **how)
    known = ways.measured(about, number)
    if known is not None:
        step, by_steps = 1e3 * known.persistent_us, 1e3 * known.stepwise_us * about.T
    return ways.persistent_ns(about, plan, step), by_steps


def prepare(
    kernels: Any, direction: str, y: Tensor, layout: SequenceLayout, layers: int = 0
) -> Launch:
    """Prepare a pass, "forward" or "backward", of a call whose output is ``y`` (T, B, G, H).

    With ``layers`` the groups are so many layers, and y (T, B, H) is the last one's. The launch is
    for the stream that is current on y's device. Its plan may be replaced by another of
    ``kernels.plans``, or by None.

    Lengths are clamped, whatever came: a kernel that trusts a wrong one writes past the end.
    """
    T, B, G, H = *y.shape[:2], layers or y.shape[2], y.shape[-1]
    reverse, lengths, _, reset = layout
    if lengths is not None:
        lengths = lengths.to(torch.int64).clamp(0, T).contiguous()
    reset = gpu.contiguous(reset)
    on_gpu = y.device.type == "cuda"  # else the kernels are emulated
    number = y.device.index if on_gpu else 0
    dtype, products = DTYPES[y.dtype], gpu.precision()
    arguments = {
        "dtype": dtype,
        "T": T,
        "B": B,
        "G": G,
        "H": H,
        "reverse": reverse,
        "lengths": pointers.address(lengths),
        "reset": pointers.address(reset),
        "device": number,
        "stream": torch.cuda.current_stream().cuda_stream if on_gpu else 0,
    }
    sizes = (dtype, B, G, H)
    about, captured = ways.Pass(direction, *sizes, T), gpu.is_capturing(y.device)
    # A single step would read W_hh only once.
    plan = None
    if T > 1:
        plan, _ = best_plan(kernels, direction, sizes, products, number, layers > 0)
        has_ways = plan is not None and not layers
        if has_ways and is_stepwise(kernels, about, products, number, captured):
            plan = None
    owners = (lengths, reset)
    in_graph = not captured and wants_graph(about, y.device)
    return Launch(kernels, arguments, products, plan, in_graph, owners)


def forward(
    launch: Launch,
    igates: Tensor,
    call: Call,
    results: Results,
    about_layers: dict[str, Any] = APART | {"bias": (0, 0), "y_below": 0},
) -> None:
    """Fill the tensors of ``results``; cells and reserve only if they are not empty.

    Args:
        launch: what :func:`prepare` made.
        igates: (T, B, G, 4H), or (T, B, 1, 4H) of the first layer.
        call: its hx, cx and recurrent weights are read.
        results: y, hy, cy, cells and reserve, to be written.
        about_layers: the kernel's arguments layered, weight_ih, bias and y_below.
    """
    kernels, plan = launch.kernels, launch.plan
    igates, weight_hh = pointers.unit_stride(igates), gpu.stack(call.weights.weight_hh)
    assert weight_hh is not None
    w_ch, _owner = pointers.grid(call.weights.weight_ch)
    y, hy, cy, cells, reserve = results
    arguments = {
        **launch.arguments,
        "igates": igates.data_ptr(),
        "igates_stride": pointers.outer_strides(igates),
        "weight_ch": w_ch,
        "y": y.data_ptr(),
        "cells": cells.data_ptr() if cells.numel() else 0,
        "reserve": reserve.data_ptr() if reserve.numel() else 0,
    }
    if plan is not None:
        hx, cx = call.hx.contiguous(), call.cx.contiguous()
        workspace = y.new_empty(plan["workspace_bytes"], dtype=torch.uint8)
        run = kernels.forward
        if call.options is not None:
            run = kernels.forward_with_options
            arguments["options"] = stepwise.option_arguments(call.options)
        run(
            **arguments,
            **about_layers,
            weight_hh=(weight_hh.data_ptr(), weight_hh.stride(0)),
            hx=hx.data_ptr(),
            cx=cx.data_ptr(),
            hy=hy.data_ptr(),
            cy=cy.data_ptr(),
            workspace=workspace.data_ptr(),
            products=launch.products,
            plan=plan,
        )
        return
    if launch.in_graph and _replay_forward(launch, igates, call, results):
        return
    stepwise.forward(kernels, arguments, weight_hh, call, results)


def backward(
    launch: Launch,
    call: Call,
    saved: Saved,
    grads: OutputGradients,
    needs: Needs,
    about_layers: dict[str, Any] = APART,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """dgates (T, B, G, 4H), dbias (G, 4H) and dweight_ch (G, 3H) or empty, dhx and dcx.

    ``about_layers`` are the kernel's arguments layered and weight_ih. The dgates of layers are
    contiguous for each layer.
    """
    kernels, plan = launch.kernels, launch.plan
    if plan is None and launch.in_graph:
        replayed = _replay_backward(launch, call, saved, grads, needs)
        if replayed is not None:
            return replayed
    (G, B, H), T = call.cx.shape, saved.y.shape[0]
    new_empty, sums = saved.y.new_empty, gpu.sums(saved.y.dtype)
    # Not into the reserve, as the kernels could: after retain_graph a second backward reads it.
    if about_layers["layered"]:
        dgates = new_empty(G, T, B, 4 * H).permute(1, 2, 0, 3)
    else:
        dgates = new_empty(T, B, G, 4 * H)
    # Sums over time of each tile of the batch; a loop over steps adds to its single one.
    new, tiles = (saved.y.new_zeros, 1) if plan is None else (new_empty, plan["tiles"])
    dbias = new((tiles, G, 4 * H), dtype=sums) if needs.bias else None
    dweight_ch = new((tiles, G, 3 * H), dtype=sums) if needs.weight_ch else None
    dy = None if grads.dy is None else pointers.unit_stride(grads.dy)
    dcells, y, reserve = gpu.contiguous(grads.dcells), saved.y, saved.reserve
    reserve, hx, cx = reserve.contiguous(), call.hx.contiguous(), call.cx.contiguous()
    weight_hh = gpu.stack(call.weights.weight_hh)
    assert weight_hh is not None
    w_ch, _owner = pointers.grid(call.weights.weight_ch)
    arguments = {
        **launch.arguments,
        "dy": pointers.address(dy),
        "dy_stride": pointers.outer_strides(dy),
        "dcells": pointers.address(dcells),
        "reserve": reserve.data_ptr(),
        "weight_ch": w_ch,
        "cx": cx.data_ptr(),
        "digates": dgates.data_ptr(),
        "digates_stride": pointers.outer_strides(dgates),
        "dbias": pointers.address(dbias),
        "dweight_ch": pointers.address(dweight_ch),
    }
    if plan is not None:
        dhx, dcx = torch.empty_like(hx), torch.empty_like(cx)
        dhy, dcy = gpu.contiguous(grads.dhy), gpu.contiguous(grads.dcy)
        workspace = new_empty(plan["workspace_bytes"], dtype=torch.uint8)
        run = kernels.backward
        if call.options is not None:
            run, kept = kernels.backward_with_options, torch.empty_like(hx, dtype=sums)
            arguments["options"] = stepwise.option_arguments(call.options)
            arguments["dh_kept"] = kept.data_ptr()
        run(
            **arguments,
            dhy=pointers.address(dhy),
            dcy=pointers.address(dcy),
            **about_layers,
            weight_hh=(weight_hh.data_ptr(), weight_hh.stride(0)),
            hx=hx.data_ptr(),
            dhx=dhx.data_ptr(),
            dcx=dcx.data_ptr(),
            workspace=workspace.data_ptr(),
            products=launch.products,
            plan=plan,
        )
    else:
        dhx, dcx = stepwise.backward(kernels, arguments, weight_hh, call, grads)
    return dgates, gpu.total(dbias, y), gpu.total(dweight_ch, y), dhx, dcx


def _replay_forward(launch: Launch, igates: Tensor, call: Call, results: Results) -> bool:
    """Have a CUDA graph run all steps; False if there is none yet."""
    inputs, put, rest = graphs.flatten(recurrent(call, igates))
    outputs, put_outputs, _ = graphs.flatten(results)

    def body(inputs: list[Tensor]) -> list[Tensor]:
        call, own = put(inputs), [torch.empty_like(output) for output in outputs]
        again = prepare(launch.kernels, "forward", own[0], call.layout)
        again = again._replace(plan=None, in_graph=False)
        forward(again, call.input, call, put_outputs(own))
        return own

    wanted = tuple(output.shape for output in outputs)
    return GRAPHS.run(graph_key(launch, (rest, wanted)), body, inputs, outputs) is not None


def _replay_backward(
    launch: Launch, call: Call, saved: Saved, grads: OutputGradients, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """Have a CUDA graph run all steps; None if there is none yet."""
    inputs, put, rest = graphs.flatten((recurrent(call, call.cx), saved, grads))

    def body(inputs: list[Tensor]) -> list[Tensor]:
        call, saved, grads = put(inputs)
        again = prepare(launch.kernels, "backward", saved.y, call.layout)
        again = again._replace(plan=None, in_graph=False)
        return list(backward(again, call, saved, grads, needs))

    found = GRAPHS.run(graph_key(launch, (rest, needs)), body, inputs)
    if found is None:
        return None
    dgates, dbias, dweight_ch, dhx, dcx = found
    return dgates, dbias, dweight_ch, dhx, dcx


def recurrent(call: Call, input: Tensor) -> Call:
    """The call with the weights that the recurrence reads, and this input."""
    weights = call.weights._replace(weight_ih=[], bias_ih=[], bias_hh=[], weight_hr=[])
    return call._replace(input=input, weights=weights)


def graph_key(launch: Launch, rest: Hashable) -> Hashable:
    """What the launches of a pass depend on, beside the shapes and dtypes of its tensors."""
    where = (launch.arguments["device"], launch.arguments["stream"])
    return where, launch.products, torch.get_float32_matmul_precision(), rest
