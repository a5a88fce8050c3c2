#include "ops.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "../cpu/kernels.h"
#include "observers.h"
#include "passes.h"

namespace py = pybind11;

namespace fastlstm::direct {
namespace {

using torch::Tensor;
using torch::Type;

// The arguments of a call, in the order of the schema.
enum CallArguments {
  kInput,
  kWeightIh,
  kBiasIh,
  kBiasHh,
  kWeightHh,
  kWeightCh,
  kWeightHr,
  kHx,
  kCx,
  kReverse,
  kLengths,
  kBatchSizes,
  kReset,
  kCallArguments
};

bool is_zero(PyObject* number) { return PyLong_Check(number) && PyLong_AsLong(number) == 0; }

bool is_cpu(PyObject* backend) {
  return PyUnicode_Check(backend) && PyUnicode_CompareWithASCIIString(backend, "cpu") == 0;
}

// Whether the groups are one direction, or the two of a bidirectional layer.
bool are_directions(PyObject* reverse) {
  const Py_ssize_t count = PyList_Check(reverse) ? PyList_GET_SIZE(reverse) : 0;
  if (count < 1 || count > 2 || !is_zero(PyList_GET_ITEM(reverse, 0))) return false;
  return count == 1 || PyList_GET_ITEM(reverse, 1) == Py_True ||
         (PyLong_Check(PyList_GET_ITEM(reverse, 1)) &&
          PyLong_AsLong(PyList_GET_ITEM(reverse, 1)) == 1);
}

// Reads a call's arguments, which are checked against each other.
bool read(PyObject* const* row, Call& call, Scratch& scratch) {
  if (is_watched() || !are_directions(row[kReverse]) || row[kLengths] != Py_None ||
      row[kBatchSizes] != Py_None || row[kReset] != Py_None) {
    return false;
  }
  Layout layout;
  const Py_ssize_t G = PyList_GET_SIZE(row[kReverse]);
  for (int kind = kWeightIh; kind <= kWeightHr; ++kind) {
    const bool is_there = PyList_Check(row[kind]) && PyList_GET_SIZE(row[kind]) == G;
    const bool is_absent = PyList_Check(row[kind]) && PyList_GET_SIZE(row[kind]) == 0;
    if (kind == kWeightHr ? !is_absent : !is_there && !is_absent) return false;
    if ((kind == kWeightIh || kind == kWeightHh) && is_absent) return false;
    if (kind == kBiasIh) layout.has_bias = is_there;
    if (kind == kBiasHh && layout.has_bias != is_there) return false;
    if (kind == kWeightCh) layout.has_peepholes = is_there;
  }
  Tensor weight, state, input;
  if (!torch::read(PyList_GET_ITEM(row[kWeightIh], 0), weight) || weight.dims != 2 ||
      !torch::read(row[kCx], state) || state.dims != 3 || !torch::read(row[kInput], input) ||
      input.dims != 3) {
    return false;
  }
  layout.input_size = static_cast<int>(weight.sizes[1]);
  layout.hidden_size = static_cast<int>(state.sizes[2]);
  layout.num_directions = static_cast<int>(G);
  layout.has_states = 1;
  Objects tensors;
  for (const int kind : {kInput, kHx, kCx}) tensors.add(row[kind]);
  for (Py_ssize_t g = 0; g < G; ++g) {
    for (const int kind : {kWeightIh, kWeightHh, kBiasIh, kBiasHh, kWeightCh}) {
      if (PyList_GET_SIZE(row[kind]) > 0) tensors.add(PyList_GET_ITEM(row[kind], g));
    }
  }
  call.splits_groups = true;
  return call.read(layout, tensors.data(), scratch);
}

// One of a call's tensors, contiguous; false if it has another type or other sizes.
bool read_contiguous(PyObject* object, const Call& call, const std::vector<int64_t>& sizes,
                     Scratch& scratch, const char*& data) {
  Tensor tensor;
  if (!torch::read(object, tensor) || tensor.type != call.type ||
      !tensor.has_sizes(sizes.data(), static_cast<int>(sizes.size()))) {
    return false;
  }
  data = contiguous(tensor, scratch);
  return true;
}

// Reads the gradient of y (T, B, D, H), which may have any strides of T, B and D.
bool read_dy(PyObject* object, const Call& call, Scratch& scratch, LstmBackward& one) {
  const int64_t G = call.G(), H = call.H, sizes[] = {call.T, call.B, G, H};
  const int64_t strides[] = {call.B * G * H, G * H, H};
  std::copy_n(strides, 3, one.dy_stride);
  if (object == Py_None) return true;
  Tensor dy;
  if (!torch::read(object, dy) || dy.type != call.type || !dy.has_sizes(sizes, 4)) return false;
  one.dy = dy.strides[3] == 1 ? dy.data : contiguous(dy, scratch);
  if (dy.strides[3] == 1) std::copy_n(dy.strides, 3, one.dy_stride);
  return true;
}

// A gradient that backward_op returns: empty if it is not asked for. Kernels add up the gradients
// of bfloat16 weights in float32.
struct Gradient {
  py::object tensor;
  void* sums = nullptr;
  int64_t count = 0;

  Gradient(const Call& call, bool is_asked, const std::vector<int64_t>& sizes, bool is_weight,
           Scratch& scratch)
      : tensor(pooled(call, is_asked ? sizes : std::vector<int64_t>{0})) {
    if (!is_asked) return;
    sums = data_of(tensor);
    if (!is_weight || call.type != Type::bfloat16) return;
    count = 1;
    for (const int64_t size : sizes) count *= size;
    sums = scratch.take(count * sizeof(float));
  }

  void round(const cpu::Kernels& kernels, int threads) const {
    if (count > 0) kernels.to_bfloat16(static_cast<float*>(sums), data_of(tensor), count, threads);
  }
};

}  // namespace

py::object forward_op(PyObject* const* arguments) {
  PyObject* const* const options = arguments + kCallArguments;
  PyObject *const train = options[0], *const cells = options[1], *const returns_y = options[3];
  Scratch scratch;
  Call call;
  if (!is_cpu(options[4]) || cells != Py_False || !is_zero(options[2]) || returns_y != Py_True ||
      !read(arguments, call, scratch)) {
    return py::none();
  }
  const Results results = forward(call, train == Py_True, scratch);
  const py::object reserve = train == Py_True ? results.kept.back() : pooled(call, {0});
  return py::make_tuple(results.y, results.hy, results.cy, pooled(call, {0}), reserve);
}

py::object backward_op(PyObject* const* arguments) {
  PyObject *const *const grads = arguments, *const *const saved = grads + 4;
  PyObject *const *const row = saved + 2, *const *const options = row + kCallArguments;
  PyObject* const flags = options[0];
  Scratch scratch;
  Call call;
  if (!is_cpu(options[2]) || !is_zero(options[1]) || grads[3] != Py_None || !PyList_Check(flags) ||
      PyList_GET_SIZE(flags) != 6 || !read(row, call, scratch)) {
    return py::none();
  }
  const int64_t T = call.T, B = call.B, G = call.G(), H = call.H, I = call.I;
  bool needs[6];
  for (int i = 0; i < 6; ++i) needs[i] = PyList_GET_ITEM(flags, i) == Py_True;
  if ((needs[2] && !call.layout.has_bias) || (needs[4] && !call.layout.has_peepholes) || needs[5]) {
    return py::none();
  }
  LstmBackward one{};
  call.fill(one, 0, call.x, call.x_stride);
  one.bias_ih = one.bias_hh = {};
  const std::vector<int64_t> sequence = {T, B, G, H}, states = {G, B, H};
  const char *y = nullptr, *reserve = nullptr, *dhy = nullptr, *dcy = nullptr;
  const auto is_read = [&](PyObject* object, const std::vector<int64_t>& sizes, const char*& data) {
    return object == Py_None || read_contiguous(object, call, sizes, scratch, data);
  };
  if (!read_dy(grads[0], call, scratch, one) || !is_read(grads[1], states, dhy) ||
      !is_read(grads[2], states, dcy) || !read_contiguous(saved[0], call, sequence, scratch, y) ||
      !read_contiguous(saved[1], call, {T, B, G, 5 * H}, scratch, reserve)) {
    return py::none();
  }
  one.dhy = dhy, one.dcy = dcy, one.y = y, one.reserve = reserve;
  one.dinput_stride[0] = B * I, one.dinput_stride[1] = I, one.dinput_stride[2] = 0;
  const Gradient gradients[] = {
      {call, needs[0], {T, B, I}, false, scratch}, {call, needs[1], {G, 4 * H, I}, true, scratch},
      {call, needs[2], {G, 4 * H}, true, scratch}, {call, needs[3], {G, 4 * H, H}, true, scratch},
      {call, needs[4], {G, 3 * H}, true, scratch}, {call, needs[5], {0}, true, scratch},
      {call, true, states, false, scratch},        {call, true, states, false, scratch}};
  one.dinput = gradients[0].sums;
  one.dweight_ih = gradients[1].sums;
  one.dbias = gradients[2].sums;
  one.dweight_hh = gradients[3].sums;
  one.dweight_ch = gradients[4].sums;
  one.dhx = gradients[6].sums;
  one.dcx = gradients[7].sums;
  const auto& kernels = cpu::kernels("auto");
  const int threads = num_threads();
  run_kernels(call, [&] {
    Scratch of_layer;
    one.workspace = of_layer.take(kernels.backward_workspace(one.shape, threads));
    kernels.backward(one, threads);
  });
  py::tuple found(8);
  for (int i = 0; i < 8; ++i) {
    gradients[i].round(kernels, threads);
    found[i] = gradients[i].tensor;
  }
  return found;
}

}  // namespace fastlstm::direct
