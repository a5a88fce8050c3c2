"""Combinations of arguments in which every two values meet, in place of all combinations."""

import itertools

import pytest


def combinations(*values):
    """Some of ``itertools.product(*values)``, in its order, where every two values meet.

    Each next one has the most pairs of values of two lists that none before it has, so the number
    of combinations is about the product of the two longest lists. An error that depends on three
    values at once may be missed.
    """
    values = [list(those) for those in values]
    every = list(itertools.product(*(range(len(those)) for those in values)))
    pairs = {one: set(itertools.combinations(enumerate(one), 2)) for one in every}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(every, key=lambda one: len(pairs[one] & missing)))
        missing -= pairs[chosen[-1]]
    return [
        tuple(those[index] for those, index in zip(values, one, strict=True))
        for one in sorted(chosen)
    ]


def parametrize(arguments):
    """A mark that runs a test with :func:`combinations` of values.

    ``arguments`` maps names, as ``pytest.mark.parametrize`` takes them, to lists of values.
    """
    names = [name.split(", ") for name in arguments]
    rows, ids = [], []
    for one in combinations(*arguments.values()):
        rows.append(
            [v for value, of in zip(one, names, strict=True) for v in ([value], value)[len(of) > 1]]
        )
        ids.append("-".join(map(str, one)))
    return pytest.mark.parametrize(", ".join(arguments), rows, ids=ids)
