"""The backends, one module each.

Every module has ``supports(problem)``, which returns None or the reason why it cannot run it.
A fused backend (``cpu``, ``cuda``, ``triton``) has ``forward`` and ``backward`` for the sequence
op; ``reference`` is differentiable torch code; ``torch`` takes whole layers. ``onnx`` computes
nothing: it is what an ONNX export records.
"""

from fastlstm.backends import cpu, cuda, onnx, reference, torch, triton

__all__ = ["cpu", "cuda", "onnx", "reference", "torch", "triton"]
