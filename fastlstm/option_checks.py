"""Checks of the options of an LSTM, as modules and functions take them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastlstm.call import LSTMWeights
from fastlstm.options import LSTMOptions


def check_probability(name: str, value: Any) -> None:
    """TypeError unless ``value`` is a number, ValueError unless it is in 0..1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number in 0..1, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a probability in 0..1, got {value}")


def check_options(options: LSTMOptions, dropout: float = 0.0) -> None:
    """Check the options of an LSTM, whose layers have ``dropout`` between them.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: a probability is outside 0..1, cell_clip is not above 0, or there is dropout
            beside variational_dropout.
    """
    if not isinstance(options, LSTMOptions):
        raise TypeError(f"options: expected an LSTMOptions, got {type(options).__name__}")
    for name in ("recurrent_dropout", "weight_dropout", "variational_dropout"):
        check_probability(name, getattr(options, name))
    zoneout, clip = options.zoneout, options.cell_clip
    if not isinstance(zoneout, Sequence) or isinstance(zoneout, str) or len(zoneout) != 2:
        raise TypeError(f"zoneout: expected two probabilities (p_h, p_c), got {zoneout!r}")
    for p in zoneout:
        check_probability("zoneout", p)
    if clip is not None:
        if isinstance(clip, bool) or not isinstance(clip, (int, float)):
            raise TypeError(f"cell_clip: expected a number or None, got {type(clip).__name__}")
        if not (clip > 0 and math.isfinite(clip)):
            raise ValueError(f"cell_clip: expected a finite number above 0, got {clip}")
    if dropout and options.variational_dropout:
        raise ValueError(
            "variational_dropout: expected 0 beside dropout, both drop outputs between layers; "
            f"got {options.variational_dropout} and dropout={dropout}"
        )


def check_norms(options: LSTMOptions, weights: Sequence[LSTMWeights], num_heads: int) -> None:
    """RuntimeError or ValueError unless layer norms have the sizes and dtypes of the weights."""
    norms = options.norms
    if norms is None:
        return
    if num_heads > 1:
        raise ValueError(f"layer_norm: expected a single head beside it, got num_heads={num_heads}")
    if len(norms) != len(weights):
        raise RuntimeError(f"norms: expected {len(weights)} entries, got {len(norms)}")
    for index, (norm, own) in enumerate(zip(norms, weights, strict=True)):
        four_h = own.weight_hh.shape[0]
        sizes = ((four_h,), (four_h,), (2, four_h // 4))
        for name, tensor, size in zip(norm._fields, norm, sizes, strict=True):
            if tensor.shape != size or (tensor.dtype, tensor.device) != (
                own.weight_hh.dtype,
                own.weight_hh.device,
            ):
                raise RuntimeError(
                    f"norms[{index}].{name}: expected size {size} in {own.weight_hh.dtype} on "
                    f"{own.weight_hh.device}, got {tuple(tensor.shape)} in {tensor.dtype} on "
                    f"{tensor.device}"
                )


def check_cell_options(options: LSTMOptions) -> None:
    """Check the options of a single step, which is no sequence: it has no masks of its own."""
    check_options(options)
    for name in ("recurrent_dropout", "weight_dropout", "variational_dropout"):
        if getattr(options, name):
            raise ValueError(
                f"{name}: expected 0, a cell does not know where a sequence begins; drop in h, or "
                f"in weight_hh, what the sequence drops; got {getattr(options, name)}"
            )
