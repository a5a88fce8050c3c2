"""One OpenMP runtime in the process: torch's, whose threads the kernels use too."""

import ctypes


def share() -> None:
    """Check that the functions of GNU's OpenMP runtime can be found by any library of the process.

    The compiled module calls them and names no library that has them. torch loads one for the whole
    process, under a name that depends on its version: a second runtime would start threads of its
    own. Where torch brings none, that of the system is loaded.

    Raises:
        ImportError: there is none.
    """
    try:
        if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
            return
    except TypeError:  # Windows
        return
    try:
        ctypes.CDLL("libgomp.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(
            "fastlstm needs GNU's OpenMP runtime: this torch brings none, and there is no"
            " libgomp.so.1; install it (Debian, Ubuntu: apt install libgomp1; conda: conda install"
            " libgomp)"
        ) from error


share()
