"""Pairs of a torch module and ours with the same parameters, and their results by name."""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastlstm

T, B, I, H = 5, 4, 3, 6
TOLERANCE = 1e-10  # relative, in float64: far above rounding, far below any mistake


def double(*size):
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


def pair(cls, *args, backend="auto", **kwargs):
    """A torch module in float64 and ours with the same parameters."""
    torchs = getattr(nn, cls)(*args, dtype=torch.float64, **kwargs)
    ours = getattr(fastlstm, cls)(*args, dtype=torch.float64, backend=backend, **kwargs)
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def states_of(module, *batch):
    D = 2 if module.bidirectional else 1
    P = module.proj_size or module.hidden_size
    return tuple(double(module.num_layers * D, *batch, size) for size in (P, module.hidden_size))


def results(module, input, hx, *, leaves, packed=None, **kwargs):
    """Outputs, states and all gradients by name; ``packed``: lengths, to pack the input by."""
    if packed is not None:
        input = pack_padded_sequence(input, packed, module.batch_first, enforce_sorted=False)
    output, (hy, cy) = module(input, hx, **kwargs)
    if isinstance(output, PackedSequence):
        output = pad_packed_sequence(output, module.batch_first, total_length=T)[0]
    leaves = leaves | dict(module.named_parameters())
    loss = output.sin().sum() + hy.cos().sum() + (cy * cy).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"d{name}": value for name, value in zip(leaves, gradients, strict=True)}
    return {"output": output, "hy": hy, "cy": cy} | named


def input_of(module, *, batched=True):
    size = [B, T] if module.batch_first else [T, B]
    return double(*(size if batched else [T]), module.input_size)


def leaves_of(input, hx):
    return {"input": input} | ({} if hx is None else {"hx": hx[0], "cx": hx[1]})
