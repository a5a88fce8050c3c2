"""The sequence op under ``torch.func``: vmap, grad, vjp, jacrev and what is built of them.

Ops of ``torch.library`` have an autograd formula and a vmap rule, but ``torch.func.grad`` takes
neither: it wants a ``torch.autograd.Function`` with both, which :func:`transformable` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree


def is_active() -> bool:
    """Inside of a function that ``torch.func`` differentiates or vmaps."""
    return _among_transforms("Grad", "Vmap", "Jvp")


def is_vmapped() -> bool:
    """Inside of ``torch.func.vmap``, at whatever depth."""
    return _among_transforms("Vmap")


def _among_transforms(*names: str) -> bool:
    # A compiler records the op, and cannot follow this.
    if torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is None:
        return False
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(interpreter.key().name in names for interpreter in stack)


def is_forward_mode() -> bool:
    """While tangents may be about: in ``forward_ad.dual_level`` or ``torch.func.jvp``."""
    return forward_ad._current_level >= 0


def is_batched_by_autograd(tensor: Tensor | None) -> bool:
    """Of ``torch.autograd.grad(is_grads_batched=True)``, which has an older vmap of its own."""
    return tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor)


def through_vmap(
    run: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """``run(*tensors)`` where some are batched by autograd: its vmap becomes ``torch.func``'s."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    dims = tuple(0 if is_batched_by_autograd(tensor) else None for tensor in tensors)
    plain = [
        tensor if dim is None or tensor is None else torch._remove_batch_dim(tensor, level, 0, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
    outputs = torch.func.vmap(run, dims)(*plain)
    return tuple(torch._add_batch_dim(output, 0, level) for output in outputs)


def unwrapped(tensor: Tensor) -> Tensor:
    """With all its vmapped dimensions, and no gradient of any transform."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def requires_grad(tensor: Tensor) -> bool:
    """Of any transform, or of autograd around them: vmap hides it from ``tensor.requires_grad``."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        if tensor.requires_grad:
            return True
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def transformable(
    op: Callable[..., tuple[Tensor, ...]],
    save: Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None],
    differentiate: Callable[..., tuple[Any, ...]],
    rule: Callable[..., tuple[Any, Any]],
) -> Callable[..., tuple[Tensor, ...]]:
    """The op as ``torch.func`` can transform it, at several times the cost of a call.

    Args:
        op: takes tensors and lists of them.
        save: ``setup_context`` of ``torch.library.register_autograd``.
        differentiate: its ``backward``, with the flags of ``ctx.needs_input_grad`` after ctx.
        rule: for ``torch.library.register_vmap``, with what it is to call before its arguments.
    """

    class Transformable(torch.autograd.Function):
        @staticmethod
        def forward(spec: pytree.TreeSpec, *leaves: Any) -> tuple[Tensor, ...]:
            return op(*pytree.tree_unflatten(leaves, spec))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.spec, *leaves = inputs
            arguments = pytree.tree_unflatten(leaves, ctx.spec)
            ctx.sizes = [len(a) if isinstance(a, list) else 1 for a in arguments]
            save(ctx, arguments, output)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            needs = pytree.tree_unflatten(ctx.needs_input_grad[1:], ctx.spec)
            flat: list[Tensor | None] = []
            for found, size in zip(differentiate(ctx, needs, *grads), ctx.sizes, strict=True):
                flat += found if isinstance(found, list) else [found] * size
            return None, *flat

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
            spec, *leaves = inputs
            dims = pytree.tree_unflatten(in_dims[1:], spec)
            return rule(run, info, dims, *pytree.tree_unflatten(leaves, spec))

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        leaves, spec = pytree.tree_flatten(arguments)
        return Transformable.apply(spec, *leaves)

    return run


_PLAIN = frozenset((Tensor, torch.nn.Parameter))


def is_watched(tensors: Sequence[Tensor]) -> bool:
    """Whether something shall see the op itself: a compiler, tracer, mode or tensor subclass."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or not _PLAIN.issuperset(map(type, tensors))
    )
