// The module fastlstm._C: kernels for Python, tensors passed as addresses, sizes and strides.
//
// No torch header and no libtorch: one build serves every torch version. Nothing is checked here
// beyond what would crash the interpreter; fastlstm/functional.py does that once, for all backends.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "lstm.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm {
namespace {

using Address = uintptr_t;  // of a tensor's first element; 0 where the contract says null
using Strides = std::array<int64_t, 3>;

DType parse_dtype(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float64") return DType::float64;
  throw std::invalid_argument("dtype: expected float32 or float64, got " + name);
}

void check_num_threads(int num_threads) {
  if (num_threads < 1) {
    throw std::invalid_argument("num_threads: expected at least 1, got " +
                                std::to_string(num_threads));
  }
}

// One flag per group, from any sequence that Python has: list, tuple or bytes.
std::vector<uint8_t> parse_reverse(const py::sequence& reverse, int64_t G) {
  if (static_cast<int64_t>(reverse.size()) != G) {
    throw std::invalid_argument("reverse: expected " + std::to_string(G) + " flags, got " +
                                std::to_string(reverse.size()));
  }
  std::vector<uint8_t> flags;
  for (const py::handle flag : reverse) flags.push_back(PyObject_IsTrue(flag.ptr()) == 1);
  return flags;
}

const void* in(Address address) { return reinterpret_cast<const void*>(address); }
void* out(Address address) { return reinterpret_cast<void*>(address); }

void lstm_forward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                  const py::sequence& reverse, Address lengths, Address igates,
                  const Strides& igates_stride, Address weight_hh, int64_t weight_hh_stride,
                  Address weight_ch, int64_t weight_ch_stride, Address hx, Address cx, Address y,
                  Address hy, Address cy, Address reserve, Address workspace, int num_threads,
                  const std::string& isa) {
  check_num_threads(num_threads);
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmForward call{};
  call.shape = {
      parse_dtype(dtype), T, B, G, H, flags.data(), static_cast<const int64_t*>(in(lengths))};
  call.igates = in(igates);
  for (int i = 0; i < 3; ++i) call.igates_stride[i] = igates_stride[i];
  call.weight_hh = in(weight_hh);
  call.weight_hh_stride = weight_hh_stride;
  call.weight_ch = in(weight_ch);
  call.weight_ch_stride = weight_ch_stride;
  call.hx = in(hx);
  call.cx = in(cx);
  call.y = out(y);
  call.hy = out(hy);
  call.cy = out(cy);
  call.reserve = out(reserve);
  call.workspace = out(workspace);
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  kernels.forward(call, num_threads);
}

void lstm_backward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                   const py::sequence& reverse, Address lengths, Address dy,
                   const Strides& dy_stride, Address dhy, Address dcy, Address reserve,
                   Address weight_hh, int64_t weight_hh_stride, Address weight_ch,
                   int64_t weight_ch_stride, Address cx, Address digates, Address dweight_ch,
                   Address dhx, Address dcx, Address workspace, int num_threads,
                   const std::string& isa) {
  check_num_threads(num_threads);
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmBackward call{};
  call.shape = {
      parse_dtype(dtype), T, B, G, H, flags.data(), static_cast<const int64_t*>(in(lengths))};
  call.dy = in(dy);
  for (int i = 0; i < 3; ++i) call.dy_stride[i] = dy_stride[i];
  call.dhy = in(dhy);
  call.dcy = in(dcy);
  call.reserve = in(reserve);
  call.weight_hh = in(weight_hh);
  call.weight_hh_stride = weight_hh_stride;
  call.weight_ch = in(weight_ch);
  call.weight_ch_stride = weight_ch_stride;
  call.cx = in(cx);
  call.digates = out(digates);
  call.dweight_ch = out(dweight_ch);
  call.dhx = out(dhx);
  call.dcx = out(dcx);
  call.workspace = out(workspace);
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  kernels.backward(call, num_threads);
}

LstmShape sizes(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H) {
  return {parse_dtype(dtype), T, B, G, H, nullptr, nullptr};
}

size_t lstm_forward_workspace(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                              int num_threads, const std::string& isa) {
  check_num_threads(num_threads);
  return cpu::kernels(isa).forward_workspace(sizes(dtype, T, B, G, H), num_threads);
}

size_t lstm_backward_workspace(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                               int num_threads, const std::string& isa) {
  check_num_threads(num_threads);
  return cpu::kernels(isa).backward_workspace(sizes(dtype, T, B, G, H), num_threads);
}

}  // namespace
}  // namespace fastlstm

PYBIND11_MODULE(_C, module) {
  using namespace fastlstm;
  module.doc() = "Compiled kernels of fastlstm; the contract is csrc/lstm.h.";
  module.def("lstm_forward", &lstm_forward, py::kw_only(), "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a,
             "reverse"_a, "lengths"_a, "igates"_a, "igates_stride"_a, "weight_hh"_a,
             "weight_hh_stride"_a, "weight_ch"_a, "weight_ch_stride"_a, "hx"_a, "cx"_a, "y"_a,
             "hy"_a, "cy"_a, "reserve"_a, "workspace"_a, "num_threads"_a, "isa"_a = "auto");
  module.def("lstm_backward", &lstm_backward, py::kw_only(), "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a,
             "reverse"_a, "lengths"_a, "dy"_a, "dy_stride"_a, "dhy"_a, "dcy"_a, "reserve"_a,
             "weight_hh"_a, "weight_hh_stride"_a, "weight_ch"_a, "weight_ch_stride"_a, "cx"_a,
             "digates"_a, "dweight_ch"_a, "dhx"_a, "dcx"_a, "workspace"_a, "num_threads"_a,
             "isa"_a = "auto");
  module.def("lstm_forward_workspace", &lstm_forward_workspace, "dtype"_a, "T"_a, "B"_a, "G"_a,
             "H"_a, "num_threads"_a, "isa"_a = "auto", "Bytes of scratch that lstm_forward needs.");
  module.def("lstm_backward_workspace", &lstm_backward_workspace, "dtype"_a, "T"_a, "B"_a, "G"_a,
             "H"_a, "num_threads"_a, "isa"_a = "auto",
             "Bytes of scratch that lstm_backward needs.");
  module.def("isas", &cpu::isas, "The instruction sets available here, best first.");
}
