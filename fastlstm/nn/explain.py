"""``explain``: which backend runs a module, and why."""

from __future__ import annotations

from types import NoneType

import torch
from torch.nn.utils.rnn import PackedSequence

from fastlstm.backends import select


def explain(module: torch.nn.Module, input: torch.Tensor | PackedSequence | None = None) -> str:
    """Say which backend runs ``module`` on ``input``, and why the others do not.

    The text is about a call at this place in the program. Such a call records gradients unless it
    is made under ``torch.no_grad()``, in training mode and in eval mode. For a module in eval mode
    the text adds which backend runs without gradients, where that is another one.

    Args:
        module: a fastlstm module, or any module that contains some.
        input: an input of the sizes that the module will be called with; its values do not matter.
            Default: T=100 steps of a batch of B=32; one step for an LSTMCell, and T=10, B=100 for
            the encoders and decoders of video models.

    Returns:
        One table for each fastlstm module inside, headed by its name.

    Raises:
        TypeError: ``module`` is no module, or ``input`` neither a tensor nor a PackedSequence.
        ValueError: there is no fastlstm module inside.

    Example:
        >>> with torch.no_grad():
        ...     text = fastlstm.explain(fastlstm.LSTM(64, 64, peephole=True))
        >>> print(text.splitlines()[1])
        T=100 B=32 G=1 H=64 float32 on cpu, peepholes: runs on 'cpu'
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected an nn.Module, got {type(module).__name__}")
    if not isinstance(input, (torch.Tensor, PackedSequence, NoneType)):
        raise TypeError(f"input: expected a Tensor, got {type(input).__name__}")
    tables = []
    for path, child in module.named_modules():
        if hasattr(child, "problem"):
            title = f"{path or type(child).__name__}: {child}".split("\n")[0]
            problem = child.problem(input)
            tables.append(f"{title}\n{select.describe(problem, child.backend)}")
            with torch.no_grad():
                in_inference = child.problem(input)
            if not child.training and in_inference != problem:
                chosen = select.name(select.select(in_inference, child.backend))
                tables.append(
                    "  this call records gradients, which eval mode does not turn off; under "
                    f"torch.no_grad() it runs on {chosen!r}"
                )
    if not tables:
        raise ValueError(
            f"module: expected one with a fastlstm LSTM inside, got {type(module).__name__}"
        )
    return "\n".join(tables)
