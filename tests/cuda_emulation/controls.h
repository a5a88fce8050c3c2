// What Python may set of the emulation.
#pragma once

#include <pybind11/pybind11.h>

namespace fastlstm::emulation {

// Adds set_schedule, set_fault, take_sites, take_limits, take_launches, count_copies and pretend to
// a module.
void bind_controls(pybind11::module_& module);

}  // namespace fastlstm::emulation
