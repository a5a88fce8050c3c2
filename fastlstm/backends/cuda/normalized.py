"""The backward pass of calls with layer norm, step by step: see :mod:`stepwise`.

Forward they differ from other calls step by step in the kernel of the cell and in the width of the
reserve alone. They have no persistent launch: the norm of W_hh h' is over all units of a row, so
all blocks of a launch would have to wait for each other three times in each step instead of once.
"""

from __future__ import annotations

from torch import Tensor

from fastlstm.backends import gpu, pointers
from fastlstm.backends.cuda import graphs, recurrence, stepwise
from fastlstm.backends.cuda.recurrence import Launch
from fastlstm.backends.gpu import normalized
from fastlstm.backends.gpu.normalized import Found
from fastlstm.call import Call, Gradients, Needs, OutputGradients, Saved


def backward(
    launch: Launch, call: Call, saved: Saved, grads: OutputGradients, needs: Needs
) -> Gradients:
    """All gradients; by a CUDA graph of all steps, where that is faster."""
    found = _replay(launch, call, saved, grads, needs.weight_ch) if launch.in_graph else None
    if found is None:
        found = _run(launch, call, saved, grads, needs.weight_ch)
    return normalized.gradients(found, saved.y, call, needs)


def _run(
    launch: Launch, call: Call, saved: Saved, grads: OutputGradients, needs_weight_ch: bool
) -> Found:
    """Launch all steps."""
    written = normalized.new(call, saved.y, saved.y.shape[1], needs_weight_ch)
    dy = None if grads.dy is None else pointers.unit_stride(grads.dy)
    dcells, reserve = gpu.contiguous(grads.dcells), saved.reserve.contiguous()
    weight_hh, cx = gpu.stack(call.weights.weight_hh), call.cx.contiguous()
    assert weight_hh is not None
    assert call.options is not None
    w_ch, _owner = pointers.grid(call.weights.weight_ch)
    arguments = {
        **launch.arguments,
        **stepwise.norm_arguments(call.options),
        "dy": pointers.address(dy),
        "dy_stride": pointers.outer_strides(dy),
        "dcells": pointers.address(dcells),
        "reserve": reserve.data_ptr(),
        "weight_ch": w_ch,
        "cx": cx.data_ptr(),
        "digates": written.dgates.data_ptr(),
        "digates_stride": pointers.outer_strides(written.dgates),
        "dz": written.dz.data_ptr(),
        "dbias": 0,
        "dweight_ch": pointers.address(written.dweight_ch),
        "dnorm_hh": written.dnorm_hh.data_ptr(),
        "dnorm_c": pointers.address(written.dnorm_c),
    }
    dhx, dcx = stepwise.backward(launch.kernels, arguments, weight_hh, call, grads)
    return normalized.add_up(written, dhx, dcx)


def _replay(
    launch: Launch, call: Call, saved: Saved, grads: OutputGradients, needs_weight_ch: bool
) -> Found | None:
    """Have a CUDA graph run all steps; None if there is none yet."""
    inputs, put, rest = graphs.flatten((recurrence.recurrent(call, call.cx), saved, grads))

    def body(inputs: list[Tensor]) -> list[Tensor]:
        call, saved, grads = put(inputs)
        again = recurrence.prepare(launch.kernels, "backward", saved.y, call.layout)
        return list(_run(again, call, saved, grads, needs_weight_ch))

    key = recurrence.graph_key(launch, ("norm", rest, needs_weight_ch))
    found = recurrence.GRAPHS.run(key, body, inputs)
    return None if found is None else Found(*found)
