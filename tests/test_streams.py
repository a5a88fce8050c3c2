"""Parallel streams: every step once an epoch, in order, with a reset where a sequence begins."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlstm.data import Streams


def steps_of(plan, row):
    """The (sequence, step) pairs that a row of a window reads."""
    return [(i, t) for i, start, stop in plan.rows[row] for t in range(start, stop)]


def epoch_of(streams, number=0):
    n = len(streams)
    return [streams.window(number * n + place) for place in range(n)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(lambda x: sum(x) >= 6),
    batch_size=st.integers(1, 3),
    world_size=st.integers(1, 2),
    k1=st.integers(1, 9),
    more=st.integers(0, 9),
    epoch=st.integers(0, 2),
)
def test_fresh_steps_are_every_step_once(lengths, batch_size, world_size, k1, more, epoch):
    read = []
    for rank in range(world_size):
        options = {"batch_size": batch_size, "k1": k1, "k2": k1 + more, "seed": 3}
        streams = Streams(lengths, rank=rank, world_size=world_size, **options)
        plans = epoch_of(streams, epoch)
        for row in range(batch_size):
            fresh = [s for plan in plans for s in steps_of(plan, row)[-plan.fresh :]]
            assert len(fresh) == streams.steps
            read += fresh
            for place, plan in enumerate(plans):
                steps = steps_of(plan, row)
                assert len(steps) == len(plan.reset) <= k1 + more
                began = [t == 0 for _, t in steps]
                began[0] |= place == 0 or (place * k1 + plan.fresh) == len(steps)
                assert plan.reset[:, row].tolist() == began
                if place + 1 < len(plans):  # the next window begins where this one says
                    assert (
                        steps[plan.advance :]
                        == steps_of(plans[place + 1], row)[: len(steps) - plan.advance]
                    )
    assert len(set(read)) == len(read)
    assert sum(lengths) - len(read) < batch_size * world_size


def test_windows_reach_back_k2_steps():
    streams = Streams([100], batch_size=1, k1=3, k2=8, shuffle=False)
    starts = [streams.window(n).rows[0][0].start for n in range(5)]
    stops = [streams.window(n).rows[0][-1].stop for n in range(5)]
    assert starts == [0, 0, 1, 4, 7] and stops == [3, 6, 9, 12, 15]
    assert [streams.window(n).fresh for n in range(5)] == [3] * 5
    assert [streams.window(n).advance for n in range(5)] == [0, 1, 3, 3, 3]


def test_an_epoch_ends_with_the_steps_that_are_left():
    streams = Streams([10], batch_size=1, k1=4, shuffle=False)
    assert len(streams) == 3
    last, next_epoch = streams.window(2), streams.window(3)
    assert last.rows == [[(0, 8, 10)]] and last.fresh == last.advance == 2
    assert next_epoch.rows == [[(0, 0, 4)]] and next_epoch.reset[0, 0]


def test_each_epoch_has_an_order_of_its_own():
    def order(epoch, seed=0, shuffle=True):
        streams = Streams([1] * 50, batch_size=1, k1=50, seed=seed, shuffle=shuffle)
        return [sequence for sequence, _ in steps_of(streams.window(epoch), 0)]

    assert sorted(order(0)) == order(0, shuffle=False) == list(range(50))
    assert order(0) == order(0) != order(1) != order(0, seed=1)


def test_processes_share_out_the_rows_of_one():
    lengths, options = [7, 5, 20, 1], {"k1": 3, "seed": 5}
    alone = Streams(lengths, batch_size=4, **options)
    shares = [Streams(lengths, batch_size=2, rank=r, world_size=2, **options) for r in range(2)]
    for number in range(2 * len(alone)):
        plans = [share.window(number) for share in shares]
        assert alone.window(number).rows == plans[0].rows + plans[1].rows
        reset = np.concatenate([plan.reset for plan in plans], 1)
        np.testing.assert_array_equal(alone.window(number).reset, reset)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"k1": 0}, "k1: expected at least 1, got 0"),
        ({"k1": 4, "k2": 3}, "k2: expected at least k1=4, got 3"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"rank": 2, "world_size": 2}, r"rank: expected 0 \.\. 1, got 2"),
        ({"batch_size": 11}, "lengths: expected at least 11 steps in all, .* got 10"),
    ],
)
def test_arguments_out_of_range(wrong, says):
    with pytest.raises(ValueError, match=says):
        Streams([4, 6], **{"batch_size": 1, "k1": 2, **wrong})
    with pytest.raises(IndexError, match="number: expected at least 0"):
        Streams([4], batch_size=1, k1=2).window(-1)
