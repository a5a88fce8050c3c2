#include "controls.h"

#include <pybind11/stl.h>

#include "device.h"
#include "emulator.h"
#include "fault.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm::emulation {

void bind_controls(py::module_& module) {
  module.def("set_schedule", &set_schedule, "seed"_a, "switches"_a = 1'000'000'000,
             "The seed of the launches to come, and how many switches of threads end one.");
  module.def("set_fault", &set_fault, "name"_a, "site"_a = "",
             "Plants a fault, by a name of fault.h, at one call site or at all; \"none\" ends it.");
  module.def("take_sites", &take_sites, "name"_a,
             "The call sites of what a fault is named after, that were reached since last asked.");
  module.def("take_limits", &take_limits,
             "The limits of dynamic shared memory that were set for kernels since last asked.");
  module.def("take_launches", &take_launches,
             "The blocks, and the threads of each, of the launches since last asked.");
  module.def("count_copies", &count_copies, "address"_a, "bytes"_a,
             "Counts asynchronous copies from this memory from now on; returns the count so far.");
  module.def(
      "pretend",
      [](int major, int minor, int multiprocessors, int shared_memory) {
        pretended_device = {major, minor, multiprocessors, shared_memory};
      },
      "major"_a = 9, "minor"_a = 0, "multiprocessors"_a = 132, "shared_memory"_a = 232448,
      "The device that the CUDA runtime tells of: an H100 by default.");
}

}  // namespace fastlstm::emulation
