"""The dense LSTM that one with heads equals; its weight_hh is block-diagonal."""

import torch
from pairs import I
from torch import nn
from torch.func import functional_call

import fastlstm

H, N = 6, 3  # three heads of two units


def expanded(weight_hh, num_heads):
    """The block-diagonal matrix (4H, H), by a mask: unit j is in head j // (H / n)."""
    m = weight_hh.shape[1]
    units = torch.arange(num_heads * m)
    same_head = units.repeat(4)[:, None] // m == units // m
    return weight_hh.repeat(1, num_heads) * same_head


class Dense(nn.Module):
    """The LSTM of class ``kind`` that has the expanded weights of ``module``; differentiable."""

    def __init__(self, module, kind=nn.LSTM, **options):
        super().__init__()
        names = ("num_layers", "bias", "batch_first", "bidirectional")
        options |= {name: getattr(module, name) for name in names}
        dtype = module.weight_hh_l0.dtype
        # In a list it is no child, so that the parameters are those of ``module`` only.
        self.dense = [kind(module.input_size, module.hidden_size, dtype=dtype, **options)]
        self.module, self.batch_first = module, module.batch_first

    def named_parameters(self):
        return self.module.named_parameters()

    def forward(self, input, hx=None, **options):
        n = self.module.num_heads
        weights = {
            name: expanded(w, n) if "weight_hh" in name else w
            for name, w in self.named_parameters()
        }
        return functional_call(self.dense[0], weights, (input, hx), options)


def heads(*, num_heads=N, dtype=torch.float64, **options):
    return fastlstm.LSTM(I, H, num_heads=num_heads, dtype=dtype, **options)
