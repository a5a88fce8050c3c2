"""Modules for ``torch.jit.script``, which compiles torch's own LSTMs only."""

from __future__ import annotations

from typing import Any

from torch import nn

# Bound at import: whoever puts our classes in torch.nn still gets torch's from here.
from torch.nn import LSTM as TorchLSTM
from torch.nn import LSTMCell as TorchLSTMCell

from fastlstm.nn.options import refuse_options


def scriptable(module: nn.Module, arguments: dict[str, Any]) -> TorchLSTM | TorchLSTMCell:
    """Make a module of torch's class that shares the parameters of ``module``.

    ``torch.jit.script`` puts it in the place of ``module``, in the scripted copy and, as it does
    with whatever defines ``__prepare_scriptable__``, in the parent that was given to it.

    Args:
        module: an LSTM or LSTMCell of ours.
        arguments: those of torch's class.

    Raises:
        ValueError: with peepholes or heads, which TorchScript's LSTM lacks.
    """
    refuse_options(module, "for TorchScript, whose LSTM has no such option")
    if module.peephole:
        raise ValueError(
            "peephole: expected False for torch.jit.script, whose LSTM has no peepholes; got True. "
            "torch.export and torch.jit.trace take them"
        )
    if getattr(module, "num_heads", 1) > 1:
        raise ValueError(
            "num_heads: expected 1 for TorchScript, whose LSTM has no heads; got "
            f"{module.num_heads}. to_torch(), torch.export and torch.jit.trace take them"
        )
    cls = TorchLSTM if isinstance(module, nn.RNNBase) else TorchLSTMCell
    # On "meta" nothing is allocated or drawn; a useless dropout has been warned about before.
    torchs = cls(**arguments | {"device": "meta"} | ({"dropout": 0.0} if cls is TorchLSTM else {}))
    if cls is TorchLSTM:
        torchs.dropout = module.dropout
    for name, _ in list(torchs.named_parameters()):
        setattr(torchs, name, getattr(module, name))
    if cls is TorchLSTM:  # what was put there by hand too
        torchs._flat_weights = module._current_weights()  # type: ignore[operator]
    return torchs.train(module.training)


def arguments_of(module: nn.RNNBase) -> dict[str, Any]:
    """The arguments that make an LSTM like this one."""
    names = (
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    )
    weight = module.weight_ih_l0
    arguments = {name: getattr(module, name) for name in names}
    return arguments | {"device": weight.device, "dtype": weight.dtype}
