"""The ops under ``torch.func``: vmap, grad, vjp, jacrev and the functions made of them.

Ops of ``torch.library`` have an autograd formula and a vmap rule, but ``torch.func.grad`` uses
neither: it needs a ``torch.autograd.Function`` with both, which :func:`transformable` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.utils import _pytree as pytree


def through_vmap(
    run: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Run ``run(*tensors)`` where ``torch.autograd.grad(is_grads_batched=True)`` made some of them.

    Autograd has an older vmap of its own, which becomes that of ``torch.func`` here.
    """
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    dims = tuple(
        0 if tensor is not None and is_legacy_batchedtensor(tensor) else None for tensor in tensors
    )
    plain = [
        tensor if dim is None or tensor is None else torch._remove_batch_dim(tensor, level, 0, 0)
        for tensor, dim in zip(tensors, dims, strict=True)
    ]
    outputs = torch.func.vmap(run, dims)(*plain)
    return tuple(torch._add_batch_dim(output, 0, level) for output in outputs)


def transformable(
    op: Callable[..., tuple[Tensor, ...]],
    save: Callable[[Any, tuple[Any, ...], tuple[Tensor, ...]], None],
    differentiate: Callable[..., tuple[Any, ...]],
    rule: Callable[..., tuple[Any, Any]],
) -> Callable[..., tuple[Tensor, ...]]:
    """Make an op that ``torch.func`` can transform, at several times the cost of a call.

    Args:
        op: takes tensors and lists of them.
        save: ``setup_context`` of ``torch.library.register_autograd``.
        differentiate: its ``backward``, with the flags of ``ctx.needs_input_grad`` after ctx.
        rule: as for ``torch.library.register_vmap``, with the op to call as its first argument.
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
