"""The backends, one module or folder each, fastest first in :data:`BACKENDS`.

Every backend has ``why_not(problem)``, which returns None, or the reason why it cannot run a call.

- A fused backend (``cpu``, ``cuda``, ``triton``) has ``forward(call, wanted) -> Results`` and
  ``backward(call, saved, grads, needs) -> Gradients`` for one call of the sequence op. The
  gradients of weights may be wider than the call: autograd and the op round them. It may have
  ``why_slower(problem)``, and ``why_not_stacked``, ``forward_stacked`` and ``backward_stacked`` to
  run all layers of an LSTM in one call. ``CHECKPOINTS`` is true if its backward pass works from
  the state before every k-th step.
- ``reference`` has ``forward`` only: differentiable torch code, the specification of the others.
- ``torch`` has ``forward_layers(layers)``: PyTorch's own LSTM, which runs all layers in one call.
- ``onnx`` computes nothing: its ``forward`` is what an ONNX export records.
"""

from types import ModuleType

from fastlstm.backends import cpu, cuda, onnx, reference, torch, triton

BACKENDS: tuple[ModuleType, ...] = (cpu, torch, cuda, triton, reference)

__all__ = ["BACKENDS", "cpu", "cuda", "onnx", "reference", "torch", "triton"]
