// The module emulation_harness: kernels that the emulation itself is tested with.
#include "controls.h"
#include "mistakes.h"
#include "numbers.h"
#include "recurrence.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm::harness {
namespace {

// Arrays come as addresses.
std::string recurrence(int T, uintptr_t weight, uintptr_t x, uintptr_t h, uintptr_t counter,
                       bool cooperative) {
  Recurrence call{};
  call.T = T;
  call.weight = reinterpret_cast<const __nv_bfloat16*>(weight);
  call.x = reinterpret_cast<const float*>(x);
  call.h = reinterpret_cast<__nv_bfloat16*>(h);
  call.counter = reinterpret_cast<unsigned*>(counter);
  call.cooperative = cooperative;
  return cudaGetErrorName(run(call));
}

}  // namespace
}  // namespace fastlstm::harness

PYBIND11_MODULE(emulation_harness, module) {
  using namespace fastlstm;
  emulation::bind_controls(module);
  module.def("recurrence", &harness::recurrence, "T"_a, "weight"_a, "x"_a, "h"_a, "counter"_a,
             "cooperative"_a = true);
  module.def("round_trip", &harness::round_trip, "format"_a, "from_"_a, "to"_a, "count"_a);
  module.def("product", &harness::product, "format"_a, "a"_a, "b"_a, "d"_a);
  module.def("warp_sum", &harness::warp_sum, "numbers"_a);
  module.def("mistake", &harness::mistake, "name"_a, "Runs a kernel that makes one mistake.");
}
