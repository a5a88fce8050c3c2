"""The memory of a training step is used again, and never by two tensors at once."""

import gc
import pickle
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

import fastlstm
from fastlstm.backends.cpu import buffer_pool

MIB = 2**20


@pytest.fixture(autouse=True)
def _no_blocks(monkeypatch):
    monkeypatch.setattr(buffer_pool, "_blocks", {})


def _spare():
    return [block.numel() for block in buffer_pool._blocks.values()]


def test_memory_comes_back_with_the_last_tensor_on_it():
    first = buffer_pool.empty((MIB,), torch.float32)
    address, view = first.data_ptr(), first[5:]
    del first
    assert _spare() == []
    del view
    assert _spare() == [4 * MIB]
    second = buffer_pool.empty((3, MIB), torch.bfloat16)  # larger than the spare block
    assert second.shape == (3, MIB) and second.dtype == torch.bfloat16
    assert _spare() == [4 * MIB]
    third = buffer_pool.empty((MIB // 4, 2), torch.float64)
    assert third.data_ptr() == address and third.is_contiguous() and _spare() == []


def test_what_is_used_again_is_nan():
    tensor = buffer_pool.empty((MIB,), torch.float32).zero_()
    address = tensor.data_ptr()
    del tensor
    again = buffer_pool.empty((MIB,), torch.float32)
    assert again.data_ptr() == address and again.isnan().all()


def test_large_blocks_begin_where_a_huge_page_may():
    for size in (2 * MIB, 7 * MIB + 12):
        assert buffer_pool.empty((size,), torch.uint8).data_ptr() % (2 * MIB) == 0


def test_small_tensors_are_ordinary():
    tensor = buffer_pool.empty((8, 8), torch.float32)
    tensor.resize_(100)
    del tensor
    assert _spare() == []


def test_no_more_than_the_limit_is_kept(monkeypatch):
    monkeypatch.setattr(buffer_pool, "_KEPT_BYTES", 5 * MIB)
    tensors = [buffer_pool.empty((n * MIB,), torch.uint8) for n in (1, 2, 3, 9)]
    while tensors:
        tensors.pop(0)
    assert _spare() == [2 * MIB, 3 * MIB]  # without the oldest and the one above the limit


def test_blocks_come_and_go_while_one_is_chosen(monkeypatch):
    """A garbage collection or another thread may free or take blocks between any two steps."""
    in_use = [buffer_pool.empty((n * MIB,), torch.uint8) for n in (1, 2, 3)]
    in_use.pop()

    def give_one_back(block):
        if in_use:
            in_use.pop()
        return block.numel()

    monkeypatch.setattr(buffer_pool, "Tensor", SimpleNamespace(numel=give_one_back))
    first = buffer_pool.empty((3 * MIB,), torch.uint8)
    assert first.shape == (3 * MIB,) and sorted(_spare()) == [MIB, 2 * MIB]

    def take_all(block):
        buffer_pool._blocks.clear()
        return block.numel()

    monkeypatch.setattr(buffer_pool, "Tensor", SimpleNamespace(numel=take_all))
    assert buffer_pool.empty((2 * MIB,), torch.uint8).shape == (2 * MIB,)
    assert _spare() == []


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


def test_a_compiled_step_uses_it_too(compiled):
    module = fastlstm.LSTM(8, 64)
    x = torch.randn(300, 4, 8)
    expected = _step(module, x)[1]()
    module = compiled(module)
    for _ in range(2):
        for one, other in zip(expected, _step(module, x)[1](), strict=True):
            torch.testing.assert_close(one, other)
    gc.collect()
    assert len(_spare()) == 1


def test_a_tensor_is_pickled_as_any_other():
    tensor = buffer_pool.empty((MIB,), torch.float32).fill_(3)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)
