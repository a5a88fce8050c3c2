"""Memory does not grow, however many calls and shapes there are."""

import copy
import gc
from pathlib import Path

import pytest
import torch

import fastlstm

STATUS = Path("/proc/self/statm")
WARM_UP, CALLS = 2000, 4000
LIMIT = 2 * 2**20  # bytes; calls that lose one output each would lose 8 MB and more


def _resident():
    gc.collect()
    return int(STATUS.read_text().split()[1]) * 4096


def _shapes(count):
    """Other sizes at each call: T in 1..24, B in 1..8."""
    generator = torch.Generator().manual_seed(1)
    pairs = torch.stack(
        [torch.randint(1, high, (count,), generator=generator) for high in (25, 9)], dim=1
    )
    return pairs.tolist()


@pytest.mark.skipif(not STATUS.exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_thousands_of_calls_of_different_shapes(training):
    """Every second call has lengths; in inference every third uses packed weights."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(False)  # to fill all new memory takes longer than the calls
    module = fastlstm.LSTM(6, 17, peephole=True, backend="cpu")
    frozen = copy.deepcopy(module).freeze()
    for index, (T, B) in enumerate(_shapes(WARM_UP + CALLS)):
        if index == WARM_UP:
            before = _resident()
        x, lengths = torch.zeros(T, B, 6), torch.full((B,), T) if index % 2 else None
        if training:
            module(x, lengths=lengths)[0].sum().backward()
        else:
            with torch.no_grad():
                (module if index % 3 else frozen)(x, lengths=lengths)
    grown = _resident() - before
    assert grown <= LIMIT, f"{grown / 2**20:.1f} MiB more after {CALLS} calls"
