"""The suites of ``fastlstm bench run``: which cases they have, in which order."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence

from . import busy, cells, composite, long, lstm, packed, peers, programs, shapes, variants
from . import options as of_cells
from .cases import Case, case, ways
from .contests import Contest, Effort
from .shapes import Shape


def of_shapes(suite: str, found: Sequence[Shape], options: argparse.Namespace) -> Iterator[Case]:
    """Yield cases of fastlstm.LSTM and its peers at some shapes."""
    for shape, way in itertools.product(found, ways(options)):
        train, dtype = way["mode"] == "training", way["dtype"]
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
            yield case(suite, {**shape.params(), **way}, backends, build)


def _beside_torch(
    suite: str, found: Sequence[Shape], options: argparse.Namespace
) -> Iterator[Case]:
    """Yield cases whose peer is nn.LSTM unless another one is asked for: there are many shapes."""
    peer = options.peer or ["nn.LSTM"]
    return of_shapes(suite, found, argparse.Namespace(**{**vars(options), "peer": peer}))


def cases(options: argparse.Namespace) -> list[Case]:
    """Return the cases that the options of ``fastlstm bench run`` ask for.

    Raises:
        ValueError: a word of ``--shape`` or ``--grid`` is wrong.
    """
    found: list[Case] = []
    own = {
        "cell",
        "variants",
        "options",
        "packed",
        "threads",
        "busy",
        "long",
    }  # they take --shape themselves
    if options.shape and not own & set(options.suite or ()):
        found += of_shapes("shape", [shapes.parse(text) for text in options.shape], options)
    if options.grid:
        found += _beside_torch("grid", shapes.grid(options.grid), options)
    random = list(itertools.islice(shapes.draw(options.seed), options.count))
    named = {
        "quick": lambda: of_shapes("quick", shapes.of_suite("quick"), options),
        "table": lambda: of_shapes("table", shapes.of_suite("row"), options),
        "shapes": lambda: of_shapes("shapes", shapes.of_suite("sizes"), options),
        "grid": lambda: _beside_torch("grid", shapes.grid([]), options),
        "sweep": lambda: _beside_torch("sweep", random, options),
        "cell": lambda: cells.cases(options),
        "programs": lambda: programs.cases(options),
        "variants": lambda: variants.cases(options),
        "options": lambda: of_cells.cases(options),
        "packed": lambda: packed.cases(options),
        "threads": lambda: busy.threads(options),
        "busy": lambda: busy.cases(options),
        "long": lambda: long.cases(options),
        "model": lambda: composite.cases(options),
    }
    for suite in options.suite or ([] if found else ["quick"]):
        found += named[suite]()
    return found
