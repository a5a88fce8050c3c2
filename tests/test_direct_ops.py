"""The ops' direct calls give what the general path gives, bit for bit, in new memory."""

import random

import pytest
import torch
from direct_calls import READINGS, assert_same

from fastlstm import _C

forward = torch.ops.fastlstm.lstm_sequence
backward = torch.ops.fastlstm.lstm_sequence_backward
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def _cases(dtype, seed):
    """The arguments of a random call, its gradients' flags, and gradients of its outputs."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def tensor(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)

    T, B, I, H = (chance.choice(sizes) for sizes in ([1, 2, 7], [1, 3, 8], [1, 4, 33], [1, 5, 40]))
    G, has_bias, has_peepholes = chance.choice([1, 2]), chance.random() < 0.7, chance.random() < 0.4

    def weights(is_there, *sizes):
        return [tensor(*sizes) / H**0.5 for _ in range(G * is_there)]

    inputs = [tensor(T, B, I), tensor(B, T, I).transpose(0, 1), tensor(T, B, 2 * I)[..., ::2]]
    biases = [weights(has_bias, 4 * H) for _ in "ih"]
    w_hh, w_ch = weights(True, 4 * H, H), weights(has_peepholes, 3 * H)
    hx = chance.choice([tensor(G, B, H), tensor(1, 1, 1).expand(G, B, H)])
    call = [chance.choice(inputs), weights(True, 4 * H, I), *biases, w_hh, w_ch, []]
    call += [hx, tensor(G, B, H), [False, True][:G], None, None, None]
    there = (True, True, has_bias, True, has_peepholes, False)
    needs = [is_there and chance.random() < 0.7 for is_there in there]
    dys = [tensor(T, B, G, H), tensor(B, T, G, H).transpose(0, 1), tensor(T, B, H, G).mT, None]
    grads = [chance.choice(dys), tensor(G, B, H), chance.choice([tensor(G, B, H), None]), None]
    return call, needs, grads


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_the_general_path(dtype, seed):
    call, needs, grads = _cases(dtype, seed)
    for train in (False, True):
        options = [train, False, 0, True, "cpu"]
        assert_same(forward, *call, *options)
        _C.set_direct("dlpack")
        outputs = _C.direct_forward_op(*call, *options)
        assert outputs is not None
    arguments = [*grads, outputs[0], outputs[4], *call, needs, 0, "cpu"]
    assert_same(backward, *arguments)
    _C.set_direct("dlpack")
    found = _C.direct_backward_op(*arguments)
    addresses = [t.data_ptr() for t in (*outputs, *found) if t.numel()]
    assert len(set(addresses)) == len(addresses)


CHANGES = {
    0: lambda x: x[0],
    1: lambda w: [w[0][:, 1:]],
    2: lambda b: [],
    4: lambda w: w * 2,
    7: lambda h: h.double(),
    8: lambda c: c[:, :, 1:],
    9: lambda flags: [True],
    10: lambda _: torch.tensor([1, 3]),
    12: lambda _: torch.ones(3, 2, dtype=torch.bool),
    14: lambda _: True,
    15: lambda _: 2,
    16: lambda _: False,
    17: lambda _: "reference",
}


@pytest.mark.parametrize("place", CHANGES)
def test_other_calls_take_the_general_path(place):
    T, B, I, H = 3, 2, 4, 5
    call = [torch.randn(T, B, I), [torch.randn(4 * H, I)], [torch.randn(4 * H)]]
    call += [[torch.randn(4 * H)], [torch.randn(4 * H, H)], [], [], *torch.randn(2, 1, B, H)]
    arguments = [*call, [False], None, None, None, True, False, 0, True, "cpu"]
    arguments[7:9] = torch.randn(1, B, H), torch.randn(1, B, H)
    assert _C.direct_forward_op(*arguments) is not None
    arguments[place] = CHANGES[place](arguments[place])
    assert _C.direct_forward_op(*arguments) is None
    assert_same(forward, *arguments, readings=READINGS[:1])
