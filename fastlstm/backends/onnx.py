"""The nodes that ``torch.onnx.export`` records: ONNX's ``LSTM``, or a ``Scan`` where that cannot.

This backend computes nothing. It is chosen while an export traces, whatever backend was asked for.
The node is https://onnx.ai/onnx/operators/onnx__LSTM.html with peepholes as
its input P and lengths as sequence_lens. It has neither a projection nor an input that is already
projected: those become a Scan over :func:`fastlstm.backends.reference.lstm_step`, and so do the
options of cells. (The node's own ``clip`` clips what enters the gates too, not only c.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastlstm.backends.reference import lstm_step, project
from fastlstm.call import Call, Results, Wanted
from fastlstm.options import PLAIN_CELLS, STEPWISE, CellOptions
from fastlstm.problem import Problem

CHECKPOINTS = False


def why_not(problem: Problem) -> str | None:
    """Why ONNX has no node for ``problem``; None if it has one."""
    if problem.is_packed_sequence:
        return "has no PackedSequence in ONNX; give a padded batch with lengths"
    if problem.has_reset:
        return "has no reset mask"
    for name in ("recurrent_dropout", "weight_dropout", "variational_dropout"):
        if name in problem.options:
            return f"has no {name} in ONNX; call eval() first"
    if problem.return_all_cells:
        return "returns only the last cell state"
    return None


def forward(call: Call, wanted: Wanted | None = None) -> Results:
    """Record every group of a call. :func:`why_not` excludes calls with ``return_all_cells``.

    Both directions of a bidirectional layer are one node, other groups one node each. A node
    computes in float32 what is bfloat16, which ONNX has for an LSTM from opset 22 on only.

    Raises:
        RuntimeError: torch has no ``torch.onnx.ops`` (before 2.8), or the exporter is the one of
            ``dynamo=False`` and the LSTM needs a Scan.
    """
    weights, reverse = call.weights, call.layout.reverse
    if not weights.weight_ih and call.input.stride()[:2] == (0, 0):
        # The same gates at every step are a bias, beside an input of one zero.
        igates = call.input
        weight_ih = [weight.new_zeros(weight.shape[0], 1) for weight in weights.weight_hh]
        weights = weights._replace(weight_ih=weight_ih, bias_ih=list(igates[0, 0]))
        call = call._replace(input=igates.new_zeros(*igates.shape[:2], 1), weights=weights)
    if weights.weight_hr or not weights.weight_ih or call.options is not None:
        y, hy, cy = _scans(call)
    elif call.input.dim() == 3 and list(reverse) == [False, True]:
        y, hy, cy = _node("bidirectional", call)
    else:
        groups = []
        for group, backwards in enumerate(reverse):
            one = slice(group, group + 1)
            x = call.input if call.input.dim() == 3 else call.input[:, :, group]
            own = Call(x, weights.of(one), call.hx[one], call.cx[one], call.layout)
            groups.append(_node("reverse" if backwards else "forward", own))
        y, hy, cy = _join(groups)
    return Results(y, hy, cy)


def _join(groups: Sequence[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    if len(groups) == 1:
        return groups[0]
    y, hy, cy = zip(*groups, strict=True)
    return torch.cat(y, dim=2), torch.cat(hy), torch.cat(cy)


def _node(direction: str, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """One LSTM node of one or two directions, whose input is (T, B, I)."""
    x, weights, hx, cx, layout, _ = call
    H = int(hx.shape[2])  # which is a tensor in the older exporter
    none = [weight.new_zeros(4 * H) for weight in weights.weight_hh]
    B = None
    if weights.bias_ih or weights.bias_hh:
        biases = (weights.bias_ih, weights.bias_hh)
        B = torch.cat([_stack(bias or none, H) for bias in biases], dim=1)
    inputs: tuple[Tensor | None, ...] = (
        x,
        _stack(weights.weight_ih, H),
        _stack(weights.weight_hh, H),
        B,
        None if layout.lengths is None else layout.lengths.to(torch.int32),
        hx,
        cx,
        _stack(weights.weight_ch, H) if weights.weight_ch else None,
    )
    narrow = x.dtype == torch.bfloat16
    if narrow:
        inputs = tuple(t.float() if t is not None and t.dtype == x.dtype else t for t in inputs)
    outputs = (_symbol if torch.compiler.is_exporting() else _LSTMNode.apply)(direction, H, *inputs)
    y, hy, cy = (output.to(x.dtype) for output in outputs) if narrow else outputs
    return y.transpose(1, 2), hy, cy  # a node's Y is (T, G, B, H)


def _stack(parameter: Sequence[Tensor], H: int) -> Tensor:
    """(G, n * H, ...) of one parameter, with gate o in second place, where ONNX has it.

    That is i, o, f, g from our i, f, g, o, and i, o, f from the i, f, o of peepholes.
    """
    return torch.stack([torch.cat([w[:H], w[-H:], w[H:-H]]) for w in parameter])


def _sizes(x: Tensor, hx: Tensor) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The sizes of a node's three outputs."""
    G, B, H = hx.shape
    return (x.shape[0], G, B, H), (G, B, H), (G, B, H)


def _symbol(direction: str, hidden_size: int, *inputs: Tensor | None) -> Sequence[Tensor]:
    """The node in a graph of ``torch.export``."""
    if not hasattr(torch.onnx, "ops"):
        raise RuntimeError(
            f"torch.onnx.export: expected torch 2.8 or newer for an LSTM, got {torch.__version__}"
        )
    x, hx = inputs[0], inputs[5]
    assert x is not None and hx is not None
    outputs = torch.onnx.ops.symbolic_multi_out(
        "LSTM",
        inputs,
        {"direction": direction, "hidden_size": hidden_size},
        dtypes=[x.dtype] * 3,
        shapes=_sizes(x, hx),
    )
    return [output.to(x.device) for output in outputs]  # torch makes them on the CPU


class _LSTMNode(torch.autograd.Function):
    """The node in a graph of the older exporter; its values are zeros, which nothing reads."""

    @staticmethod
    def forward(
        ctx: Any, direction: str, hidden_size: int, *inputs: Tensor | None
    ) -> tuple[Tensor, ...]:
        x, hx = inputs[0], inputs[5]
        assert x is not None and hx is not None
        return tuple(x.new_zeros(size) for size in _sizes(x, hx))

    @staticmethod
    def symbolic(g: Any, direction: str, hidden_size: int, *inputs: Any) -> Any:
        absent = g.op("prim::Constant")
        absent.setType(torch._C.OptionalType.ofTensor())
        given = [absent if value is None else value for value in inputs]
        return g.op("LSTM", *given, direction_s=direction, hidden_size_i=hidden_size, outputs=3)


def _scans(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """One Scan a group, right for any number of steps."""
    if not torch.compiler.is_exporting():
        raise RuntimeError(
            "torch.onnx.export: an LSTM with proj_size, layer_norm, zoneout or cell_clip, or a "
            "sequence of igates, needs dynamo=True"
        )
    from torch._higher_order_ops.scan import scan

    igates, weights = call.input, call.weights
    if weights.weight_ih:
        igates = project(igates, weights.weight_ih, weights.bias_ih, weights.bias_hh)
    active: tuple[Tensor, ...] = ()
    if call.layout.lengths is not None:
        steps = torch.arange(igates.shape[0], device=igates.device)
        active = ((steps.unsqueeze(1) < call.layout.lengths).unsqueeze(2),)
    groups = []
    for group, backwards in enumerate(call.layout.reverse):
        w_ch, w_hr = (w[group] if w else None for w in (weights.weight_ch, weights.weight_hr))
        options = PLAIN_CELLS if call.options is None else _of_every_step(call.options, group)
        step = partial(_step, weights.weight_hh[group], w_ch, w_hr, options)
        # No two inputs of a scan may share memory, as the zeros of h and c do.
        start = call.hx[group], call.cx[group].clone()
        xs = (igates[:, :, group], *active)
        # Scan's own tracer takes sizes that are equal by chance for one, as a batch of 3 and three
        # hidden units, and would then fix the batch.
        with torch.fx.experimental._config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
            (h, c), y = scan(step, start, xs, dim=0, reverse=backwards)
        groups.append((y.unsqueeze(2), h[None], c[None]))
    return _join(groups)


def _of_every_step(options: CellOptions, group: int) -> CellOptions:
    """The options of a group, which are the same at every step and for every row.

    Raises:
        RuntimeError: zoneout's masks of a step of training.
    """
    for name in STEPWISE:
        tensor = getattr(options, name)
        if tensor is not None and tensor.stride()[:2] != (0, 0):
            raise RuntimeError(
                "torch.onnx.export: the LSTM has masks of zoneout; call eval() first"
            )
    first = options.at(0, group)
    return first.map(lambda name, tensor: tensor[0] if name in STEPWISE else tensor)


def _step(
    weight_hh: Tensor,
    weight_ch: Tensor | None,
    weight_hr: Tensor | None,
    options: CellOptions,
    state: tuple[Tensor, Tensor],
    xs: tuple[Tensor, ...],
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A Scan's body: (h, c) and what one step reads to the next (h, c) and what it emits."""
    igates, *active = xs
    h, c = lstm_step(igates, weight_hh, *state, weight_ch, weight_hr, options)
    if not active:
        return (h, c), h.clone()  # no two results of a scan may be one tensor
    next = torch.where(active[0], h, state[0]), torch.where(active[0], c, state[1])
    return next, torch.where(active[0], h, 0.0)
