"""The observers of a call: a compiler, a tracer, ``torch.func``, autograd, or none.

Kernels are called directly where only autograd watches. Everything else must see the call as an op
of ``torch.library``, or as differentiable torch code.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

import torch
from torch import Tensor
from torch.autograd import forward_ad


class Mode(Enum):
    """The kinds of observers that must see a call."""

    ONNX = auto()
    """``torch.onnx.export`` records the call as nodes of ONNX."""
    FORWARD_AD = auto()
    """Tangents may be there: ``forward_ad.dual_level`` or ``torch.func.jvp`` is active."""
    FUNCTORCH = auto()
    """The call is inside a function that ``torch.func`` differentiates or vmaps."""
    TRACED = auto()
    """A compiler, a tracer, a dispatch mode or a tensor subclass is to see the op itself."""
    AUTOGRAD = auto()
    """Only autograd watches, and gradients are recorded."""
    NONE = auto()
    """Nothing watches."""


_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def find_mode(tensors: Sequence[Tensor]) -> Mode:
    """The mode of a call with these tensors, found once and handed on."""
    compiled = torch.compiler.is_compiling()
    recorded = compiled or torch.jit.is_tracing()
    if recorded and is_exporting_onnx():
        return Mode.ONNX
    if forward_ad._current_level >= 0:
        return Mode.FORWARD_AD
    if not compiled and torch._C._functorch.peek_interpreter_stack() is not None:
        # A compiler records the op, and cannot follow this.
        return Mode.FUNCTORCH if _transforms() & {"Grad", "Vmap", "Jvp"} else Mode.TRACED
    if (
        recorded
        or torch._C._len_torch_dispatch_stack() > 0
        or not _PLAIN.issuperset(map(type, tensors))
    ):
        return Mode.TRACED
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return Mode.AUTOGRAD
    return Mode.NONE


def records_gradients(mode: Mode, tensors: Sequence[Tensor]) -> bool:
    """Whether a backward pass may follow a call with these tensors.

    A trace keeps the answer, and may be trained whatever the mode was in which it was recorded.
    """
    if mode is Mode.FUNCTORCH:
        return torch.is_grad_enabled() and any(map(requires_grad, tensors))
    if mode is Mode.NONE or not (torch.is_grad_enabled() or torch.jit.is_tracing()):
        return False
    return any(tensor.requires_grad for tensor in tensors)


def is_recorded() -> bool:
    """Whether the values of this call are those of an example, from which a program is made.

    ONNX is not meant: it has no node for a check of values.
    """
    recorded = (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
    )
    return recorded and not is_exporting_onnx()


def is_exporting_onnx() -> bool:
    """Whether ``torch.onnx.export`` traces this call."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return traced and torch.onnx.is_in_onnx_export()


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """The dtype to which ``torch.autocast`` casts on the tensor's device; None: it is off."""
    device = tensor.device.type
    # Torch raises when it is asked about "meta".
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _transforms() -> set[str]:
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return {interpreter.key().name for interpreter in stack}


def is_vmapped() -> bool:
    """Whether the call is inside ``torch.func.vmap``, at any depth."""
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return False
    return "Vmap" in _transforms()


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor with all its vmapped dimensions, and without a gradient of any transform."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def requires_grad(tensor: Tensor) -> bool:
    """Whether any transform, or autograd around all of them, asks for the tensor's gradient.

    ``tensor.requires_grad`` does not say: vmap hides it.
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if tensor.requires_grad:
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad
