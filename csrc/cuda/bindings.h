// The functions of kernels.h for Python, tensors passed as addresses.
#pragma once

#include <pybind11/pybind11.h>

namespace fastlstm {

// Adds them to a module: fastlstm._C.cuda, or that of the tests' emulation.
void bind_cuda(pybind11::module_& module);

}  // namespace fastlstm
