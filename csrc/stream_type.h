// The Python type fastlstm._C.Stream: csrc/stream.h for torch's tensors.
#pragma once

#include <pybind11/pybind11.h>

namespace fastlstm {

void define_stream(pybind11::module_& module);

}  // namespace fastlstm
