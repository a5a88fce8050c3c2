"""The memory of a training step is used again by the next one, and never by two at once."""

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastlstm
from fastlstm.backends import recycling

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_blocks(monkeypatch):
    monkeypatch.setattr(recycling, "_blocks", {})


def _spare():
    return [block.numel() for block in recycling._blocks.values()]


def test_memory_comes_back_with_the_last_tensor_on_it():
    first = recycling.empty((MIB,), torch.float32)
    address, view = first.data_ptr(), first[5:]
    del first
    assert _spare() == []
    del view
    assert _spare() == [4 * MIB]
    second = recycling.empty((3, MIB), torch.bfloat16)  # larger: not from there
    assert second.shape == (3, MIB) and second.dtype == torch.bfloat16
    assert _spare() == [4 * MIB]
    third = recycling.empty((MIB // 4, 2), torch.float64)
    assert third.data_ptr() == address and third.is_contiguous() and _spare() == []


def test_what_is_used_again_is_nan():
    tensor = recycling.empty((MIB,), torch.float32).zero_()
    address = tensor.data_ptr()
    del tensor
    again = recycling.empty((MIB,), torch.float32)
    assert again.data_ptr() == address and again.isnan().all()


def test_small_tensors_are_ordinary():
    tensor = recycling.empty((8, 8), torch.float32)
    tensor.resize_(100)
    del tensor
    assert _spare() == []


def test_no_more_than_the_limit_is_kept(monkeypatch):
    monkeypatch.setattr(recycling, "_KEPT_BYTES", 5 * MIB)
    tensors = [recycling.empty((n * MIB,), torch.uint8) for n in (1, 2, 3, 9)]
    while tensors:
        tensors.pop(0)
    assert _spare() == []  # the last one is above the limit, and the older ones go first
    tensors = [recycling.empty((n * MIB,), torch.uint8) for n in (1, 2, 3)]
    while tensors:
        tensors.pop(0)
    assert _spare() == [2 * MIB, 3 * MIB]


def _step(module, x):
    y = module(x)[0]
    return y, lambda: torch.autograd.grad(y.square().sum(), list(module.parameters()))


def test_steps_that_overlap_have_memory_of_their_own():
    module = fastlstm.LSTM(8, 64)
    xs = [torch.randn(300, 4, 8) for _ in range(3)]
    alone = []
    for x in xs:
        alone.append(_step(module, x)[1]())
    pending = [_step(module, x)[1] for x in xs]
    assert len(_spare()) == 0
    together = {i: pending[i]() for i in (1, 2, 0)}
    for i, gradients in enumerate(alone):
        assert all(map(torch.equal, gradients, together[i]))
    pending.clear()
    gc.collect()
    assert len(_spare()) == 3


def test_threads_share_the_memory():
    module = fastlstm.LSTM(8, 64)
    xs = [torch.randn(300, 4, 8) for _ in range(8)]
    alone = [_step(module, x)[1]() for x in xs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(lambda x: _step(module, x)[1](), xs))
            for expected, found in zip(alone, together, strict=True):
                assert all(map(torch.equal, expected, found))


def test_a_tensor_is_pickled_as_any_other():
    tensor = recycling.empty((MIB,), torch.float32).fill_(3)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)
