"""Masks: what kernels draw from a seed, and what of torch they follow."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastlstm
from fastlstm import _C, masks


def _drawn(seed, count, p=0.5, dtype=torch.float32, isa="auto", threads=1):
    mask = torch.full((count,), float("nan"), dtype=dtype)
    _C.draw_mask(
        dtype=str(dtype).removeprefix("torch."),
        seed=seed,
        p=p,
        dropped=1.0,
        kept=0.0,
        count=count,
        to=mask.data_ptr(),
        num_threads=threads,
        isa=isa,
    )
    return mask


def _split_mix(seed, count):
    """The numbers of SplitMix64, as the paper has them, in 16 bits each."""
    numbers = []
    for n in range(1, -(-count // 4) + 1):
        word = (seed + n * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        word ^= word >> 31
        numbers += [word >> shift & 0xFFFF for shift in (0, 16, 32, 48)]
    return torch.tensor(numbers[:count])


@pytest.mark.parametrize("isa", _C.isas())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_numbers(isa, dtype):
    for seed in (0, 12345, 2**64 - 1):
        for count in (0, 1, 255, 256, 1027):
            expected = _split_mix(seed, count) < round(0.3 * 2**16)
            mask = _drawn(seed, count, 0.3, dtype, isa)
            assert torch.equal(mask, expected.to(dtype))


def test_any_number_of_threads():
    one = _drawn(7, 300_001)
    assert all(torch.equal(_drawn(7, 300_001, threads=n), one) for n in (2, 3, 5))


def test_certain_masks():
    assert _drawn(1, 1000, p=0.0).eq(0).all()
    assert _drawn(1, 1000, p=1.0).eq(1).all()


def _chi_square(counts):
    expected = counts.double().mean()
    return ((counts - expected).square() / expected).sum().item()


def test_neighbours_positions_and_seeds_are_independent():
    """Chi-square of the 256 patterns of 8 numbers: 255 on average, with a deviation of 22.6."""
    powers = 2 ** torch.arange(8)
    mask = _drawn(2024, 8 * 200_000).long()
    neighbours = (mask.view(-1, 8) * powers).sum(1)
    apart = (mask.view(8, -1) * powers[:, None]).sum(0)
    seeds = torch.stack([_drawn(seed, 200_000).long() for seed in range(8)])
    across = (seeds * powers[:, None]).sum(0)
    columns = torch.stack([_drawn(seed, 64).long() for seed in range(4000)])
    for patterns in (neighbours, apart, across):
        assert abs(_chi_square(torch.bincount(patterns, minlength=256)) - 255) < 5 * 22.6
    assert (columns.double().mean(0) - 0.5).abs().max() < 5 * 0.5 / 4000**0.5
    correlation = torch.corrcoef(columns.double().T) - torch.eye(64)
    assert correlation.abs().max() < 5.5 / 4000**0.5


def test_masks_follow_the_generator():
    like = torch.empty(0)

    def drawn(p=0.5):
        return masks._dropout_mask((40, 50), p, like)

    torch.manual_seed(1)
    first, second = drawn(), drawn()
    state = torch.get_rng_state()
    third = drawn()
    assert not torch.equal(first, second)
    torch.set_rng_state(state)
    assert torch.equal(drawn(), third)
    torch.manual_seed(1)
    assert torch.equal(drawn(), first)
    with pytest.raises(RuntimeError, match="randomness"):
        torch.func.vmap(lambda x: x * drawn().sum())(torch.ones(3))
    for randomness, are_same in (("same", True), ("different", False)):
        found = torch.func.vmap(lambda x: x + drawn(), randomness=randomness)(torch.zeros(3))
        assert torch.equal(found[0], found[1]) is are_same


def test_float16_and_other_devices_have_the_same_probability():
    torch.manual_seed(0)
    mask = masks._dropout_mask((400, 500), 0.25, torch.empty(0, dtype=torch.float16))
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(4 / 3).half().item()}
    assert abs(mask.eq(0).double().mean() - 0.25) < 0.005


def test_a_checkpoint_draws_the_same_masks_again():
    lstm = fastlstm.LSTM(4, 5, recurrent_dropout=0.5, weight_dropout=0.5, zoneout=(0.3, 0.3))
    x, found = torch.randn(6, 2, 4, requires_grad=True), []
    for run in (lstm, lambda x: checkpoint(lstm, x, use_reentrant=False)):
        torch.manual_seed(2)
        found.append(torch.autograd.grad(run(x)[0].square().sum(), [x, *lstm.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
