"""An LSTM in a process that was forked after its parent had run one on several threads."""

import multiprocessing as mp

import pytest
import torch

import fastlstm
from fastlstm import _C, lstm_sequence

T, B, H = 20, 4, 128  # enough for a call to take two threads


def arguments():
    return torch.randn(T, B, 1, 4 * H), torch.randn(4 * H, H).div_(H).requires_grad_()


def run(igates, weight, threads):
    """y, and the gradient of the weight."""
    # In a child, torch's functions hang if they use several threads: from 32,768 numbers on.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.set_num_threads(threads)
    y = lstm_sequence(igates, [weight], backend="cpu")[0]
    (gradient,) = torch.autograd.grad(y[:, :, 0, :8].sum(), weight)
    return y.detach().numpy(), gradient.numpy()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_child_computes_what_its_parent_does(threads):
    """The child has none of the parent's OpenMP threads; OpenMP would wait for them forever."""
    with torch.no_grad():
        torch.set_num_threads(2)
        fastlstm.LSTM(2, H)(torch.rand(T, B, 2))  # the parent's threads are there now
        _C.fma_flops("auto", 2)
    given = arguments()
    expected = run(*given, threads)
    with mp.get_context("fork").Pool(1) as pool:
        for _ in range(2):
            found = pool.apply_async(run, (*given, threads)).get(timeout=30)
            for mine, parents in zip(found, expected, strict=True):
                assert (mine == parents).all()


def test_a_child_of_a_child():
    given, context = arguments(), mp.get_context("fork")
    queue = context.SimpleQueue()

    def child():
        grandchild = context.Process(target=lambda: queue.put(run(*given, 2)[0]))
        grandchild.start()
        grandchild.join(30)

    expected = run(*given, 2)[0]
    process = context.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0 and not queue.empty()
    assert (queue.get() == expected).all()
