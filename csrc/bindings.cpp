// The module fastlstm._C: kernels for Python, tensors passed as addresses, sizes and strides.
//
// No torch header and no libtorch: one build serves every torch version. Nothing is checked here
// beyond what would crash the interpreter; the functions of Python do that once, for all backends.
#include <stdexcept>
#include <string>
#include <vector>

#include "arguments.h"
#include "cpu/kernels.h"
#ifdef FASTLSTM_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm {
namespace {

struct alignas(64) CacheLine {
  char bytes[64];
};

// Numbers that a kernel of the CPU multiplies.
DType parse_cpu_dtype(const std::string& name) {
  const DType dtype = parse_dtype(name);
  if (dtype != DType::float16) return dtype;
  throw std::invalid_argument("dtype: expected float32, float64 or bfloat16, got " + name);
}

void check_num_threads(int num_threads) {
  if (num_threads < 1) {
    throw std::invalid_argument("num_threads: expected at least 1, got " +
                                std::to_string(num_threads));
  }
}

LstmShape sizes(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H, int64_t I,
                int64_t P, int64_t checkpoint_every = 0) {
  LstmShape shape{};
  shape.dtype = parse_cpu_dtype(dtype);
  shape.T = T, shape.B = B, shape.G = G, shape.H = H, shape.I = I, shape.P = P;
  shape.checkpoint_every = checkpoint_every;
  return shape;
}

void lstm_forward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H, int64_t I,
                  int64_t P, const py::sequence& reverse, Address lengths, Address by_length,
                  Address first_row, Address reset, Address input, const Strides& input_stride,
                  const Weight& weight_ih, const Weight& bias_ih, const Weight& bias_hh,
                  const Weight& weight_hh, const Weight& weight_ch, const Weight& weight_hr,
                  Address hx, Address cx, Address y, Address hy, Address cy, Address cells,
                  int64_t checkpoint_every, Address reserve, Address states, Address packed,
                  bool is_packed, Address workspace, int num_threads, const std::string& isa) {
  check_num_threads(num_threads);
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmForward call{};
  call.shape = sizes(dtype, T, B, G, H, I, P, checkpoint_every);
  call.shape.reverse = flags.data();
  call.shape.lengths = array<int64_t>(lengths);
  call.shape.by_length = array<int64_t>(by_length);
  call.shape.first_row = array<int64_t>(first_row);
  call.shape.reset = array<uint8_t>(reset);
  call.input = in(input);
  for (int i = 0; i < 3; ++i) call.input_stride[i] = input_stride[i];
  call.weight_ih = weight(weight_ih);
  call.bias_ih = weight(bias_ih);
  call.bias_hh = weight(bias_hh);
  call.weight_hh = weight(weight_hh);
  call.weight_ch = weight(weight_ch);
  call.weight_hr = weight(weight_hr);
  call.hx = in(hx);
  call.cx = in(cx);
  call.y = out(y);
  call.hy = out(hy);
  call.cy = out(cy);
  call.cells = out(cells);
  call.reserve = out(reserve);
  call.states = out(states);
  call.packed = out(packed);
  call.is_packed = is_packed;
  call.workspace = out(workspace);
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  kernels.forward(call, num_threads);
}

void lstm_backward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H, int64_t I,
                   int64_t P, const py::sequence& reverse, Address lengths, Address by_length,
                   Address first_row, Address reset, Address dy, const Strides& dy_stride,
                   Address dhy, Address dcy, Address dcells, int64_t checkpoint_every,
                   Address reserve, Address states, Address y, Address input,
                   const Strides& input_stride, const Weight& weight_ih, const Weight& bias_ih,
                   const Weight& bias_hh, const Weight& weight_hh, const Weight& weight_ch,
                   const Weight& weight_hr, Address hx, Address cx, Address dinput,
                   const Strides& dinput_stride, Address dweight_ih, Address dbias,
                   Address dweight_hh, Address dweight_ch, Address dweight_hr, Address dhx,
                   Address dcx, Address workspace, int num_threads, const std::string& isa) {
  check_num_threads(num_threads);
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmBackward call{};
  call.shape = sizes(dtype, T, B, G, H, I, P, checkpoint_every);
  call.shape.reverse = flags.data();
  call.shape.lengths = array<int64_t>(lengths);
  call.shape.by_length = array<int64_t>(by_length);
  call.shape.first_row = array<int64_t>(first_row);
  call.shape.reset = array<uint8_t>(reset);
  call.dy = in(dy);
  call.dhy = in(dhy);
  call.dcy = in(dcy);
  call.dcells = in(dcells);
  call.reserve = in(reserve);
  call.states = in(states);
  call.y = in(y);
  call.input = in(input);
  for (int i = 0; i < 3; ++i) {
    call.dy_stride[i] = dy_stride[i];
    call.input_stride[i] = input_stride[i];
    call.dinput_stride[i] = dinput_stride[i];
  }
  call.weight_ih = weight(weight_ih);
  call.bias_ih = weight(bias_ih);
  call.bias_hh = weight(bias_hh);
  call.weight_hh = weight(weight_hh);
  call.weight_ch = weight(weight_ch);
  call.weight_hr = weight(weight_hr);
  call.hx = in(hx);
  call.cx = in(cx);
  call.dinput = out(dinput);
  call.dweight_ih = out(dweight_ih);
  call.dbias = out(dbias);
  call.dweight_hh = out(dweight_hh);
  call.dweight_ch = out(dweight_ch);
  call.dweight_hr = out(dweight_hr);
  call.dhx = out(dhx);
  call.dcx = out(dcx);
  call.workspace = out(workspace);
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  kernels.backward(call, num_threads);
}

bool lstm_forward_streams(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                          int64_t I, int64_t P, const std::string& isa) {
  return cpu::kernels(isa).forward_streams(sizes(dtype, T, B, G, H, I, P));
}

size_t lstm_forward_packed(const std::string& dtype, int64_t G, int64_t H, int64_t I, int64_t P,
                           const std::string& isa) {
  return cpu::kernels(isa).forward_packed(sizes(dtype, 0, 0, G, H, I, P));
}

size_t lstm_forward_workspace(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                              int64_t I, int64_t P, int num_threads, const std::string& isa) {
  check_num_threads(num_threads);
  return cpu::kernels(isa).forward_workspace(sizes(dtype, T, B, G, H, I, P), num_threads);
}

size_t lstm_backward_workspace(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                               int64_t I, int64_t P, int64_t checkpoint_every, int num_threads,
                               const std::string& isa) {
  check_num_threads(num_threads);
  const LstmShape shape = sizes(dtype, T, B, G, H, I, P, checkpoint_every);
  return cpu::kernels(isa).backward_workspace(shape, num_threads);
}

void lstm_pack(const std::string& dtype, int64_t G, int64_t H, int64_t I, int64_t P,
               const Weight& weight_ih, const Weight& weight_hh, Address packed, int num_threads,
               const std::string& isa) {
  check_num_threads(num_threads);
  LstmForward call{};  // of no steps: it does nothing but pack
  call.shape = sizes(dtype, 0, 0, G, H, I, P);
  call.weight_ih = weight(weight_ih);
  call.weight_hh = weight(weight_hh);
  call.packed = out(packed);
  const auto& kernels = cpu::kernels(isa);
  std::vector<CacheLine> workspace(kernels.forward_workspace(call.shape, num_threads) / 64 + 1);
  call.workspace = workspace.data();
  const py::gil_scoped_release release;
  kernels.forward(call, num_threads);
}

uint64_t lstm_checksum(const std::string& dtype, int64_t G, int64_t H, int64_t I, int64_t P,
                       const Weight& weight_ih, const Weight& weight_hh, int num_threads,
                       const std::string& isa) {
  check_num_threads(num_threads);
  const auto& kernels = cpu::kernels(isa);
  const LstmShape shape = sizes(dtype, 0, 0, G, H, I, P);
  const py::gil_scoped_release release;
  return kernels.checksum(shape, weight(weight_ih), weight(weight_hh), num_threads);
}

double fma_flops(const std::string& isa, int num_threads) {
  check_num_threads(num_threads);
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  return kernels.fma_flops(num_threads);
}

}  // namespace
}  // namespace fastlstm

PYBIND11_MODULE(_C, module) {
  using namespace fastlstm;
  module.doc() = "Compiled kernels of fastlstm; the contract is csrc/lstm.h.";
  module.def("lstm_forward", &lstm_forward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, "I"_a, "P"_a,
             py::kw_only(), "reverse"_a, "lengths"_a, "by_length"_a, "first_row"_a, "reset"_a,
             "input"_a, "input_stride"_a, "weight_ih"_a, "bias_ih"_a, "bias_hh"_a, "weight_hh"_a,
             "weight_ch"_a, "weight_hr"_a, "hx"_a, "cx"_a, "y"_a, "hy"_a, "cy"_a, "cells"_a,
             "checkpoint_every"_a, "reserve"_a, "states"_a, "packed"_a, "is_packed"_a,
             "workspace"_a, "num_threads"_a, "isa"_a);
  module.def("lstm_backward", &lstm_backward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, "I"_a, "P"_a,
             py::kw_only(), "reverse"_a, "lengths"_a, "by_length"_a, "first_row"_a, "reset"_a,
             "dy"_a, "dy_stride"_a, "dhy"_a, "dcy"_a, "dcells"_a, "checkpoint_every"_a, "reserve"_a,
             "states"_a, "y"_a, "input"_a, "input_stride"_a, "weight_ih"_a, "bias_ih"_a,
             "bias_hh"_a, "weight_hh"_a, "weight_ch"_a, "weight_hr"_a, "hx"_a, "cx"_a, "dinput"_a,
             "dinput_stride"_a, "dweight_ih"_a, "dbias"_a, "dweight_hh"_a, "dweight_ch"_a,
             "dweight_hr"_a, "dhx"_a, "dcx"_a, "workspace"_a, "num_threads"_a, "isa"_a);
  module.def("lstm_forward_streams", &lstm_forward_streams, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a,
             "I"_a, "P"_a, "isa"_a,
             "Whether lstm_forward would pack nothing where it is not given any.");
  module.def("lstm_forward_packed", &lstm_forward_packed, "dtype"_a, "G"_a, "H"_a, "I"_a, "P"_a,
             "isa"_a, "Bytes of the packed weights that lstm_forward can keep for its next call.");
  module.def("lstm_forward_workspace", &lstm_forward_workspace, "dtype"_a, "T"_a, "B"_a, "G"_a,
             "H"_a, "I"_a, "P"_a, "num_threads"_a, "isa"_a,
             "Bytes of scratch that lstm_forward needs.");
  module.def("lstm_backward_workspace", &lstm_backward_workspace, "dtype"_a, "T"_a, "B"_a, "G"_a,
             "H"_a, "I"_a, "P"_a, "checkpoint_every"_a, "num_threads"_a, "isa"_a,
             "Bytes of scratch that lstm_backward needs.");
  module.def("lstm_pack", &lstm_pack, py::kw_only(), "dtype"_a, "G"_a, "H"_a, "I"_a, "P"_a,
             "weight_ih"_a, "weight_hh"_a, "packed"_a, "num_threads"_a, "isa"_a);
  module.def("lstm_checksum", &lstm_checksum, py::kw_only(), "dtype"_a, "G"_a, "H"_a, "I"_a, "P"_a,
             "weight_ih"_a, "weight_hh"_a, "num_threads"_a, "isa"_a);
  module.def("fma_flops", &fma_flops, "isa"_a, "num_threads"_a,
             "Floating-point operations a second of a loop of nothing but float32 multiply-adds.");
  module.def("isas", &cpu::isas, "The instruction sets available here, best first.");

  py::module_ cuda = module.def_submodule("cuda", "The kernels for GPUs: csrc/cuda/kernels.h.");
#ifdef FASTLSTM_CUDA
  bind_cuda(cuda);
  cuda.attr("architectures") = py::make_tuple(FASTLSTM_CUDA);
#else
  cuda.attr("built") = false;
  cuda.attr("reason") = FASTLSTM_NO_CUDA;
  cuda.attr("architectures") = py::tuple();
#endif
}
