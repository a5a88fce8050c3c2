"""Triton kernels of the LSTM; the folder ``kernels/`` is installed as ``fastlstm.kernels``.

``lstm_forward`` and ``lstm_backward`` run a whole sequence in one launch, for H that fits on one
multiprocessor; ``lstm_cell`` runs one step without its matrix product, for any H, and
``normalized_forward`` and ``normalized_backward`` do so with layer norm. ``gates``, ``tiles`` and
``norms`` have the functions that they share. These modules import triton; this one does not.

None of them has run on a GPU yet. They are tested under Triton's interpreter, and compiled for
several GPUs (``python -m benchmarks.triton_resources``).
"""

import os

# Triton reads this variable when a kernel is defined. Kernels then run on CPU tensors, slowly.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
