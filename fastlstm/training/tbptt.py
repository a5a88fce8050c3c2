"""Truncated backpropagation through time: windows of long sequences, and the state between them.

Williams and Peng (1990) call it BPTT(k2; k1): every k1 steps, the loss of those k1 steps is
differentiated through the last k2 steps. The state at a window's first step is the one that the
window before computed, detached from its graph. Where a sequence begins, ``reset`` zeroes the
state.
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

from fastlstm.data.retries import read_with_retries
from fastlstm.data.sequences import LongSequence
from fastlstm.data.streams import Streams


class Window(NamedTuple):
    """T consecutive steps of B streams, time first.

    Args:
        input: (T, B, ...), the steps that the model reads.
        target: (T, B, ...), the target of each step.
        reset: (T, B) bool, true where a sequence begins; the state is zeroed before that step.
        fresh: number of the last steps whose loss counts. The steps before them counted in an
            earlier window, and are read again for gradients to flow through.
        advance: steps from this window's first step to the next window's first step.
        number: of the window, from 0 on; see :class:`fastlstm.data.Streams`.

    Example:
        >>> from fastlstm.training import Windows
        >>> window = next(iter(Windows([torch.arange(200).numpy()], batch_size=2, k1=8)))
        >>> window.input.shape, window.fresh
        (torch.Size([8, 2]), 8)
    """

    input: Tensor
    target: Tensor
    reset: Tensor
    fresh: int
    advance: int
    number: int


class StatefulModel(Protocol):
    """A model that :func:`fastlstm.training.window_loss` trains.

    :class:`fastlstm.ByteLSTM` is one.
    """

    def losses(
        self, input: Tensor, target: Tensor, state: Any, reset: Tensor
    ) -> tuple[Tensor, Any]:
        """Return the loss of every step, (T, B), and the state after the last step.

        ``state`` is what an earlier call returned, or None for a zero state. It may be tensors in
        tuples, lists and dicts. A run can resume with another number of processes if the rows are
        dimension 1 of these tensors, as in ``nn.LSTM``. ``input``, ``target`` and ``reset`` are as
        in :class:`Window`.
        """
        ...


def detach(state: Any) -> Any:
    """Return a state without its autograd graph."""
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, state)


def window_loss(model: StatefulModel, window: Window, state: Any) -> tuple[Tensor, Any]:
    """Return the mean loss of a window's fresh steps, and the state for the next window.

    Args:
        model: see :class:`fastlstm.training.tbptt.StatefulModel`.
        window: the steps.
        state: what this function returned for the window before; None for the first window.

    Returns:
        The loss, a scalar whose gradients flow through all steps of the window and no further; and
        the state, detached.

    Example:
        >>> import numpy, torch, fastlstm
        >>> text = numpy.frombuffer(b"the cat sat on the mat. " * 20, numpy.uint8)
        >>> windows = Windows([text], batch_size=2, k1=16, k2=32)
        >>> model = fastlstm.ByteLSTM(8)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> state = None
        >>> for number in range(len(windows)):
        ...     loss, state = window_loss(model, windows[number], state)
        ...     loss.backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """
    input, target, reset, fresh, advance, _ = window
    state = next_state = detach(state)
    losses = []
    if advance:
        first = slice(advance)
        some, state = model.losses(input[first], target[first], state, reset[first])
        losses.append(some)
        next_state = detach(state)
    if advance < len(input):  # k2 > k1: the next window begins inside this one
        rest = slice(advance, None)
        losses.append(model.losses(input[rest], target[rest], state, reset[rest])[0])
    return torch.cat(losses)[-fresh:].mean(), next_state


class Windows(Dataset[Window]):
    """The windows of long sequences for truncated backpropagation through time.

    ``windows[n]`` is window n. ``len(windows)`` windows make an epoch; higher numbers go on with
    the next epoch, in another order of the sequences. :class:`fastlstm.data.Streams` says how
    sequences are laid out.

    Args:
        sequences: arrays, or what :func:`fastlstm.data.open_sequences` returns; all steps have one
            dtype and shape.
        targets: one for each sequence, of the same length. Default (None): the target of a step is
            the next step of the sequence, so that a sequence's last step is a target only.
        batch_size: streams that this process reads side by side.
        k1: steps from window to window.
        k2: steps through which gradients flow back. Default (None): ``k1``.
        seed: of the order of the sequences in each epoch. Default: 0.
        shuffle: whether the order of the sequences is random. Default: True.
        rank, world_size: this process and the number of processes. Default: one process.

    Raises:
        ValueError: steps differ in dtype or shape; targets do not fit the sequences; an argument is
            out of range, or there are fewer steps than streams, as ``Streams`` says.

    Example:
        >>> import numpy
        >>> numbers = [numpy.arange(9), numpy.arange(100, 105)]
        >>> windows = Windows(numbers, batch_size=1, k1=4, k2=6, shuffle=False)
        >>> len(windows)
        3
        >>> windows[1].input[:, 0]  # k2 steps, of which the last k1 are new
        tensor([2, 3, 4, 5, 6, 7])
        >>> windows[2].input[:, 0], windows[2].target[:, 0], windows[2].fresh
        (tensor([  6,   7, 100, 101, 102, 103]), tensor([  7,   8, 101, 102, 103, 104]), 4)
        >>> windows[2].reset[:, 0].nonzero()  # where the second sequence begins
        tensor([[2]])
    """

    def __init__(
        self,
        sequences: Sequence[LongSequence],
        targets: Sequence[LongSequence] | None = None,
        *,
        batch_size: int,
        k1: int,
        k2: int | None = None,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        lengths = [len(sequence) for sequence in sequences]
        if targets is None:
            lengths = [max(0, length - 1) for length in lengths]
        else:
            _check_lengths(sequences, targets)
        self.sequences = sequences
        self.targets = targets
        self.streams = Streams(
            lengths,
            batch_size=batch_size,
            k1=k1,
            k2=k2,
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
        )
        kind, checksum = _first_steps(sequences, "sequences")
        self.kinds = (kind, kind)
        """Dtype and shape of a step, of the sequences and of the targets."""
        if targets is not None:
            target_kind, target_checksum = _first_steps(targets, "targets")
            self.kinds, checksum = (kind, target_kind), checksum ^ target_checksum
        self._checksum = checksum

    def __len__(self) -> int:
        return len(self.streams)

    def made_of(self) -> dict[str, int]:
        """Return what the contents of a window depend on, for a run to compare when it resumes.

        The checksum covers the sequences' lengths, first steps and, for files, names without their
        folder: a folder may be moved.
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

        def read(sequences: Sequence[LongSequence], more: int = 0) -> list[list[Any]]:
            """The steps of each row, in pieces, and after each piece ``more`` steps."""
            return [
                [_slice(sequences[i], i, start, stop + more) for i, start, stop in pieces]
                for pieces in plan.rows
            ]

        rows = read(self.sequences, 1 if self.targets is None else 0)
        if self.targets is None:  # input and target in one read
            targets = [[piece[1:] for piece in pieces] for pieces in rows]
            rows = [[piece[:-1] for piece in pieces] for pieces in rows]
        else:
            targets = read(self.targets)
        reset = torch.from_numpy(plan.reset)
        input, target = _batch(rows), _batch(targets)
        return Window(input, target, reset, plan.fresh, plan.advance, number)

    def loader(
        self, start: Callable[[], int] | None = None, num_workers: int = 0
    ) -> DataLoader[Window]:
        """Return a data loader that yields the windows in order, one at a time.

        Args:
            start: returns the number of the first window; called whenever iteration begins. The
                loader is then infinite. Default (None): the windows of epoch 0.
            num_workers: processes that read; 0: the training process reads. Default: 0.
        """
        numbers = range(len(self)) if start is None else _CountFrom(start)
        return DataLoader(self, batch_size=None, sampler=numbers, num_workers=num_workers)


def _slice(sequence: LongSequence, number: int, start: int, stop: int) -> Any:
    return read_with_retries(lambda: sequence[start:stop], _name(sequence, number))


def _batch(rows: list[list[Any]]) -> Tensor:
    """Join the pieces of each row in time, and put the rows side by side: (T, B, ...)."""
    first = np.asarray(rows[0][0])
    steps = sum(map(len, rows[0]))
    batch = np.empty((steps, len(rows), *first.shape[1:]), first.dtype)
    for b, pieces in enumerate(rows):
        np.concatenate(pieces, out=batch[:, b])
    return torch.from_numpy(batch)


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
    """Return the dtype and shape of all steps, and a checksum; see ``Windows.made_of``."""
    kind, first, checksum = None, "", 0
    for number, sequence in enumerate(sequences):
        name = f"{getattr(getattr(sequence, 'path', None), 'name', '')} {len(sequence)}"
        checksum = zlib.crc32(name.encode(), checksum)
        if len(sequence) == 0:
            continue
        # a copy, because a file reader may keep a decoder or rows of a table after reading
        reader = sequence if isinstance(sequence, (np.ndarray, Tensor)) else copy(sequence)
        step = np.asarray(_slice(reader, number, 0, 1))
        checksum = zlib.crc32(step.tobytes(), checksum)
        found = (step.dtype, step.shape[1:])
        if kind is None:
            kind, first = found, _name(sequence, number)
        if found != kind:
            raise ValueError(
                f"{argument}: expected steps of one dtype and shape, got {kind[0]} {kind[1]} in"
                f" {first} and {found[0]} {found[1]} in {_name(sequence, number)}"
            )
    return kind, checksum


def _name(sequence: LongSequence, number: int) -> str:
    path, name = getattr(sequence, "path", f"number {number}"), getattr(sequence, "name", "")
    return f"{path}: {name}" if name else str(path)


class _CountFrom(Sampler[int]):
    """Yield ``start()``, ``start()`` + 1 and so on without end."""

    def __init__(self, start: Callable[[], int]) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        number = self.start()
        while True:
            yield number
            number += 1
