// The module fastlstm._C: kernels for Python, tensors passed as addresses, sizes and strides.
//
// No torch header and no libtorch: one build serves every torch version. Nothing is checked here
// beyond what would crash the interpreter; the functions of Python do that once, for all backends.
#include "direct/bindings.h"

#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "arguments.h"
#include "buffer_pool.h"
#include "cpu/kernels.h"
#include "prepacked.h"
#include "scratch.h"
#include "stream_type.h"
#ifdef FASTLSTM_CUDA
#include "cuda/bindings.h"
#endif

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm {
namespace {

// An object that the stub names torch.Tensor.
class TorchTensor : public py::object {
 public:
  using py::object::object;
};

}  // namespace
}  // namespace fastlstm

template <>
struct py::detail::handle_type_name<fastlstm::TorchTensor> {
  static constexpr auto name = const_name("torch.Tensor");
};

namespace fastlstm {
namespace {

// A tensor's address, and a weight as Python passes it: group 0's address, elements to the next.
using Address = uintptr_t;
using Weight = std::pair<Address, int64_t>;

LstmWeight weight(const Weight& from) {
  return {reinterpret_cast<const void*>(from.first), from.second};
}

void check_dtype(DType dtype) {
  if (dtype != DType::float16) return;
  throw std::invalid_argument("dtype: expected float32, float64 or bfloat16, got float16");
}

void check_num_threads(int num_threads) {
  if (num_threads < 1) {
    throw std::invalid_argument("num_threads: expected at least 1, got " +
                                std::to_string(num_threads));
  }
}

// Strides of T, B and G.
using Strides = std::tuple<int64_t, int64_t, int64_t>;

LstmCellOptions cell_options(Address hidden_mask, Address masked_hx, Address keep_h,
                             const Strides& keep_h_stride, Address keep_c,
                             const Strides& keep_c_stride, double cell_clip) {
  LstmCellOptions options{};
  const auto set = [](int64_t (&to)[3], const Strides& from) {
    std::tie(to[0], to[1], to[2]) = from;
  };
  options.hidden_mask = reinterpret_cast<const void*>(hidden_mask);
  options.masked_hx = reinterpret_cast<const void*>(masked_hx);
  options.keep_h = reinterpret_cast<const void*>(keep_h);
  options.keep_c = reinterpret_cast<const void*>(keep_c);
  set(options.keep_h_stride, keep_h_stride);
  set(options.keep_c_stride, keep_c_stride);
  options.cell_clip = cell_clip;
  return options;
}

LstmShape sizes(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H, int64_t I,
                int64_t P) {
  LstmShape shape{};
  shape.dtype = parse_dtype(dtype);
  check_dtype(shape.dtype);
  shape.T = T, shape.B = B, shape.G = G, shape.H = H, shape.I = I, shape.P = P;
  return shape;
}

// A call of lstm.h, and how it is run.
template <class Call>
struct Arguments : Call {
  int num_threads;
  std::string_view isa;
};

template <class Call, class Visit>
void for_each_field(Arguments<Call>& arguments, Visit&& visit) {
  for_each_field(static_cast<Call&>(arguments), visit);
  visit("num_threads", arguments.num_threads);
  visit("isa", arguments.isa);
}

// Checks what a kernel would not survive. Returns whether there is anything to compute.
template <class Call>
bool check(const Arguments<Call>& call) {
  check_num_threads(call.num_threads);
  check_dtype(call.shape.dtype);
  return call.shape.G > 0 && call.shape.B > 0 && call.shape.H > 0;
}

void lstm_forward(const Arguments<LstmForward>& call) {
  if (!check(call)) return;
  const auto& kernels = cpu::kernels(call.isa);
  const py::gil_scoped_release release;
  Scratch scratch;
  LstmForward forward = call;
  forward.workspace = scratch.take(kernels.forward_workspace(call.shape, call.num_threads));
  kernels.forward(forward, call.num_threads);
}

void lstm_backward(const Arguments<LstmBackward>& call) {
  if (!check(call)) return;
  const auto& kernels = cpu::kernels(call.isa);
  const py::gil_scoped_release release;
  Scratch scratch;
  LstmBackward backward = call;
  backward.workspace = scratch.take(kernels.backward_workspace(call.shape, call.num_threads));
  kernels.backward(backward, call.num_threads);
}

void layer_norm_forward(const Arguments<LayerNormForward>& call) {
  if (!check(call)) return;
  const auto& kernels = cpu::kernels(call.isa);
  const py::gil_scoped_release release;
  Scratch scratch;
  LayerNormForward forward = call;
  forward.workspace =
      scratch.take(kernels.layer_norm_forward_workspace(call.shape, call.num_threads));
  kernels.layer_norm_forward(forward, call.num_threads);
}

void layer_norm_backward(const Arguments<LayerNormBackward>& call) {
  if (!check(call)) return;
  const auto& kernels = cpu::kernels(call.isa);
  const py::gil_scoped_release release;
  Scratch scratch;
  LayerNormBackward backward = call;
  backward.workspace =
      scratch.take(kernels.layer_norm_backward_workspace(call.shape, call.num_threads));
  kernels.layer_norm_backward(backward, call.num_threads);
}

bool lstm_forward_streams(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                          int64_t I, int64_t P, const std::string& isa) {
  return cpu::kernels(isa).forward_streams(sizes(dtype, T, B, G, H, I, P));
}

// The packed weights of a layer, which live as long as the object that this returns.
PrepackedWeights::Memory prepacked_of(PrepackedWeights& self, const std::string& dtype, int64_t G,
                                      int64_t H, int64_t I, int64_t P, const Weight& weight_ih,
                                      const Weight& weight_hh, int num_threads,
                                      const std::string& isa) {
  check_num_threads(num_threads);
  LstmForward call{};
  call.shape = sizes(dtype, 0, 0, G, H, I, P);
  call.weight_ih = weight(weight_ih), call.weight_hh = weight(weight_hh);
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  return self.of(call, kernels, num_threads);
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

std::pair<double, bool> bernoulli_loss(const std::string& logits_dtype,
                                       const std::string& targets_dtype, Address logits,
                                       Address targets, Address gradient, int64_t count,
                                       double scale, int num_threads, const std::string& isa) {
  check_num_threads(num_threads);
  const cpu::BernoulliLoss call = {parse_dtype(logits_dtype),
                                   parse_dtype(targets_dtype),
                                   reinterpret_cast<const void*>(logits),
                                   reinterpret_cast<const void*>(targets),
                                   reinterpret_cast<void*>(gradient),
                                   count,
                                   scale};
  check_dtype(call.logits_dtype);
  check_dtype(call.targets_dtype);
  if ((call.logits_dtype == DType::float64) != (call.targets_dtype == DType::float64)) {
    throw std::invalid_argument("targets_dtype: expected float64 beside float64 only, got " +
                                targets_dtype);
  }
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  const auto result = kernels.bernoulli_loss(call, num_threads);
  return {result.loss, result.targets_in_range};
}

void draw_mask(const std::string& dtype, uint64_t seed, double p, double dropped, double kept,
               int64_t count, Address to, int num_threads, const std::string& isa) {
  check_num_threads(num_threads);
  const cpu::Mask mask = {parse_dtype(dtype),         seed, p, dropped, kept, count,
                          reinterpret_cast<void*>(to)};
  check_dtype(mask.dtype);
  const auto& kernels = cpu::kernels(isa);
  const py::gil_scoped_release release;
  kernels.draw_mask(mask, num_threads);
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
  cpu::kernels("auto");  // an ImportError if there are none for this CPU
  module.doc() =
      "The compiled kernels. Tensors are passed as addresses, strides in elements; 0 means "
      "none.\n\n"
      "Every shape and lifetime is in csrc/lstm.h, and for ``cuda`` in csrc/cuda/kernels.h.";
  KeywordFunction<Arguments<LstmForward>>::define(
      module, "lstm_forward", lstm_forward,
      "The forward pass of a layer, all directions. Arguments are the fields of LstmForward.");
  KeywordFunction<Arguments<LstmBackward>>::define(
      module, "lstm_backward", lstm_backward,
      "The backward pass of a layer, all directions. Arguments are the fields of LstmBackward.");
  py::class_<LstmCellOptions>(module, "LstmCellOptions",
                              "What cells compute beyond the plain equations: see csrc/lstm.h.")
      .def(py::init(&cell_options), py::kw_only(), "hidden_mask"_a, "masked_hx"_a, "keep_h"_a,
           "keep_h_stride"_a, "keep_c"_a, "keep_c_stride"_a, "cell_clip"_a)
      .def_property_readonly("address",
                             [](const LstmCellOptions& options) { return Address(&options); });
  KeywordFunction<Arguments<LayerNormForward>>::define(
      module, "layer_norm_forward", layer_norm_forward,
      "The same with layer norm. Arguments are the fields of LayerNormForward.");
  KeywordFunction<Arguments<LayerNormBackward>>::define(
      module, "layer_norm_backward", layer_norm_backward,
      "The same with layer norm. Arguments are the fields of LayerNormBackward.");
  module.def(
      "lstm_forward_streams", &lstm_forward_streams, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, "I"_a,
      "P"_a, "isa"_a,
      "Whether lstm_forward reads weights as they lie, and packs none, without prepacked ones.");
  py::class_<PrepackedMemory, PrepackedWeights::Memory>(module, "PrepackedMemory",
                                                        "A layer's weights in the kernels' layout.")
      .def_property_readonly("address",
                             [](const PrepackedMemory& memory) { return Address(memory.data()); });
  py::class_<PrepackedWeights>(module, "PrepackedWeights",
                               "A cache of one layer's prepacked weights; empty at first.")
      .def(py::init<>())
      .def_property_readonly("memory", &PrepackedWeights::memory)
      .def("of", &prepacked_of, py::kw_only(), "dtype"_a, "G"_a, "H"_a, "I"_a, "P"_a, "weight_ih"_a,
           "weight_hh"_a, "num_threads"_a, "isa"_a,
           "The packed weights. They are packed again if a checksum of W_ih and W_hh has changed.");
  module.def("lstm_checksum", &lstm_checksum, py::kw_only(), "dtype"_a, "G"_a, "H"_a, "I"_a, "P"_a,
             "weight_ih"_a, "weight_hh"_a, "num_threads"_a, "isa"_a,
             "64 bits that change when W_ih or W_hh do; not cryptographic.");
  module.def(
      "bernoulli_loss", &bernoulli_loss, py::kw_only(), "logits_dtype"_a, "targets_dtype"_a,
      "logits"_a, "targets"_a, "gradient"_a, "count"_a, "scale"_a, "num_threads"_a, "isa"_a,
      "The sum of softplus(a) - t a, and whether all targets lie in [0, 1] and none is -0.\n\n"
      "``scale`` is a factor of the gradient only.");
  module.def("draw_mask", &draw_mask, py::kw_only(), "dtype"_a, "seed"_a, "p"_a, "dropped"_a,
             "kept"_a, "count"_a, "to"_a, "num_threads"_a, "isa"_a,
             "Writes ``dropped`` with probability p, and else ``kept``: see csrc/cpu/masks.cpp.");
  module.def("fma_flops", &fma_flops, "isa"_a, "num_threads"_a,
             "Floating-point operations a second of a loop of nothing but float32 multiply-adds.");
  module.def(
      "poison_scratch", [](bool poisoned) { Scratch::is_poisoned = poisoned; }, "poisoned"_a,
      "Whether the memory that kernels work in is NaN at first, for tests.");
  module.def(
      "pooled_empty",
      [](const std::vector<int64_t>& sizes, const py::object& dtype) -> TorchTensor {
        torch::Type type;
        if (!torch::type_of(dtype.ptr(), type) || !is_pooled(type, sizes)) {
          const py::module_ torch = py::module_::import("torch");
          py::object made = torch.attr("empty")(sizes, "dtype"_a = dtype, "device"_a = "cpu");
          return py::reinterpret_steal<TorchTensor>(made.release());
        }
        PyObject* const made = pooled_empty(type, sizes);
        if (!made) throw py::error_already_set();
        return py::reinterpret_steal<TorchTensor>(made);
      },
      "sizes"_a, "dtype"_a,
      "A tensor on the CPU with anything in it, for what the next training step makes anew: the "
      "data\nthat a backward pass reads, and the gradients of weights.\n\n"
      "From 1 MiB on its memory returns to a pool when the last tensor on it is freed, and it "
      "cannot be\nresized.");
  module.def("spare_buffers", &spare_buffers,
             "The bytes of the pool's buffers that nobody uses, oldest first.");
  module.def("limit_spare_buffers", &limit_spare_buffers, "bytes"_a,
             "How many bytes of such buffers are kept: 256 MiB at first.");
  module.def("isas", &cpu::isas, "The instruction sets available here, best first.");

  direct::bind(module);
  define_stream(module);

  py::module_ cuda = module.def_submodule(
      "cuda",
      "The kernels for GPUs: functions, if ``built``.\n\n"
      "``stream`` is a cudaStream_t, ``products`` \"tf32\" or \"tf32x3\", ``direction`` "
      "\"forward\" or\n\"backward\", ``plan`` one of ``plans``, or a ValueError is raised. "
      "``layered``: the groups are\nthe layers of one LSTM.");
#ifdef FASTLSTM_CUDA
  bind_cuda(cuda);
  cuda.attr("architectures") = py::make_tuple(FASTLSTM_CUDA);
  cuda.attr("ptx") = py::make_tuple(FASTLSTM_CUDA_PTX);
#else
  cuda.attr("built") = false;
  cuda.attr("reason") = FASTLSTM_NO_CUDA;
  cuda.attr("architectures") = py::tuple();
  cuda.attr("ptx") = py::tuple();
#endif
}
