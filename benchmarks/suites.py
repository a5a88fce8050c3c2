"""The suites of ``fastlstm bench run``: which cases they have, in which order."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import lstm, peers, shapes
from .contests import Contest, Effort
from .shapes import Shape


@dataclass(eq=False, frozen=True)
class Case:
    """A contest that has not been made yet.

    Args:
        suite, name: they and the name of a contender are the name of a benchmark.
        params: sizes, mode and dtype.
        ours: names of the contenders that become benchmarks.
        build: makes the contest.
    """

    suite: str
    name: str
    params: dict[str, Any]
    ours: tuple[str, ...]
    build: Callable[[Effort], Contest]

    @property
    def group(self) -> str:
        """The mode and the dtype, which group the benchmarks of pytest-benchmark's own tables."""
        return f"{self.params['mode']}-{self.params['dtype']}"


def case(
    suite: str, shape: Shape, how: tuple[str, str], ours: Sequence[str], build: Callable[[Effort], Contest]
) -> Case:
    """Return a case of a shape, and of a mode and a dtype."""
    mode, dtype = how
    params = {**shape.params(), "mode": mode, "dtype": dtype}
    return Case(suite, f"{params['shape']}-{mode}-{dtype}", params, tuple(ours), build)


def ways(options: argparse.Namespace, *modes: str) -> list[tuple[str, str]]:
    """Return all modes and dtypes that the options ask for, or those modes."""
    return list(itertools.product(options.mode or modes or ("inference", "training"), options.dtype))


def of_shapes(
    suite: str, found: Sequence[Shape], options: argparse.Namespace
) -> Iterator[Case]:
    """Yield cases of fastlstm.LSTM and its peers at some shapes."""
    for shape, (mode, dtype) in itertools.product(found, ways(options)):
        train = mode == "training"
        names = peers.chosen(options.peer, train, dtype, options.device)
        constant = not train and any(name in lstm.CONSTANT for name in names)
        backends = options.backend or (["auto", "frozen"] if constant else ["auto"])
        backends = [backend for backend in backends if not (train and backend == "frozen")]

        def build(
            effort: Effort,
            shape: Shape = shape,
            how: tuple[bool, str] = (train, dtype),
            names: list[str] = names,
            backends: list[str] = backends,
        ) -> Contest:
            pair = lstm.Pair(shape, *how, effort.device)
            made = {name: peers.PEERS[name].make(pair, effort.threads) for name in names}
            return lstm.contest(pair, backends, made)

        if backends:
            yield case(suite, shape, (mode, dtype), backends, build)


def _sweep(options: argparse.Namespace) -> Iterator[Case]:
    found = list(itertools.islice(shapes.draw(options.seed), options.count))
    if not options.peer:
        options = argparse.Namespace(**{**vars(options), "peer": ["nn.LSTM"]})
    return of_shapes("sweep", found, options)


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options of ``fastlstm bench run`` ask for.

    Raises:
        ValueError: a word of ``--shape`` or ``--grid`` is wrong.
    """
    found: list[Case] = []
    if options.shape:
        found += of_shapes("shape", [shapes.parse(text) for text in options.shape], options)
    if options.grid:
        found += of_shapes("grid", shapes.grid(options.grid), options)
    named = {
        "quick": lambda: of_shapes("quick", shapes.of_suite("quick"), options),
        "table": lambda: of_shapes("table", shapes.of_suite("row"), options),
        "shapes": lambda: of_shapes("shapes", shapes.of_suite("sizes"), options),
        "grid": lambda: of_shapes("grid", shapes.grid([]), options),
        "sweep": lambda: _sweep(options),
    }
    for suite in options.suite or ([] if found else ["quick"]):
        found += named[suite]()
    return found
