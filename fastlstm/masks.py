"""The options of an LSTM drawn for one call: masks from torch's generator, weights dropped out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlstm import _C
from fastlstm.call import Call, GroupWeights, rows_of_packed
from fastlstm.options import PLAIN_CELLS, CellOptions, LayerNorm, LSTMOptions
from fastlstm.tracing import Mode, find_mode

_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}
_HAS_KERNELS = bool(_C.isas())


def draw_options(call: Call, options: LSTMOptions, training: bool) -> Call:
    """The call with masks drawn for a step of training, or with their expectation."""
    sizes = (call.rows, tuple(call.hx.shape), call.cx.shape[2])
    weights, cells = draw(options, training, sizes, call.weights.weight_hh)
    if weights is not call.weights.weight_hh:
        call = call._replace(weights=call.weights._replace(weight_hh=weights))
    return call if cells is PLAIN_CELLS else call._replace(options=cells)


def draw(
    options: LSTMOptions,
    training: bool,
    sizes: tuple[Sequence[int], Sequence[int], int],
    weight_hh: Sequence[Tensor],
) -> tuple[Sequence[Tensor], CellOptions]:
    """Draw the options of one layer.

    Args:
        options: their probabilities.
        training: whether masks are drawn; else their expectation is taken.
        sizes: (T, B), or (N,) of a PackedSequence; (G, B, P), that of hx; and H.
        weight_hh: of each group; the masks have its dtype and device.

    Returns:
        weight_hh as it is multiplied, and the options of the cells.
    """
    rows, (G, B, P), H = sizes
    like, mask = weight_hh[0], None
    if training and options.recurrent_dropout:
        mask = _dropout_mask((G, B, P), options.recurrent_dropout, like)
    if training and options.weight_dropout:
        p = options.weight_dropout
        weight_hh = [w * _dropout_mask(tuple(w.shape), p, w) for w in weight_hh]
    p_h, p_c = options.zoneout
    keep_h = _share_kept((*rows, G, P), p_h, like, training) if p_h else None
    keep_c = _share_kept((*rows, G, H), p_c, like, training) if p_c else None
    clip = options.cell_clip or 0.0
    if mask is None and keep_h is None and keep_c is None and not clip:
        return weight_hh, PLAIN_CELLS
    return weight_hh, CellOptions(mask, keep_h, keep_c, cell_clip=clip)


def _share_kept(size: Sequence[int], p: float, like: Tensor, training: bool) -> Tensor:
    """The share of a state that every step keeps: a mask of ones and zeros, or p."""
    if training:
        return _mask(size, p, (1.0, 0.0), like)
    return like.new_full((1,) * (len(size) - 1) + (size[-1],), p).expand(*size)


def _dropout_mask(size: Sequence[int], p: float, like: Tensor) -> Tensor:
    """Zeros with probability p, and elsewhere 1 / (1 - p)."""
    return _mask(size, p, (0.0, 1 / (1 - p) if p < 1 else 0.0), like)


def _mask(size: Sequence[int], p: float, values: tuple[float, float], like: Tensor) -> Tensor:
    """The first of two values with a probability of p, rounded to 16 bits, else the second.

    On a CPU a kernel draws the mask from a seed, a single number of torch's generator. Elsewhere
    each number of the generator gives four of the mask's.
    """
    if like.device.type == "cpu" and like.dtype in _DTYPES and _HAS_KERNELS:
        seed = draw_seeds(1)
        if find_mode([like, seed]) in (Mode.AUTOGRAD, Mode.NONE):
            return _draw(seed, size, p, *values, like.dtype)
        return torch.ops.fastlstm.draw_mask(seed, size, p, *values, like.dtype)
    n = math.prod(size)
    words = torch.randint(-(2**63), 2**63 - 1, ((n + 3) // 4,), device=like.device)
    happens = words.view(torch.int16)[:n] <= round(p * 2**16) - 2**15 - 1
    first, second = values
    return (~happens).to(like.dtype).reshape(tuple(size)) * (second - first) + first


def draw_seeds(count: int) -> Tensor:
    """Seeds of masks, int64, from torch's generator: the same numbers one by one or at once."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), device="cpu")


def _draw(
    seed: Tensor, size: Sequence[int], p: float, first: float, second: float, dtype: torch.dtype
) -> Tensor:
    mask = _C.pooled_empty(size, dtype)
    _C.draw_mask(
        dtype=_DTYPES[dtype],
        seed=int(seed) % 2**64,
        p=p,
        dropped=first,
        kept=second,
        count=mask.numel(),
        to=mask.data_ptr(),
        num_threads=torch.get_num_threads(),
        isa="auto",
    )
    return mask


torch.library.define(
    "fastlstm::draw_mask",
    "(Tensor seed, SymInt[] size, float p, float first, float second, ScalarType dtype) -> Tensor",
)
torch.library.impl("fastlstm::draw_mask", "cpu", _draw)


@torch.library.register_fake("fastlstm::draw_mask")
def _(
    seed: Tensor, size: Sequence[int], p: float, first: float, second: float, dtype: torch.dtype
) -> Tensor:
    return seed.new_empty(size, dtype=dtype)


@torch.library.register_vmap("fastlstm::draw_mask")
def _(info: object, in_dims: tuple[int, ...], seeds: Tensor, *arguments: object) -> object:
    drawn = [torch.ops.fastlstm.draw_mask(seed, *arguments) for seed in seeds.unbind(in_dims[0])]
    return torch.stack(drawn), 0


def drop_between_layers(
    x: Tensor, dropout: float, variational: float, batch_sizes: Tensor | None, B: int
) -> Tensor:
    """The output of a layer in training as the next one reads it.

    Args:
        x: (T, B, n), or (N, n) of a PackedSequence.
        dropout: probability of zeroing a number.
        variational: probability of zeroing a column in all steps of a row.
        batch_sizes: of the PackedSequence, or None.
        B: rows of the batch.
    """
    if dropout:
        return F.dropout(x, dropout)
    if not variational:
        return x
    mask = _dropout_mask((B, x.shape[-1]), variational, x)
    if batch_sizes is not None:
        mask = mask[rows_of_packed(batch_sizes, B).to(x.device)]
    return x * mask


def normalized_input(x: Tensor, weights: GroupWeights, norms: Sequence[LayerNorm]) -> Tensor:
    """What the input contributes to the gates: ``norm_ih * normalise(W_ih x) + b_ih + b_hh``.

    Args:
        x: (T, B, I), or (N, I) of a PackedSequence.
        weights: with weight_ih and the biases.
        norms: of each group.

    Returns:
        (T, B, G, 4H), or (N, G, 4H).
    """
    igates = []
    for g, weight in enumerate(weights.weight_ih):
        biases = [b[g] for b in (weights.bias_ih, weights.bias_hh) if b]
        gain, size = norms[g].norm_ih, (weight.shape[0],)
        # Under autocast the gain keeps its own dtype, and torch wants the bias to have that too.
        bias = sum(biases[1:], biases[0]).to(gain.dtype) if biases else None
        product = F.linear(x, weight)
        igates.append(F.layer_norm(product, size, gain, bias).to(product.dtype))
    return igates[0].unsqueeze(-2) if len(igates) == 1 else torch.stack(igates, -2)


def normalized(call: Call, norms: Sequence[LayerNorm]) -> Call:
    """The call of a layer with layer norm: its input is projected and normalised already."""
    weights = call.weights
    options = (call.options or PLAIN_CELLS)._replace(
        norm_hh=torch.stack([norm.norm_hh for norm in norms]).to(call.input.dtype),
        norm_c=torch.stack([norm.norm_c for norm in norms]).to(call.input.dtype),
    )
    recurrent = GroupWeights((), weights.weight_hh, weight_ch=weights.weight_ch)
    recurrent = recurrent._replace(weight_hr=weights.weight_hr)
    input = normalized_input(call.input, weights, norms)
    return call._replace(input=input, weights=recurrent, options=options)
