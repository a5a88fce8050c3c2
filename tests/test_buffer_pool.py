"""The memory of a training step is used again, and never by two tensors at once."""

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastlstm
from fastlstm import _C

MIB = 2**20
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def _forget():
    _C.limit_spare_buffers(0)
    _C.limit_spare_buffers(256 * MIB)


@pytest.fixture(autouse=True)
def _no_buffers():
    gc.collect()
    _forget()


def test_memory_comes_back_with_the_last_tensor_on_it():
    first = _C.pooled_empty((MIB,), F32)
    address, view = first.data_ptr(), first[5:]
    del first
    assert _C.spare_buffers() == []
    del view
    assert _C.spare_buffers() == [4 * MIB]
    second = _C.pooled_empty((3, MIB), BF16)  # larger than the spare buffer
    assert second.shape == (3, MIB) and second.dtype == BF16
    assert _C.spare_buffers() == [4 * MIB]
    third = _C.pooled_empty((MIB // 4, 2), F64)
    assert third.data_ptr() == address and third.is_contiguous() and _C.spare_buffers() == []


@pytest.mark.parametrize("dtype", [F32, F64, BF16, torch.int32, torch.int64, torch.bool], ids=str)
def test_a_tensor_is_as_any_other(dtype):
    tensor = _C.pooled_empty((2, 1, 3, 1024, 512), dtype)
    expected = torch.empty(2, 1, 3, 1024, 512, dtype=dtype)
    assert (tensor.dtype, tensor.shape, tensor.stride()) == (
        dtype,
        expected.shape,
        expected.stride(),
    )
    assert tensor.device == expected.device and not tensor.requires_grad
    tensor.zero_()[1, 0, 2, 1023, 511] = 1
    assert tensor.sum() == 1 and tensor.view(-1)[-1] == 1


def test_what_is_used_again_is_nan():
    tensor = _C.pooled_empty((MIB,), F32)
    assert tensor.isnan().all()
    address = tensor.zero_().data_ptr()
    del tensor
    again = _C.pooled_empty((MIB,), F32)
    assert again.data_ptr() == address and again.isnan().all()


def test_nothing_is_written_unless_torch_is_to_be_deterministic():
    torch.utils.deterministic.fill_uninitialized_memory = False
    tensor = _C.pooled_empty((MIB,), F32).fill_(3)
    del tensor
    assert (_C.pooled_empty((MIB,), F32) == 3).all()


def test_large_buffers_begin_where_a_huge_page_may():
    for size in (2 * MIB, 7 * MIB + 12):
        assert _C.pooled_empty((size,), torch.bool).data_ptr() % (2 * MIB) == 0


def test_the_smallest_that_fits_is_taken():
    tensors = [_C.pooled_empty((n * MIB,), torch.bool) for n in (8, 4, 6)]
    addresses = [tensor.data_ptr() for tensor in tensors]
    tensors.clear()
    assert _C.pooled_empty((5 * MIB,), torch.bool).data_ptr() == addresses[2]


def test_small_tensors_are_ordinary():
    tensor = _C.pooled_empty((8, 8), F32)
    tensor.resize_(100)
    del tensor
    with torch.device("meta"):
        assert _C.pooled_empty((2, 3), F32).device == torch.device("cpu")
    assert _C.spare_buffers() == []


def test_no_more_than_the_limit_is_kept():
    _C.limit_spare_buffers(10 * MIB)
    tensors = [_C.pooled_empty((n * MIB,), torch.bool) for n in (2, 4, 6, 18)]
    while tensors:
        tensors.pop(0)
    assert _C.spare_buffers() == [
        4 * MIB,
        6 * MIB,
    ]  # without the oldest and the one above the limit
    _C.limit_spare_buffers(7 * MIB)
    assert _C.spare_buffers() == [6 * MIB]


def test_what_does_not_fit_into_memory_is_torch_s_error():
    with pytest.raises(RuntimeError, match=f"not enough memory.*{2**62}"):
        _C.pooled_empty((2**60,), F32)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_forked_process_has_a_pool_of_its_own():
    """Also while other threads use it."""
    with ThreadPoolExecutor(2) as threads:
        busy = [threads.submit(_take_many) for _ in range(2)]
        for _ in range(20):
            child = os.fork()
            if child == 0:
                tensor = _C.pooled_empty((MIB,), F32)
                del tensor
                os._exit(0 if 4 * MIB in _C.spare_buffers() else 1)
            assert os.waitpid(child, 0)[1] == 0
        for one in busy:
            one.result()


def _take_many():
    for _ in range(2000):
        _C.pooled_empty((MIB // 4,), F32)


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
    assert len(_C.spare_buffers()) == 0
    together = {i: pending[i]() for i in (1, 2, 0)}
    for i, gradients in enumerate(alone):
        assert all(map(torch.equal, gradients, together[i]))
    pending.clear()
    gc.collect()
    assert len(_C.spare_buffers()) == 3


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
    assert len(_C.spare_buffers()) == 1


def test_a_tensor_is_pickled_as_any_other():
    tensor = _C.pooled_empty((MIB,), torch.float32).fill_(3)
    assert torch.equal(pickle.loads(pickle.dumps(tensor)), tensor)
