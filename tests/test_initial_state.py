"""``learn_initial_state``: h_0 and c_0 are parameters, used for every row that has no hx."""

import copy

import pytest
import torch
from helpers import assert_close
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastlstm

T, B, I, H = 5, 4, 3, 6
LENGTHS = torch.tensor([3, 5, 1, 4])
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"proj_size": 2, "bidirectional": True},
    {"num_layers": 2, "peephole": True},
]


def _module(**options):
    module = fastlstm.LSTM(I, H, dtype=torch.float64, learn_initial_state=True, **options)
    nn.init.normal_(module.h_0)
    nn.init.normal_(module.c_0)
    return module


def _results(module, inputs, hx):
    output, (hy, cy) = module(*inputs, hx)
    output = output if isinstance(output, torch.Tensor) else output.data
    loss = output.sin().sum() + hy.cos().sum() + (cy * cy).sum()
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return {"output": output, "hy": hy, "cy": cy} | dict(zip(parameters, gradients, strict=True))


@pytest.mark.parametrize("kind", ["padded", "unbatched", "packed"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_same_state_given_for_every_row(options, kind):
    module, x = _module(**options), torch.randn(T, B, I, dtype=torch.float64)
    if module.batch_first:
        x = x.transpose(0, 1)
    state = [state.unsqueeze(1).expand(-1, B, -1) for state in (module.h_0, module.c_0)]
    if kind == "unbatched":
        x, state = torch.randn(T, I, dtype=torch.float64), [module.h_0, module.c_0]
    elif kind == "packed":
        x = pack_padded_sequence(x, LENGTHS, module.batch_first, enforce_sorted=False)
    assert_close(_results(module, [x], None), _results(module, [x], tuple(state)), 1e-12)


def test_lengths():
    module, x = _module(bidirectional=True), torch.randn(T, B, I, dtype=torch.float64)
    state = tuple(s.unsqueeze(1).expand(-1, B, -1) for s in (module.h_0, module.c_0))
    found, expected = (module(x, hx, lengths=LENGTHS)[0] for hx in (None, state))
    torch.testing.assert_close(found, expected)


def test_a_state_that_is_given_goes_first():
    module, x = _module(), torch.randn(T, B, I, dtype=torch.float64)
    hx = (torch.zeros(1, B, H, dtype=torch.float64),) * 2
    plain = fastlstm.LSTM(I, H, dtype=torch.float64)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if "_0" not in k})
    torch.testing.assert_close(module(x, hx)[0], plain(x)[0])
    assert not torch.allclose(module(x)[0], plain(x)[0])


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_zero_at_first_and_no_other_draw_moves(options):
    torch.manual_seed(7)
    plain = fastlstm.LSTM(I, H, **options)
    torch.manual_seed(7)
    module = fastlstm.LSTM(I, H, learn_initial_state=True, **options)
    D = 2 if module.bidirectional else 1
    assert module.h_0.shape == (module.num_layers * D, module.proj_size or H)
    assert module.c_0.shape == (module.num_layers * D, H)
    for again in range(2):
        for name, parameter in plain.named_parameters():
            assert torch.equal(module.get_parameter(name), parameter)
        assert not module.h_0.any() and not module.c_0.any()
        if not again:
            for one in (plain, module):
                nn.init.ones_(module.h_0)
                torch.manual_seed(8)
                one.reset_parameters()


def test_state_dict_repr_and_the_way_to_torch():
    module = _module(peephole=True)
    assert list(module.state_dict())[-2:] == ["h_0", "c_0"]
    assert repr(module) == "LSTM(3, 6, peephole=True, learn_initial_state=True)"
    again = _module(peephole=True)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.h_0, module.h_0)
    with pytest.raises(ValueError, match="learn_initial_state: expected False"):
        _module().to_torch()
    assert "learn_initial_state=True" in fastlstm.explain(module)
    assert not hasattr(fastlstm.LSTM(I, H), "h_0")
    x = torch.randn(T, B, I, dtype=torch.float64)
    torch.testing.assert_close(copy.deepcopy(module)(x)[0], module(x)[0])


def test_it_learns():
    """The student finds the initial states of a teacher that differs only in them."""
    teacher = _module()
    student = copy.deepcopy(teacher)
    nn.init.zeros_(student.h_0), nn.init.zeros_(student.c_0)
    optimizer = torch.optim.Adam([student.h_0, student.c_0], lr=0.1)
    x = torch.randn(3, 16, I, dtype=torch.float64)
    target = teacher(x)[0].detach()
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(student(x)[0], target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]
