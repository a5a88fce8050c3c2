"""The packed weights of a frozen LSTM are never stale, whatever writes to the weights and how."""

import copy
import itertools

import pytest
import torch
from direct_calls import assert_same, is_direct
from helpers import assert_close
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastlstm
from fastlstm import _C

I, H = 7, 33  # not multiples of a vector's length


def _module(dtype=torch.float32, **options):
    return fastlstm.LSTM(I, H, dtype=dtype, backend="cpu", **options)


@torch.no_grad()
def _infer(module, *args, **kwargs):
    output, (hy, cy) = module(*args, **kwargs)
    return {"output": output, "hy": hy, "cy": cy}


def _memory(module):
    """The memory of the packed weights of each layer; None for a layer without."""
    return [layer._kept.memory for layer in module._packed]


def _assert_live(module, x, *args, **kwargs):
    """Assert that the frozen module gives what a copy without packed weights gives."""
    assert None not in _memory(module)
    live = copy.deepcopy(module).unfreeze()
    assert_close(_infer(module, x, *args, **kwargs), _infer(live, x, *args, **kwargs), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_packed_weights_are_kept_until_something_is_written(dtype):
    module = _module(dtype, num_layers=2, bidirectional=True).freeze()
    x = torch.randn(60, 40, I, dtype=dtype)
    assert _memory(module) == [None, None]
    _infer(module, x)
    first = _memory(module)
    _infer(module, x[:, :7])
    assert all(a is b for a, b in zip(_memory(module), first, strict=True))
    module.bias_hh_l0.data.mul_(2)  # biases are not packed
    _infer(module, x)
    assert all(a is b for a, b in zip(_memory(module), first, strict=True))
    module.weight_hh_l1_reverse.data[0, 0] += 1
    _infer(module, x)
    assert _memory(module)[0] is first[0]
    assert _memory(module)[1] is not first[1]


@pytest.mark.parametrize("T, B", [(1, 1), (2, 3)])
def test_few_rows_pack_nothing(T, B):
    module = _module().freeze()
    _infer(module, torch.randn(T, B, I))
    assert _memory(module) == [None]


def _negate(module):
    for parameter in module.parameters():
        parameter.data.neg_()


def _negate_two(module):
    """Two differences of 2**63 in float64: a sum of products with odd factors would miss both."""
    weight = module.weight_hh_l0.data.view(-1)
    weight[0].neg_(), weight[1].neg_()


def _swap_rows(module):
    weight = module.weight_ih_l0.data
    weight[:2] = weight[[1, 0]]


def _numpy(module):
    module.weight_ih_l0.detach().numpy()[3, 2] = 7


def _new_data(module):
    module.weight_hh_l0.data = -module.weight_hh_l0.data


def _new_parameter(module):
    module.weight_hh_l0 = nn.Parameter(-module.weight_hh_l0)
    module.bias_hh_l0 = nn.Parameter(-module.bias_hh_l0)


def _optimiser_step(module):
    x = torch.randn(4, 5, I, dtype=module.weight_hh_l0.dtype)
    module(x)[0].sum().backward()
    torch.optim.SGD(module.parameters(), lr=1).step()


def _fused_optimiser_step(module):
    x = torch.randn(4, 5, I, dtype=module.weight_hh_l0.dtype)
    module(x)[0].sum().backward()
    torch.optim.Adam(module.parameters(), lr=0.1, fused=True).step()


def _ema_swap(module):
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for _ in range(2):
        _optimiser_step(module)
        average.update_parameters(module)
    for mine, other in zip(module.parameters(), average.module.parameters(), strict=True):
        mine.data.copy_(other.data)


def _load(module):
    module.load_state_dict({name: -value for name, value in module.state_dict().items()})


def _load_assign(module):
    state = {name: -value for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def _vector(module):
    torch.nn.utils.vector_to_parameters(
        -torch.nn.utils.parameters_to_vector(module.parameters()), module.parameters()
    )


WRITES = [
    _negate,
    _negate_two,
    _swap_rows,
    _numpy,
    _new_data,
    _new_parameter,
    _optimiser_step,
    _fused_optimiser_step,
    _ema_swap,
    _load,
    _load_assign,
    _vector,
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("reading", ["dlpack", "off"])
def test_no_write_goes_unseen(write, dtype, reading):
    _C.set_direct(reading)
    module = _module(dtype, num_layers=2, bidirectional=True, peephole=True).freeze()
    x, hx = torch.randn(60, 2, I, dtype=dtype), tuple(torch.randn(4, 2, H).to(dtype) for _ in "hc")
    before = _infer(module, x, hx)
    write(module)
    _assert_live(module, x, hx)
    assert not torch.equal(_infer(module, x, hx)["output"], before["output"])


@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "weight_ch", "bias_ih", "bias_hh"])
def test_every_parameter_is_live(name):
    module = _module(num_layers=2, bidirectional=True, peephole=True).freeze()
    x = torch.randn(60, 2, I)
    before = _infer(module, x)
    for found, parameter in module.named_parameters():
        if name in found:
            parameter.data.mul_(-1)
    _assert_live(module, x)
    assert not torch.equal(_infer(module, x)["output"], before["output"])


def _checksum(weight_ih, weight_hh, num_threads=1):
    """The checksum of weights (G, 4H, I) and (G, 4H, H)."""
    G, four_h, I = weight_ih.shape
    return _C.lstm_checksum(
        dtype=str(weight_ih.dtype).removeprefix("torch."),
        G=G,
        H=four_h // 4,
        I=I,
        P=0,
        weight_ih=(weight_ih.data_ptr(), weight_ih.stride(0)),
        weight_hh=(weight_hh.data_ptr(), weight_hh.stride(0)),
        num_threads=num_threads,
        isa="auto",
    )


BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_every_bit_of_a_weight_counts(dtype):
    """Each bit of one weight in turn, inside a block of the checksum and at its end."""
    weights = [torch.randn(2, 12, columns).to(dtype) for columns in (43, 3)]
    seen, count = {_checksum(*weights)}, 8 * dtype.itemsize
    for weight in weights:
        flat = weight.view(BITS[dtype]).view(-1)
        for index in (0, 5, flat.numel() // 2, flat.numel() - 1):
            for bit in range(count):
                mask = -(1 << bit) if bit == count - 1 else 1 << bit
                flat[index] ^= mask
                seen.add(_checksum(*weights))
                flat[index] ^= mask
    assert len(seen) == 1 + 2 * 4 * count


@pytest.mark.parametrize(
    "change", [torch.neg, lambda w: 2 * w, torch.zeros_like], ids=["sign", "double", "zero"]
)
@pytest.mark.parametrize("dtype", BITS, ids=str)
def test_two_changes_do_not_cancel(dtype, change):
    """Two changes in the uppermost bits, where a sum of products with odd factors fails.

    Signs and exponents are there. All pairs of 100 weights have 4,950 different checksums.
    """
    weights = [torch.randn(1, 12, columns).to(dtype) for columns in (8, 3)]
    flat, changed = weights[0].view(-1), change(weights[0]).view(-1)
    seen = {_checksum(*weights)}
    pairs = list(itertools.combinations(range(flat.numel()), 2))
    for pair in pairs:
        before = flat[list(pair)].clone()
        flat[list(pair)] = changed[list(pair)]
        seen.add(_checksum(*weights))
        flat[list(pair)] = before
    assert len(seen) == 1 + len(pairs)


def test_a_checksum_is_the_same_on_any_number_of_threads():
    weights = torch.randn(1, 2400, 600), torch.randn(1, 2400, 600)
    assert len({_checksum(*weights, num_threads=threads) for threads in (1, 2, 3, 8)}) == 1


@pytest.mark.parametrize("T, B", [(1, 1), (1, 70), (2, 3), (300, 1), (60, 40)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 2, "bidirectional": True, "peephole": True, "batch_first": True},
    ],
    ids=["plain", "no bias", "everything"],
)
def test_frozen_calls_are_direct(options, T, B):
    """A direct call uses the packed weights, and computes what the general path does."""
    module = _module(**options).freeze()
    x = torch.randn(T, B, I)
    if module.batch_first:
        x = x.transpose(0, 1)
    with torch.no_grad():
        assert is_direct(module, x)
        packed = _memory(module)
        assert_same(module, x)
    assert _memory(module) == packed
    assert (packed[0] is None) == (T * B < 16)


def test_direct_calls_with_a_cache_that_is_not_the_usual_one():
    module, x = _module(num_layers=2).freeze(), torch.randn(60, 2, I)
    expected = _infer(copy.deepcopy(module), x)
    for change in (lambda kept: kept.pop(), lambda kept: kept.append(None)):
        change(module._packed)
        with torch.no_grad():
            assert not is_direct(module, x)
    module.freeze()._packed[1]._kept = None
    with torch.no_grad():
        assert not is_direct(module, x)
    assert_close(_infer(module.freeze(), x), expected, 1e-6)
