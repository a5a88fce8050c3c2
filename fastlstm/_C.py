"""What takes the place of the compiled module where fastlstm was installed without a C++ compiler.

Python prefers a compiled ``_C`` to this file. Without it calls run on PyTorch's own functions, or,
with peepholes, in plain torch, and there are neither streams nor kernels for GPUs but Triton's.
"""

import warnings
from types import SimpleNamespace
from typing import Any, NoReturn

WHY = (
    "fastlstm._C was not compiled when fastlstm was installed; install a C++ compiler"
    " (Debian, Ubuntu: apt install g++; conda: conda install cxx-compiler) and fastlstm again"
)
warnings.warn(
    f"{WHY}. Until then LSTMs run on PyTorch's own functions, and those with peepholes slowly.",
    stacklevel=2,
)

cuda = SimpleNamespace(built=False, reason=WHY, architectures=(), ptx=())


def isas() -> list[str]:
    return []


def set_direct(reading: str) -> bool:
    return reading == "off"


def _not_direct(*arguments: Any) -> None:
    return None


direct_lstm = direct_cell = direct_gradients = direct_forward_op = direct_backward_op = _not_direct


class PrepackedWeights:
    memory = None


class PrepackedMemory:
    pass


class Stream:
    def __new__(cls, **keywords: Any) -> NoReturn:
        raise RuntimeError(f"stream: {WHY}")
