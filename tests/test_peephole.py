"""Peepholes: their parameters, their equations, and that they are learnt."""

import copy

import torch
from helpers import assert_close, skip_unless_supported
from pairs import TOLERANCE, B, H, I, T, input_of, leaves_of, results, states_of
from torch import nn

import fastlstm


def _by_hand(module, x, hx):
    """One layer, one direction, gate by gate."""
    h, c = hx[0][0], hx[1][0]
    w_ci, w_cf, w_co = module.weight_ch_l0.split(module.hidden_size)
    outputs = []
    for x_t in x:
        gates = x_t @ module.weight_ih_l0.t() + module.bias_ih_l0
        gates = gates + h @ module.weight_hh_l0.t() + module.bias_hh_l0
        a_i, a_f, a_g, a_o = gates.split(module.hidden_size, dim=1)
        c_next = torch.sigmoid(a_f + w_cf * c) * c + torch.sigmoid(a_i + w_ci * c) * a_g.tanh()
        h = torch.sigmoid(a_o + w_co * c_next) * c_next.tanh()
        c = c_next
        outputs.append(h)
    return torch.stack(outputs), (h[None], c[None])


def test_peephole_parameters():
    module = fastlstm.LSTM(I, H, 2, bidirectional=True, peephole=True)
    suffixes = ["l0", "l0_reverse", "l1", "l1_reverse"]
    plain = [name for name, _ in fastlstm.LSTM(I, H, 2, bidirectional=True).named_parameters()]
    names = [name for name, _ in module.named_parameters()]
    assert names == plain + [f"weight_ch_{suffix}" for suffix in suffixes]
    for suffix in suffixes:
        weight_ch = getattr(module, f"weight_ch_{suffix}")
        assert weight_ch.shape == (3 * H,)
        assert 0 < weight_ch.abs().max() <= H**-0.5
    assert not hasattr(fastlstm.LSTM(I, H), "weight_ch_l0")


def test_peephole_lstm_equals_a_loop_by_hand(backend):
    module = fastlstm.LSTM(I, H, peephole=True, dtype=torch.float64, backend=backend)
    skip_unless_supported(backend, module.problem())
    input, hx = input_of(module), states_of(module, B)

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, input, hx):
            return _by_hand(self.module, input, hx)

        def named_parameters(self):
            return self.module.named_parameters()

    leaves = leaves_of(input, hx)
    mine = results(module, input, hx, leaves=leaves)
    assert_close(mine, results(ByHand(), input, hx, leaves=leaves), TOLERANCE)


def test_zero_peepholes_change_nothing():
    ours, torchs = fastlstm.LSTM(I, H, 2, peephole=True), nn.LSTM(I, H, 2)
    torchs.load_state_dict({k: v for k, v in ours.state_dict().items() if "_ch_" not in k})
    x = torch.randn(T, B, I)
    assert not torch.allclose(ours(x)[0], torchs(x)[0])
    for name, parameter in ours.named_parameters():
        if "_ch_" in name:
            parameter.data.zero_()
    torch.testing.assert_close(ours(x)[0], torchs(x)[0])


def test_peepholes_learn():
    """The student finds the peepholes of a teacher that differs only in them."""
    teacher = fastlstm.LSTM(I, 4, peephole=True)
    student = copy.deepcopy(teacher)
    nn.init.zeros_(student.weight_ch_l0)
    teacher.weight_ch_l0.data.mul_(3)
    optimizer = torch.optim.Adam([student.weight_ch_l0], lr=0.1)
    x = 2 * torch.randn(12, 16, I)
    target = teacher(x)[0].detach()
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(student(x)[0], target).backward()
        optimizer.step()
    torch.testing.assert_close(student.weight_ch_l0, teacher.weight_ch_l0, rtol=0.05, atol=0.05)
