"""An independent LSTM with gradients, in numpy loops over float64, to compare with.

All other tests compare with torch in the end; this file does not use torch to compute. The
derivatives are written by hand, and depend neither on autograd nor on the library.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastlstm

T, B, I, H = 4, 3, 3, 5
LENGTHS = [3, 4, 1]
TOLERANCE = 1e-12  # relative to the largest number; sums of some 50 terms err by 1e-15 each


def _sigmoid(a):
    return 1 / (1 + np.exp(-a))


def _step(x, h, c, p):
    """One step of one row: the next (h, c), and what the backward pass needs."""
    a = p["weight_ih"] @ x + p["weight_hh"] @ h + p.get("bias_ih", 0) + p.get("bias_hh", 0)
    a_i, a_f, a_g, a_o = np.split(a, 4)
    w_i, w_f, w_o = np.split(p.get("weight_ch", np.zeros(3 * len(c))), 3)
    i, f, g = _sigmoid(a_i + w_i * c), _sigmoid(a_f + w_f * c), np.tanh(a_g)
    c_next = f * c + i * g
    o = _sigmoid(a_o + w_o * c_next)
    m = o * np.tanh(c_next)
    return (p["weight_hr"] @ m if "weight_hr" in p else m), c_next, (x, h, c, i, f, g, o, c_next, m)


def _step_back(dh, dc, kept, p, dp):
    """Gradients of x, h and c of one step; gradients of the parameters are added to ``dp``."""
    x, h, c, i, f, g, o, c_next, m = kept
    w_i, w_f, w_o = np.split(p.get("weight_ch", np.zeros(3 * len(c))), 3)
    if "weight_hr" in p:
        dp["weight_hr"] += np.outer(dh, m)
        dh = p["weight_hr"].T @ dh
    tanh_c = np.tanh(c_next)
    da_o = dh * tanh_c * o * (1 - o)
    dc = dc + dh * o * (1 - tanh_c**2) + da_o * w_o
    da_i, da_f, da_g = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g**2)
    da = np.concatenate([da_i, da_f, da_g, da_o])
    dp["weight_ih"] += np.outer(da, x)
    dp["weight_hh"] += np.outer(da, h)
    for name in ("bias_ih", "bias_hh"):
        if name in dp:
            dp[name] += da
    if "weight_ch" in dp:
        dp["weight_ch"] += np.concatenate([da_i * c, da_f * c, da_o * c_next])
    return p["weight_ih"].T @ da, p["weight_hh"].T @ da, dc * f + da_i * w_i + da_f * w_f


def _run(layers, x, lengths, h0, c0, dy, dhy, dcy):
    """Output, states and all gradients of a stack; layers are lists of one or two directions.

    x is (T, B, I) and zero-padded; dy, dhy and dcy are the gradients of the outputs. Each row is
    run by itself over its own steps, backwards in the second direction.
    """
    steps, rows = x.shape[:2]
    D, hy, cy, dh0, dc0 = len(layers[0]), *(np.zeros_like(a) for a in (h0, c0, h0, c0))
    gradients = [[{k: np.zeros_like(v) for k, v in p.items()} for p in layer] for layer in layers]
    output, kept = x, {}
    orders = [[range(n)[:: 1 - 2 * d] for n in lengths] for d in range(D)]
    for index, layer in enumerate(layers):
        below, output = output, np.zeros((steps, rows, D * h0.shape[2]))
        for d, p in enumerate(layer):
            half = slice(d * h0.shape[2], (d + 1) * h0.shape[2])
            for b in range(rows):
                h, c = h0[index * D + d, b], c0[index * D + d, b]
                for t in orders[d][b]:
                    h, c, kept[index, d, b, t] = _step(below[t, b], h, c, p)
                    output[t, b, half] = h
                hy[index * D + d, b], cy[index * D + d, b] = h, c
    d_output = dy
    for index, layer in reversed(list(enumerate(layers))):
        d_below = np.zeros((steps, rows, layer[0]["weight_ih"].shape[1]))
        for d, p in enumerate(layer):
            half = slice(d * h0.shape[2], (d + 1) * h0.shape[2])
            for b in range(rows):
                dh, dc = dhy[index * D + d, b], dcy[index * D + d, b]
                for t in reversed(orders[d][b]):
                    dh = dh + d_output[t, b, half]
                    found = _step_back(dh, dc, kept[index, d, b, t], p, gradients[index][d])
                    dx, dh, dc = found
                    d_below[t, b] += dx
                dh0[index * D + d, b], dc0[index * D + d, b] = dh, dc
        d_output = d_below
    return output, hy, cy, d_output, dh0, dc0, gradients


def _by_hand(module, x, lengths, h0, c0, cotangents):
    """The results of ``_run`` for a module, by name; everything time-first and batched."""
    directions = ["", "_reverse"][: 1 + module.bidirectional]
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_ch")
    suffixes = [[f"_l{n}{d}" for d in directions] for n in range(module.num_layers)]
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    layers = [
        [{kind: state[kind + s] for kind in kinds if kind + s in state} for s in layer]
        for layer in suffixes
    ]
    arrays = [tensor.detach().numpy() for tensor in (x, h0, c0, *cotangents)]
    *found, gradients = _run(layers, arrays[0], lengths, *arrays[1:])
    names = ("output", "hy", "cy", "dinput", "dhx", "dcx")
    by_name = dict(zip(names, found, strict=True))
    for layer, parts in zip(suffixes, gradients, strict=True):
        for suffix, part in zip(layer, parts, strict=True):
            by_name |= {f"d{kind}{suffix}": value for kind, value in part.items()}
    return by_name


def _by_module(module, x, h0, c0, cotangents, layout):
    """The same results from a module. ``layout`` is padded, lengths, packed or unbatched."""
    leaves = {"dinput": x, "dhx": h0, "dcx": c0}
    leaves |= {f"d{name}": parameter for name, parameter in module.named_parameters()}
    input, hx, options = x.transpose(0, 1) if module.batch_first else x, (h0, c0), {}
    if layout == "packed":
        input = pack_padded_sequence(input, LENGTHS, module.batch_first, enforce_sorted=False)
    elif layout == "lengths":
        options["lengths"] = torch.tensor(LENGTHS)
    elif layout == "unbatched":
        input, hx = x[:, 0], (h0[:, 0], c0[:, 0])
    output, state = module(input, hx, **options)
    if layout == "packed":
        output, _ = pad_packed_sequence(output, module.batch_first)
    if layout == "unbatched":
        output, state = output[:, None], tuple(s[:, None] for s in state)
    elif module.batch_first:
        output = output.transpose(0, 1)
    results = (output, *state)
    gradients = torch.autograd.grad(results, list(leaves.values()), cotangents)
    named = dict(zip(("output", "hy", "cy"), results, strict=True))
    named |= dict(zip(leaves, gradients, strict=True))
    return {name: value.detach().numpy() for name, value in named.items()}


def _assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        error = np.abs(found[name] - value).max() / np.abs(value).max()
        assert error <= TOLERANCE, f"{name}: relative error {error:.1e}"


def _double(*size):
    return torch.randn(*size, dtype=torch.float64, requires_grad=True)


def _check(module, layout, others=()):
    lengths = LENGTHS if layout in ("packed", "lengths") else [T] * B
    rows = 1 if layout == "unbatched" else B
    D, P = 1 + module.bidirectional, module.proj_size or H
    x = _double(T, rows, I)
    states = [_double(module.num_layers * D, rows, size) for size in (P, H)]
    cotangents = [torch.randn(T, rows, D * P).double()]
    cotangents += [torch.randn(module.num_layers * D, rows, size).double() for size in (P, H)]
    expected = _by_hand(module, x, lengths[:rows], *states, cotangents)
    for one in (module, *others):
        _assert_close(_by_module(one, x, *states, cotangents, layout), expected)


@pytest.mark.parametrize("layout", ["padded", "packed", "unbatched"])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("batch_first, bias", [(False, True), (True, False)])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_lstm(num_layers, bidirectional, batch_first, proj_size, bias, layout):
    arguments = (I, H, num_layers, bias, batch_first, 0.0, bidirectional, proj_size)
    ours = fastlstm.LSTM(*arguments, dtype=torch.float64)
    torchs = nn.LSTM(*arguments, dtype=torch.float64)
    torchs.load_state_dict(ours.state_dict())
    _check(ours, layout, [torchs])


@pytest.mark.parametrize("layout", ["padded", "packed", "lengths", "unbatched"])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
@pytest.mark.parametrize("num_layers", [1, 2])
def test_peephole_lstm(num_layers, bidirectional, proj_size, layout):
    options = {"bidirectional": bidirectional, "proj_size": proj_size, "dtype": torch.float64}
    _check(fastlstm.LSTM(I, H, num_layers, peephole=True, **options), layout)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["", "bidirectional"])
def test_lengths(bidirectional):
    module = fastlstm.LSTM(I, H, 2, bidirectional=bidirectional, dtype=torch.float64)
    _check(module, "lengths")


@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
@pytest.mark.parametrize("peephole", [False, True], ids=["", "peephole"])
@pytest.mark.parametrize("batched", [False, True], ids=["unbatched", "batched"])
def test_cell(batched, peephole, bias):
    ours = fastlstm.LSTMCell(I, H, bias, dtype=torch.float64, peephole=peephole)
    cells = [ours]
    if not peephole:
        cells.append(nn.LSTMCell(I, H, bias, dtype=torch.float64))
        cells[1].load_state_dict(ours.state_dict())
    rows = B if batched else 1
    inputs = {"input": _double(rows, I), "hx": _double(rows, H), "cx": _double(rows, H)}
    cotangents = [torch.randn(rows, H).double() for _ in range(2)]
    p = {name: value.numpy() for name, value in ours.state_dict().items()}
    gradients = {name: np.zeros_like(value) for name, value in p.items()}
    rows_of = (value.detach().numpy() for value in inputs.values())
    steps = [_step(*row, p) for row in zip(*rows_of, strict=True)]
    back = [
        _step_back(dh, dc, step[2], p, gradients)
        for dh, dc, step in zip(*(c.numpy() for c in cotangents), steps, strict=True)
    ]
    expected = {
        f"d{name}": np.stack(g) for name, g in zip(inputs, zip(*back, strict=True), strict=True)
    }
    expected |= {f"d{name}": value for name, value in gradients.items()}
    expected |= {name: np.stack([step[k] for step in steps]) for k, name in enumerate(("hy", "cy"))}
    for cell in cells:
        leaves = inputs | dict(cell.named_parameters())
        given = [value if batched else value[0] for value in inputs.values()]
        results = [r.reshape(rows, H) for r in cell(given[0], (given[1], given[2]))]
        found = torch.autograd.grad(results, list(leaves.values()), cotangents)
        named = {f"d{name}": value for name, value in zip(leaves, found, strict=True)}
        named |= dict(zip(("hy", "cy"), results, strict=True))
        _assert_close({name: value.detach().numpy() for name, value in named.items()}, expected)


def test_the_derivatives_by_hand_are_those_of_the_loop():
    """Central differences check the derivatives of this file itself."""
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, proj_size=2, peephole=True).double()
    x, h0, c0 = torch.randn(T, B, I).double(), _double(4, B, 2), _double(4, B, H)
    cotangents = [torch.randn(T, B, 4).double(), torch.randn(4, B, 2).double()]
    cotangents.append(torch.randn(4, B, H).double())

    def loss():
        found = _by_hand(module, x, LENGTHS, h0, c0, cotangents)
        outputs = (found[name] for name in ("output", "hy", "cy"))
        return sum((o * c.numpy()).sum() for o, c in zip(outputs, cotangents, strict=True))

    found = _by_hand(module, x, LENGTHS, h0, c0, cotangents)
    leaves = {"dinput": x, "dhx": h0.detach(), "dcx": c0.detach()}
    leaves |= {f"d{name}": value for name, value in module.state_dict().items()}
    for name, leaf in leaves.items():
        direction = torch.randn_like(leaf)
        sides = []
        for sign in (1, -2):
            leaf.add_(sign * 1e-5 * direction)
            sides.append(loss())
        leaf.add_(1e-5 * direction)
        expected = (sides[0] - sides[1]) / 2e-5
        assert (found[name] * direction.numpy()).sum() == pytest.approx(expected, rel=1e-6), name
