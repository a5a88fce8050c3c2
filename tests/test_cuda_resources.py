"""The compiled CUDA kernels keep their values in registers, for every architecture."""

import pytest

from benchmarks.cuda_resources import Kernel, parse, read, tool
from fastlstm import _C


@pytest.mark.skipif(not _C.cuda.built, reason=f"there are no CUDA kernels: {_C.cuda.reason}")
@pytest.mark.skipif(tool() is None, reason="there is no cuobjdump")
def test_no_kernel_spills():
    kernels = read(_C.__file__)
    assert {kernel.architecture for kernel in kernels} == set(_C.cuda.architectures)
    assert [kernel for kernel in kernels if kernel.stack] == []


def test_what_cuobjdump_prints_is_understood():
    usage = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z5spillPfi:
  REG:64 STACK:40 SHARED:0 LOCAL:0 CONSTANT[0]:364 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function small:
  REG:10 STACK:0 SHARED:128 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_100
Resource usage:
 Function small:
  REG:8 STACK:0 SHARED:1152 LOCAL:0 CONSTANT[0]:904 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert parse(usage) == [
        Kernel("_Z5spillPfi", 80, 64, 40, 0),
        Kernel("small", 80, 10, 0, 128),
        Kernel("small", 100, 8, 0, 1152),
    ]
