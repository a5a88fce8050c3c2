// The functions of fastlstm._C that are called by modules themselves.
#pragma once

#include <pybind11/pybind11.h>

namespace fastlstm::direct {

void bind(pybind11::module_& module);

}  // namespace fastlstm::direct
