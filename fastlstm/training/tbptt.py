"""Truncated backpropagation through time: windows of long streams, and the state they hand on.

Williams and Peng (1990) call it BPTT(k2; k1): every k1 steps the loss of those steps is
differentiated through the last k2. The state of a window's first step comes from the window
before, without its graph; where a sequence begins, `reset` drops it.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset, Sampler

from fastlstm.data.sequences import LongSequence
from fastlstm.data.streams import Streams


class Window(NamedTuple):
    """Consecutive steps of B streams, time first.

    input: (T, B, ...).
    target: (T, B, ...): what belongs to each step.
    reset: (T, B) bool, true where a sequence begins: no state crosses into that step.
    fresh: the last of the T steps, whose loss counts: the others were fresh in a window before.
    advance: steps from this window's first to the next one's.
    number: of the window, from 0 on; see :class:`fastlstm.data.Streams`.
    """

    input: Tensor
    target: Tensor
    reset: Tensor
    fresh: int
    advance: int
    number: int


class StatefulModel(Protocol):
    """What :func:`window_loss` asks of a model: a module with this method."""

    def losses(
        self, input: Tensor, target: Tensor, state: Any, reset: Tensor
    ) -> tuple[Tensor, Any]:
        """((T, B) the loss of every step, the state after the last step).

        `state` is None for a fresh start, or what an earlier call returned: tensors, in tuples,
        lists or dicts as the model likes.
        """
        ...


def detach(state: Any) -> Any:
    """The same state without its graph: gradients end here."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, state)


def window_loss(model: StatefulModel, window: Window, state: Any) -> tuple[Tensor, Any]:
    """The mean loss of a window's fresh steps, and the state for the next window.

    Args:
        model: see :class:`StatefulModel`.
        window: the steps.
        state: what the window before returned; None at the very first.

    Returns:
        A scalar whose gradients go back through all steps of the window and no further, and the
        detached state.

    Example:
        >>> state = None
        >>> for window in loader:  # doctest: +SKIP
        ...     loss, state = window_loss(model, window, state)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """
    input, target, reset, fresh, advance, _ = window
    state = handed_on = detach(state)
    losses = []
    if advance:
        first = slice(advance)
        some, state = model.losses(input[first], target[first], state, reset[first])
        losses.append(some)
        handed_on = detach(state)
    if advance < len(input):  # if k2 > k1 the next window begins inside of this one
        rest = slice(advance, None)
        losses.append(model.losses(input[rest], target[rest], state, reset[rest])[0])
    return torch.cat(losses)[-fresh:].mean(), handed_on


class Windows(Dataset[Window]):
    """The windows of :class:`fastlstm.data.Streams`, with what they read.

    Args:
        sequences: see :func:`fastlstm.data.open_sequences`; all of one dtype and step shape.
        targets: one for each of them, as long. Default: the next step of the sequence itself, so
            that its last step is a target only.
        options: of :class:`fastlstm.data.Streams`: batch_size, k1, k2, seed, shuffle, rank,
            world_size.

    `windows[n]` is window n; `len(windows)` of them make an epoch, but there is no last one.

    `windows.kinds` are the dtype and shape of a step, of the sequences and of the targets.

    Raises:
        ValueError: sequences of different dtypes or step shapes, targets that do not fit, and what
            `Streams` raises.
    """

    def __init__(
        self,
        sequences: Sequence[LongSequence],
        targets: Sequence[LongSequence] | None = None,
        **options: Any,
    ) -> None:
        lengths = [len(sequence) for sequence in sequences]
        if targets is None:
            lengths = [max(0, length - 1) for length in lengths]
        else:
            _check_lengths(sequences, targets)
        self.sequences = sequences
        self.targets = targets
        self.streams = Streams(lengths, **options)
        kind, checksum = _first_steps(sequences, "sequences")
        self.kinds = (kind, kind)
        if targets is not None:
            target_kind, target_checksum = _first_steps(targets, "targets")
            self.kinds, checksum = (kind, target_kind), checksum ^ target_checksum
        self._checksum = checksum

    def __len__(self) -> int:
        return len(self.streams)

    def made_of(self) -> dict[str, int]:
        """What the place of a window's rows depends on, for a run to compare when it resumes.

        The sequences are told by their lengths, their first steps and, of files, their names: a
        folder may lie elsewhere.
        """
        streams = self.streams
        return {
            "batch_size": streams.batch_size,
            "k1": streams.k1,
            "k2": streams.k2,
            "seed": streams.seed,
            "shuffle": streams.shuffle,
            "number of sequences": len(self.sequences),
            "number of steps in them": int(streams.lengths.sum()),
            "checksum of the sequences": self._checksum,
        }

    def __getitem__(self, number: int) -> Window:
        plan = self.streams.window(number)
        targets, ahead = (self.sequences, 1) if self.targets is None else (self.targets, 0)

        def read(sequences: Sequence[LongSequence], ahead: int) -> Tensor:
            rows = [
                np.concatenate([sequences[i][a + ahead : b + ahead] for i, a, b in pieces])
                for pieces in plan.rows
            ]
            return torch.from_numpy(np.stack(rows, 1))

        reset = torch.from_numpy(plan.reset)
        input, target = read(self.sequences, 0), read(targets, ahead)
        return Window(input, target, reset, plan.fresh, plan.advance, number)

    def loader(
        self, start: Callable[[], int] | None = None, num_workers: int = 0
    ) -> DataLoader[Window]:
        """Its windows in order, one a batch.

        Args:
            start: asked for the first window's number whenever iteration begins; then there is no
                end. Default: the windows of epoch 0.
            num_workers: processes that read. Default: 0, the one that trains.
        """
        numbers = range(len(self)) if start is None else _From(start)
        return DataLoader(self, batch_size=None, sampler=numbers, num_workers=num_workers)


def _check_lengths(sequences: Sequence[LongSequence], targets: Sequence[LongSequence]) -> None:
    expected = "targets: expected one for each sequence, and as long as it"
    if len(sequences) != len(targets):
        raise ValueError(f"{expected}, got {len(targets)} for {len(sequences)}")
    for number, (sequence, target) in enumerate(zip(sequences, targets, strict=True)):
        if len(sequence) != len(target):
            raise ValueError(
                f"{expected}, got {len(target)} steps in {_name(target, number)} for"
                f" {len(sequence)} in {_name(sequence, number)}"
            )


def _first_steps(sequences: Sequence[LongSequence], argument: str) -> tuple[Any, int]:
    """The dtype and shape of all steps, and a checksum that tells these sequences from others."""
    kind, first, checksum = None, "", 0
    for number, sequence in enumerate(sequences):
        told = f"{getattr(getattr(sequence, 'path', None), 'name', '')} {len(sequence)}"
        checksum = zlib.crc32(told.encode(), checksum)
        if len(sequence) == 0:
            continue
        # of a copy, for what a file reader keeps in order to read on: a decoder, rows of a table
        reader = sequence if isinstance(sequence, (np.ndarray, Tensor)) else copy(sequence)
        step = np.asarray(reader[:1])
        checksum = zlib.crc32(step.tobytes(), checksum)
        its = (step.dtype, step.shape[1:])
        if kind is None:
            kind, first = its, _name(sequence, number)
        if its != kind:
            raise ValueError(
                f"{argument}: expected steps of one dtype and shape, got {kind[0]} {kind[1]} in"
                f" {first} and {its[0]} {its[1]} in {_name(sequence, number)}"
            )
    return kind, checksum


def _name(sequence: LongSequence, number: int) -> str:
    return str(getattr(sequence, "path", f"number {number}"))


class _From(Sampler[int]):
    """Numbers without end, from where `start()` says."""

    def __init__(self, start: Callable[[], int]) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        number = self.start()
        while True:
            yield number
            number += 1
