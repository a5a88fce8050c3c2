"""Two processes train as one does: DDP, FSDP2, and shared memory.

Starting a process takes seconds, so one start serves all checks; each assertion names its own. Both
fork from a process that has imported what they need.
"""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

import fastlstm
from fastlstm.training import Windows, window_loss

WORLD = 2
T, B, I, H = 5, 6, 3, 8  # B of all processes together
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


class Model(nn.Module):
    """Two LSTMs and a cell, one of which a forward may leave out."""

    def __init__(self):
        super().__init__()
        options = {"peephole": True, "dtype": torch.float64, "learn_initial_state": True}
        self.encoder = fastlstm.LSTM(I, H, 2, bidirectional=True, **options)
        self.decoder = fastlstm.LSTM(2 * H, H, num_heads=2, **options)
        self.unused = fastlstm.LSTM(I, H, dtype=torch.float64)

    def forward(self, x, with_unused=False):
        y = self.decoder(self.encoder(x)[0])[0]
        return y + self.unused(x)[0] if with_unused else y


def _loss(output):
    return output.sin().mean()


def _batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(T, B, I, dtype=torch.float64, generator=generator)


def _share(rank):
    """The rows of the batch that this process trains on."""
    return slice(rank * B // WORLD, (rank + 1) * B // WORLD)


def _gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _check_ddp(model, rank, with_unused):
    alone, together = copy.deepcopy(model), copy.deepcopy(model)
    _loss(alone(_batch(), with_unused)).backward()
    wrapped = DistributedDataParallel(together, find_unused_parameters=not with_unused)
    for _ in range(2):  # the second call uses the buckets that the first one arranged
        wrapped.zero_grad()
        _loss(wrapped(_batch()[:, _share(rank)], with_unused)).backward()
    expected = _gradients(alone)
    for name, gradient in _gradients(together).items():
        if expected[name] is None:
            assert gradient is None or not gradient.any(), f"ddp: {name} was not used"
        else:
            torch.testing.assert_close(gradient, expected[name], **TOLERANCE)


def _check_fsdp(model, rank):
    alone, together = copy.deepcopy(model), copy.deepcopy(model)
    mesh = dist.init_device_mesh("cpu", (WORLD,))
    for child in together.children():
        fully_shard(child, mesh=mesh)
    fully_shard(together, mesh=mesh)
    for module, rows in ((alone, slice(None)), (together, _share(rank))):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
        _loss(module(_batch()[:, rows], True)).backward()
        optimizer.step()
    for (name, mine), expected in zip(together.named_parameters(), alone.parameters(), strict=True):
        assert mine.placements == (Shard(0),), f"fsdp: {name} is not sharded"
        torch.testing.assert_close(mine.full_tensor(), expected.detach(), **TOLERANCE)


def _windows(rank, world_size):
    text = [torch.arange(n, dtype=torch.uint8).numpy() for n in (30, 41, 7)]
    share = {"rank": rank, "world_size": world_size, "batch_size": 4 // world_size}
    return Windows(text, k1=5, k2=7, **share)


def _check_tbptt(rank):
    """Streams divided among processes, each with its states, train as in one process."""
    torch.manual_seed(0)
    alone = fastlstm.ByteLSTM(H, 2, 3, dtype=torch.float64)
    together = copy.deepcopy(alone)
    runs = []
    for model, share in ((alone, (0, 1)), (together, (rank, WORLD))):
        windows, state = _windows(*share), None
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        for number in range(len(windows) + 3):  # into the next epoch, over a shorter last window
            loss, state = window_loss(model, windows[number], state)
            loss.backward()
            if model is together:
                for parameter in model.parameters():
                    dist.all_reduce(parameter.grad, dist.ReduceOp.AVG)
            optimizer.step()
            optimizer.zero_grad()
        runs.append(dict(model.named_parameters()))
    for name, expected in runs[0].items():
        torch.testing.assert_close(runs[1][name], expected, **TOLERANCE)


def _worker(rank, path, model, shared):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=WORLD)
    try:
        _check_ddp(model, rank, with_unused=True)
        _check_ddp(model, rank, with_unused=False)
        _check_fsdp(model, rank)
        _check_tbptt(rank)
        with torch.no_grad():
            shared.bias_hh_l0[rank] = shared(torch.ones(1, 1, I))[0].sum().sign() * (rank + 1)
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this build of torch has no gloo")
def test_two_processes_do_what_one_does(tmp_path):
    shared = fastlstm.LSTM(I, H).share_memory().freeze()
    nn.init.ones_(shared.weight_ih_l0)
    nn.init.zeros_(shared.bias_hh_l0)
    mp.get_context("forkserver").set_forkserver_preload([__name__])
    arguments = tmp_path / "rendezvous", Model(), shared
    mp.start_processes(_worker, arguments, nprocs=WORLD, start_method="forkserver")
    assert shared.bias_hh_l0.abs()[:3].tolist() == [1, 2, 0], "written by the other processes"
