"""Triton kernels of the LSTM; the folder ``kernels/`` is installed as ``fastlstm.kernels``.

``lstm_forward`` and ``lstm_backward`` run a whole sequence in one launch, for H that fits on one
multiprocessor; ``lstm_cell`` is one step without its matrix product, for any H. ``gates`` and
``tiles`` are what they share. The modules import triton, this one does not.

None of them has run on a GPU yet: they are tested under Triton's interpreter, and compiled for
GPUs that were not there (``python -m benchmarks.triton_resources``).
"""

import os

# What triton itself looks at when a kernel is defined; then kernels run on CPU tensors, slowly.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
