"""Support of ``torch.autocast``: dtypes of results, and copies of weights."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastlstm.call import Call, GroupWeights
from fastlstm.tracing import Mode

# The dtypes that autocast casts. It leaves float64 as it is.
_CAST = frozenset((torch.float32, torch.float16, torch.bfloat16))


def can_meet(dtype: torch.dtype, other: torch.dtype, autocast: bool) -> bool:
    """Whether arguments of one call may have these two dtypes; under autocast they may differ."""
    return dtype == other or (autocast and dtype in _CAST and other in _CAST)


def result_dtypes(
    input: Tensor, cx: Tensor | None, lowered: torch.dtype, is_packed: bool, has_projection: bool
) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes of output and h_n, and of c_n, that ``nn.LSTM`` returns under autocast.

    cuDNN and oneDNN return autocast's dtype, ``lowered``. On a CPU oneDNN has neither projections
    nor a PackedSequence nor float16 input; there c has the dtype of cx, or of the input where
    there is no cx, if that is wider, and h has it too, unless it is projected.
    """
    by_one_dnn = not (is_packed or has_projection or input.dtype == torch.float16)
    if input.device.type != "cpu" or by_one_dnn:
        return lowered, lowered
    carried = torch.promote_types(input.dtype if cx is None else cx.dtype, lowered)
    return lowered if has_projection else carried, carried


class _Copies(dict[tuple[int, torch.dtype], tuple[Tensor, int, Tensor]]):
    """Weights and their copies in autocast's dtype, with the version that was copied."""

    def keep(self, *_: object) -> None:
        """A hook that does nothing, but holds this object."""


# On each device one small weight, of which torch's autocast keeps a copy: see _current_copies.
_probes: dict[torch.device, Tensor] = {}
_copies: dict[torch.device, weakref.ref[_Copies]] = {}


def _current_copies(device: torch.device) -> _Copies:
    """The copies of this autocast block, which die when torch drops its own.

    Torch keeps its copies until the outermost block ends, and has no callback for that. So ours
    are held by a hook on the autograd node of a copy that torch keeps, and die with that node.
    Where torch keeps no copies, as with ``cache_enabled=False``, ours die at once.
    """
    alive = _copies.get(device)
    copies = None if alive is None else alive()
    if copies is None:
        copies = _Copies()
        place: dict[str, Any] = {"device": device, "dtype": torch.float32}
        if device not in _probes:
            _probes[device] = torch.zeros(1, 1, **place, requires_grad=True)
        probe = _probes[device]
        row, column = (torch.zeros(size, **place) for size in ((1, 0), (0, 1)))
        node = torch.addmm(probe, row, column).grad_fn  # saves no tensor, so no hook sees one
        assert node is not None
        node.next_functions[0][0].register_hook(copies.keep)  # type: ignore[union-attr]
        _copies[device] = weakref.ref(copies)
    return copies


def cast_call(call: Call, dtype: torch.dtype, mode: Mode) -> Call:
    """The call in ``dtype``; where gradients are recorded, with one copy of weights for a block.

    The copies of weights stay until the outermost autocast block ends, as those of torch's own
    functions do; a weight that was written to meanwhile is copied again. Without gradients no copy
    outlives the call, so every write to a weight is seen. A tracer must see each copy made.
    """
    kept = _kept_copies(call.input.device, mode)
    weights = [[_cast(weight, dtype, kept) for weight in group] for group in call.weights]
    input, hx, cx = (tensor.to(dtype) for tensor in (call.input, call.hx, call.cx))
    options = call.options and call.options.map(lambda _, tensor: tensor.to(dtype))
    return Call(input, GroupWeights(*weights), hx, cx, call.layout, options)


def cast_tensors(
    tensors: Sequence[Tensor | None], dtype: torch.dtype, mode: Mode
) -> list[Tensor | None]:
    """The tensors in ``dtype``, weights as in :func:`cast_call`; the first is no weight."""
    assert tensors[0] is not None
    kept = _kept_copies(tensors[0].device, mode)
    return [tensor if tensor is None else _cast(tensor, dtype, kept) for tensor in tensors]


def _kept_copies(device: torch.device, mode: Mode) -> _Copies | None:
    if mode is Mode.AUTOGRAD and torch.is_autocast_cache_enabled():
        return _current_copies(device)
    return None


def _cast(weight: Tensor, dtype: torch.dtype, kept: _Copies | None) -> Tensor:
    # As torch does, only leaves: others are new in every call, and would pile up.
    if kept is None or not (weight.requires_grad and weight.is_leaf) or weight.dtype == dtype:
        return weight.to(dtype)
    key = (id(weight), dtype)
    found = kept.get(key)
    if found is None or found[1] != weight._version:
        kept[key] = found = (weight, weight._version, weight.to(dtype))
    return found[2]
