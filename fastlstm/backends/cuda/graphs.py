"""CUDA graphs of all steps of a pass, where launches one by one would take longer than the GPU.

A graph has memory of its own, so the tensors of a call are copied into it and out of it. It is
captured when a call of the same shapes comes for the second time, outside any capture of the
user's, and a few graphs are kept: the least recently used one is dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

Body = Callable[[list[Tensor]], list[Tensor]]
"""Launches all steps on these inputs, and returns its outputs."""


class Graph(Protocol):
    """A graph of launches."""

    def capture(self, body: Callable[[], list[Tensor]]) -> list[Tensor]:
        """Capture what ``body`` launches; returns its outputs, which every replay writes."""

    def replay(self) -> None:
        """Launch all of it."""

    def close(self) -> None:
        """Wait until the last replay is over."""


class CudaGraph:
    """A graph by torch, captured on a stream of its own. Capturing does not wait for the GPU."""

    def __init__(self) -> None:
        self._graph, self._stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()

    def capture(self, body: Callable[[], list[Tensor]]) -> list[Tensor]:
        side = torch.cuda.Stream()
        side.wait_stream(self._stream)
        with torch.cuda.stream(side):
            body()  # cuBLAS takes its workspace, and modules are loaded, outside of the capture
            # Other threads may allocate meanwhile.
            self._graph.capture_begin(capture_error_mode="thread_local")
            try:
                outputs = body()
            finally:
                self._graph.capture_end()
        self._stream.wait_stream(side)
        return outputs

    def replay(self) -> None:
        self._graph.replay()

    def close(self) -> None:
        self._stream.synchronize()


class _Kept(NamedTuple):
    graph: Graph
    inputs: list[Tensor]
    outputs: list[Tensor]


class Graphs:
    """Graphs by the shapes they are for.

    Args:
        new_graph: makes a graph.
        most: how many graphs, and shapes seen once, are kept.
    """

    def __init__(self, new_graph: Callable[[], Graph] = CudaGraph, most: int = 8) -> None:
        self._new_graph, self._most = new_graph, most
        # None where the shapes came once; False where they cannot be captured.
        self._kept: OrderedDict[Hashable, _Kept | bool | None] = OrderedDict()
        self._lock = Lock()

    def run(
        self,
        key: Hashable,
        body: Body,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor] | None = None,
    ) -> list[Tensor] | None:
        """Replay the graph of ``key`` on ``inputs``; captures it if the key comes for the 2nd time.

        Args:
            key: what the launches depend on beside shapes and dtypes: options, stream, device.
            body: see :data:`Body`. It is called for a capture only.
            inputs: tensors that are copied into the graph's memory.
            outputs: tensors that are written. Default: new ones.

        Returns:
            The outputs, or None if there is no graph: then the caller launches step by step.
        """
        key = (key, tuple((tuple(x.shape), x.dtype) for x in inputs))
        with self._lock, torch.no_grad():
            is_new = key not in self._kept
            kept = self._kept.pop(key, None)
            if not is_new and kept is None:
                kept = self._capture(body, inputs)
            self._kept[key] = kept
            while len(self._kept) > self._most:
                _, dropped = self._kept.popitem(last=False)
                if isinstance(dropped, _Kept):
                    dropped.graph.close()
            if not isinstance(kept, _Kept):
                return None
            for own, given in zip(kept.inputs, inputs, strict=True):
                own.copy_(given)
            kept.graph.replay()
            if outputs is None:
                return [own.clone() for own in kept.outputs]
            for given, own in zip(outputs, kept.outputs, strict=True):
                given.copy_(own)
            return list(outputs)

    def _capture(self, body: Body, inputs: Sequence[Tensor]) -> _Kept | bool:
        # Tensors of inference mode could not be written outside of it later.
        with torch.inference_mode(False), torch.no_grad():
            own = [x.clone(memory_format=torch.contiguous_format) for x in inputs]
            try:
                graph = self._new_graph()
                return _Kept(graph, own, graph.capture(lambda: body(own)))
            except RuntimeError:  # such as a stream that another library uses meanwhile
                return False


def flatten(value: Any) -> tuple[list[Tensor], Callable[[list[Tensor]], Any], Hashable]:
    """The tensors in nested tuples and lists, what puts others in their places, and the rest."""
    tensors: list[Tensor] = []

    def outline(value: Any) -> Any:
        if isinstance(value, Tensor):
            tensors.append(value)
            return Tensor
        if isinstance(value, (tuple, list)):
            return tuple(outline(item) for item in value)
        return value

    def fill(value: Any, given: Any) -> Any:
        if isinstance(value, Tensor):
            return next(given)
        if isinstance(value, (tuple, list)):
            items = [fill(item, given) for item in value]
            return type(value)._make(items) if hasattr(value, "_make") else type(value)(items)
        return value

    rest = outline(value)
    return tensors, lambda given: fill(value, iter(given)), rest
