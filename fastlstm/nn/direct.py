"""Direct calls: ``LSTM.forward`` and ``LSTMCell.forward`` as one call of a compiled function.

The kernels run a call of few numbers in 1 us, and Python takes 50 us to get there: the general
path, from the module through :mod:`fastlstm.functional` to the backend. ``csrc/direct`` makes the
same checks in 2 us. It answers a call only if it knows all about it: plain tensors on a CPU, the
module's own parameters, and nothing but autograd that watches. For any other call, and for any
error, it returns None, and the general path answers.

The compiled function draws the options of a module when it has checked everything else: a call
that it does not answer draws nothing. Their masks are then tensors of the call. Only layer norm
comes back to Python, to :func:`normalize_for_call`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from fastlstm import _C, backends
from fastlstm.call import Call, GroupWeights, LSTMWeights, SequenceLayout, Wanted
from fastlstm.functional import lstm, lstm_cell
from fastlstm.masks import normalized_input
from fastlstm.op.run import run
from fastlstm.option_checks import check_norms
from fastlstm.options import CellOptions, LSTMOptions
from fastlstm.tracing import find_mode, records_gradients


class Layout(NamedTuple):
    """How the tensors of a direct call are to be read; ``Layout`` of ``csrc/direct/call.h``."""

    input_size: int
    hidden_size: int
    num_layers: int
    num_directions: int
    is_cell: int
    batch_first: int
    has_bias: int
    has_peepholes: int
    has_states: int
    has_lengths: int
    has_reset: int
    has_norms: int
    has_hidden_mask: int
    has_keep_h: int
    has_keep_c: int
    cell_clip: float
    weight_dropout: float

    @property
    def weights_per_group(self) -> int:
        """The number of tensors of a layer and direction."""
        return 2 + (1 if self.has_norms else 2 * self.has_bias) + self.has_peepholes


class _LSTM(torch.autograd.Function):
    """A direct call that has been run, for autograd.

    Its tensors are input, hx and cx if they were given, the weights of each layer and direction,
    lengths, reset, and the masks of each layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        layout: tuple[float, ...],
        outputs: tuple[Tensor, ...],
        kept: tuple[Tensor, ...],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.layout = layout
        ctx.save_for_backward(*tensors, *kept)
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, needs = ctx.saved_tensors, ctx.needs_input_grad[3:]
        found = _C.direct_gradients(ctx.layout, saved, grads, needs)
        if found is not None:
            return None, None, None, *found
        return None, None, None, *_general_gradients(Layout(*ctx.layout), saved, grads, needs)


# Function.apply without its preparations for torch.func, which cost 4 us: no transform is active.
record = super(torch.autograd.Function, _LSTM).apply


def _general_gradients(
    layout: Layout, saved: tuple[Tensor, ...], grads: tuple[Tensor | None, ...], needs: Any
) -> list[Tensor | None]:
    """The gradients by the general path, as where a gradient is differentiated again.

    The forward pass runs once more, unseen: what watches is to see a backward pass.
    """
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad(), torch.autocast("cpu", enabled=False), _disable_current_modes():
        # Views, so that each tensor is a variable of its own, whatever it was computed from.
        tensors = [t.view_as(t) if t.requires_grad else t for t in saved[: len(needs)]]
        outputs = _general_call(layout, iter(tensors))
    asked = [tensor for tensor, need in zip(tensors, needs, strict=True) if need]
    given = [(y, grad) for y, grad in zip(outputs, grads, strict=True) if grad is not None]
    found = iter(
        torch.autograd.grad(
            [y for y, _ in given],
            asked,
            [grad for _, grad in given],
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(found) if need else None for need in needs]


def normalize_for_call(
    options: LSTMOptions, layout: tuple[Any, ...], tensors: tuple[Tensor, ...]
) -> tuple[Layout, list[Tensor]]:
    """Project and normalise the input of a direct call with layer norm.

    Args:
        options: those of the module, whose only layer has norms.
        layout: how to read the tensors, which are checked and drawn.
        tensors: of the call without norms.

    Returns:
        The layout and the tensors of the call with norms.
    """
    shape, found = Layout._make(layout), list(tensors)
    D, first = shape.num_directions, 1 + 2 * shape.has_states
    x = found[0]
    if shape.batch_first and x.dim() == 3:
        x = x.transpose(0, 1)
    groups = _groups(shape, iter(found[first:]))
    assert options.norms is not None
    check_norms(options, groups, 1)
    w_ih, _, b_ih, b_hh, *_ = zip(*groups, strict=True)
    biases = (b_ih, b_hh) if shape.has_bias else ((), ())
    found[0] = normalized_input(x, GroupWeights(w_ih, (), *biases), options.norms)
    own: list[Any] = []
    for weights, norm in zip(groups, options.norms, strict=True):
        own += [weights.weight_hh, *([weights.weight_ch] if shape.has_peepholes else [])]
        own += [norm.norm_hh, norm.norm_c]
    found[first : first + D * shape.weights_per_group] = own
    return shape._replace(has_norms=1), found


def _groups(layout: Layout, tensors: Iterator[Tensor]) -> list[LSTMWeights]:
    """The weights of each layer and direction, without norms."""
    groups = []
    for _ in range(layout.num_layers * layout.num_directions):
        w_ih, w_hh = next(tensors), next(tensors)
        b_ih, b_hh = (next(tensors), next(tensors)) if layout.has_bias else (None, None)
        w_ch = next(tensors) if layout.has_peepholes else None
        groups.append(LSTMWeights(w_ih, w_hh, b_ih, b_hh, w_ch))
    return groups


def _general_call(layout: Layout, tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
    """The outputs of the general path for the tensors of a direct call."""
    input = next(tensors)
    hx = (next(tensors), next(tensors)) if layout.has_states else None
    num_groups = layout.num_layers * layout.num_directions
    weights: Any = [next(tensors) for _ in range(num_groups * layout.weights_per_group)]
    lengths = next(tensors) if layout.has_lengths else None
    reset = next(tensors) if layout.has_reset else None
    # The dimensions of the batch in the input, and in each output.
    batches = (0, 0, 0) if layout.is_cell else (1 - layout.batch_first,) * 2 + (1, 1)
    is_batched = input.dim() == 3 - layout.is_cell + layout.has_norms
    outputs: tuple[Tensor, ...]
    if not is_batched:
        input = input.unsqueeze(1 if layout.has_norms else batches[0])
        reset = None if reset is None else reset.unsqueeze(batches[0])
        hx = None if hx is None else (hx[0].unsqueeze(batches[-1]), hx[1].unsqueeze(batches[-1]))
    if layout.is_cell:
        outputs = lstm_cell(input, hx, _groups(layout, iter(weights))[0], backend="cpu")
    elif layout.has_norms or any(layout[-5:]):
        about_rows = SequenceLayout([False, True][: layout.num_directions], lengths, reset=reset)
        outputs = _call_with_options(layout, (input, hx, weights), about_rows, tensors)
    else:
        y, states = lstm(
            input,
            hx,
            _groups(layout, iter(weights)),
            bidirectional=layout.num_directions == 2,
            batch_first=bool(layout.batch_first),
            lengths=lengths,
            reset=reset,
            backend="cpu",
        )
        outputs = (y, *states)
    if is_batched:
        return outputs
    return tuple(s.squeeze(batch) for s, batch in zip(outputs, batches[1:], strict=True))


def _call_with_options(
    layout: Layout,
    arguments: tuple[Tensor, tuple[Tensor, Tensor] | None, Sequence[Tensor]],
    about_rows: SequenceLayout,
    masks: Iterator[Tensor],
) -> tuple[Tensor, ...]:
    """The outputs of a call with a batch, whose options are drawn already."""
    x, hx, weights = arguments
    D, step = layout.num_directions, layout.weights_per_group
    if layout.batch_first:
        x = x if layout.has_norms else x.transpose(0, 1)
        reset = about_rows.reset
        about_rows = about_rows._replace(reset=None if reset is None else reset.transpose(0, 1))
    if hx is None:
        zeros = x.new_zeros(layout.num_layers * D, x.shape[1], layout.hidden_size)
        hx = (zeros, zeros)
    hy, cy = [], []
    for layer in range(layout.num_layers):
        own = list(weights[layer * D * step : (layer + 1) * D * step])
        hidden_mask = next(masks) if layout.has_hidden_mask else None
        if layout.weight_dropout:
            scale = 1 / (1 - layout.weight_dropout) if layout.weight_dropout < 1 else 0.0
            for weight_hh in range(0 if layout.has_norms else 1, D * step, step):
                own[weight_hh] = own[weight_hh] * (next(masks).to(x.dtype) * scale)
        options = CellOptions(
            hidden_mask=hidden_mask,
            keep_h=next(masks) if layout.has_keep_h else None,
            keep_c=next(masks) if layout.has_keep_c else None,
            cell_clip=layout.cell_clip,
        )
        if layout.has_norms:
            kinds = [list(own[kind::step]) for kind in range(step)]
            peepholes = kinds[1] if layout.has_peepholes else ()
            of_layer = GroupWeights((), kinds[0], weight_ch=peepholes)
            norm_hh, norm_c = torch.stack(kinds[-2]), torch.stack(kinds[-1])
            options = options._replace(norm_hh=norm_hh, norm_c=norm_c)
        else:
            parameters = zip(*_groups(layout._replace(num_layers=1), iter(own)), strict=True)
            of_layer = GroupWeights(*[() if p[0] is None else p for p in parameters])
        rows = slice(layer * D, (layer + 1) * D)
        call = Call(x, of_layer, hx[0][rows], hx[1][rows], about_rows, options)
        mode = find_mode(call.tensors)
        results = run(backends.cpu, call, Wanted(records_gradients(mode, call.tensors)), mode)
        x = results.y.flatten(-2)
        hy.append(results.hy)
        cy.append(results.cy)
    y = x.transpose(0, 1) if layout.batch_first else x
    return y, torch.cat(hy), torch.cat(cy)
