#include <cstring>

#include "../cpu/kernels.h"
#include "observers.h"
#include "passes.h"

namespace py = pybind11;

namespace fastlstm::direct {
namespace {

using torch::Tensor;
using torch::Type;

// The gradient of one parameter of all directions of a layer, (G, ...). Kernels add up bfloat16 in
// float32.
class WeightGradient {
 public:
  // Not asked for.
  WeightGradient() = default;
  WeightGradient(const Call& call, std::vector<int64_t> sizes, Scratch& scratch) {
    for (int64_t size : sizes) count_ *= size;
    if (call.G() > 1) {  // else it is the parameter's own gradient
      sizes.insert(sizes.begin(), call.G());
      count_ *= call.G();
    }
    tensor_ = pooled(call, sizes);
    data_ = data_of(tensor_);
    is_rounded_ = call.type == Type::bfloat16;
    bytes_ = count_ * call.item();
    sums_ = is_rounded_ ? scratch.take(count_ * sizeof(float)) : data_;
  }

  void* sums() const { return sums_; }

  void round(const cpu::Kernels& kernels, int num_threads) const {
    if (!is_rounded_) return;
    kernels.to_bfloat16(static_cast<const float*>(sums_), data_, count_, num_threads);
  }

  // That of weight_hh without what was dropped.
  void drop(const Call& call, int layer, const cpu::Kernels& kernels, int num_threads) const {
    if (!tensor_) return;
    const int64_t G = call.G(), count = count_ / G;
    for (int64_t g = 0; g < G; ++g) {
      char* const data = data_ + g * count * call.item();
      kernels.drop_again({call.shape(layer).dtype, 0, call.layout.weight_dropout, count, data,
                          call.weight_masks[layer * G + g], data},
                         num_threads);
    }
  }

  void copy_from(const WeightGradient& other) const { std::memcpy(data_, other.data_, bytes_); }

  // Writes the gradients of the directions to places `step` apart.
  void put(const Call& call, py::object* place, int step) const {
    if (!tensor_) return;
    if (call.G() == 1) {
      place[0] = tensor_;
      return;
    }
    const py::tuple each = tensor_.attr("unbind")();
    for (int64_t g = 0; g < call.G(); ++g) place[g * step] = each[g];
  }

 private:
  py::object tensor_;
  char* data_ = nullptr;
  void* sums_ = nullptr;
  int64_t count_ = 1, bytes_ = 0;
  bool is_rounded_ = false;
};

// The gradients of a layer's parameters, in the order in which its tensors come.
struct LayerGradients {
  WeightGradient weight_ih, weight_hh, bias_ih, bias_hh, weight_ch, norm_hh, norm_c;

  // `needs` are the flags of the layer's tensors.
  LayerGradients(const Call& call, int layer, std::vector<bool>::const_iterator needs,
                 Scratch& scratch) {
    const auto make = [&](bool is_there, std::vector<int64_t> sizes) {
      bool is_asked = false;
      for (int64_t g = 0; is_there && g < call.G(); ++g) {
        is_asked |= needs[g * call.layout.weights_per_group()];
      }
      needs += is_there;
      return is_asked ? WeightGradient(call, std::move(sizes), scratch) : WeightGradient();
    };
    const bool has_norms = call.layout.has_norms, has_bias = call.layout.has_bias && !has_norms;
    weight_ih = make(!has_norms, {4 * call.H, call.input_size(layer)});
    weight_hh = make(true, {4 * call.H, call.H});
    bias_ih = make(has_bias, {4 * call.H});
    bias_hh = make(has_bias, {4 * call.H});
    weight_ch = make(call.layout.has_peepholes, {3 * call.H});
    norm_hh = make(has_norms, {4 * call.H});
    norm_c = make(has_norms, {2, call.H});
  }

  // Completes the gradients whose sums are there.
  void finish(const Call& call, int layer, const cpu::Kernels& kernels, int num_threads) const {
    for (const WeightGradient* gradient :
         {&weight_ih, &weight_hh, &bias_ih, &bias_hh, &weight_ch, &norm_hh, &norm_c}) {
      gradient->round(kernels, num_threads);
    }
    if (bias_ih.sums() && bias_hh.sums()) bias_hh.copy_from(bias_ih);
    if (!call.weight_masks.empty()) weight_hh.drop(call, layer, kernels, num_threads);
  }

  void put(const Call& call, py::object* place) const {
    const int step = call.layout.weights_per_group();
    const bool has_norms = call.layout.has_norms, has_bias = call.layout.has_bias && !has_norms;
    if (!has_norms) weight_ih.put(call, place++, step);
    weight_hh.put(call, place++, step);
    if (has_bias) bias_ih.put(call, place++, step);
    if (has_bias) bias_hh.put(call, place++, step);
    if (call.layout.has_peepholes) weight_ch.put(call, place++, step);
    if (has_norms) norm_hh.put(call, place++, step);
    if (has_norms) norm_c.put(call, place, step);
  }
};

// The gradients of the outputs: dy with any strides of T and B, the others contiguous.
struct OutputGradients {
  const char *dy = nullptr, *dhy = nullptr, *dcy = nullptr;
  int64_t dy_stride[2] = {0, 0};

  bool read(const Call& call, PyObject* const* grads, Scratch& scratch) {
    if (!call.layout.is_cell && !read_dy(call, *grads++, scratch)) return false;
    for (const char** state : {&dhy, &dcy}) {
      Tensor tensor;
      PyObject* const grad = *grads++;
      if (grad == Py_None) continue;
      if (!torch::read(grad, tensor) || tensor.type != call.type ||
          tensor.count() != call.layout.num_layers * call.states()) {
        return false;
      }
      *state = contiguous(tensor, scratch);
    }
    return true;
  }

 private:
  bool read_dy(const Call& call, PyObject* grad, Scratch& scratch) {
    if (grad == Py_None) return true;
    Tensor tensor;
    if (!torch::read(grad, tensor) || tensor.type != call.type ||
        tensor.dims != 2 + call.is_batched || tensor.count() != call.rows() * call.G() * call.H) {
      return false;
    }
    if (call.is_batched && call.layout.batch_first) {
      std::swap(tensor.sizes[0], tensor.sizes[1]);
      std::swap(tensor.strides[0], tensor.strides[1]);
    }
    const int last = tensor.dims - 1;
    const bool is_copied = tensor.strides[last] != 1;
    const int64_t width = call.G() * call.H;
    dy = is_copied ? contiguous(tensor, scratch) : tensor.data;
    dy_stride[0] = is_copied ? call.B * width : tensor.strides[0];
    dy_stride[1] = is_copied || !call.is_batched ? width : tensor.strides[1];
    return true;
  }
};

// The gradient of igates, in their dimensions.
py::object new_igates(const Call& call) {
  const int64_t G = call.G(), gates = 4 * call.H;
  if (!call.is_batched) return pooled(call, {call.T, G, gates});
  return pooled(call, {call.T, call.B, G, gates});
}

bool any(std::vector<bool>::const_iterator begin, std::vector<bool>::const_iterator end) {
  return std::find(begin, end, true) != end;
}

}  // namespace

bool backward(const Call& call, PyObject* const* kept, PyObject* const* grads,
              const std::vector<bool>& needs, Scratch& scratch,
              std::vector<py::object>& gradients) {
  const Layout& layout = call.layout;
  const int num_layers = layout.num_layers,
            per_layer = layout.num_directions * layout.weights_per_group();
  const int first_weight = 1 + 2 * layout.has_states;
  const int64_t width = call.G() * call.H, states_bytes = call.states() * call.item();
  OutputGradients outputs;
  if (!outputs.read(call, grads, scratch)) return false;
  std::vector<Tensor> saved(2 * num_layers);
  for (int i = 0; i < 2 * num_layers; ++i) {
    const int64_t count = call.rows() * call.G() * (i < num_layers ? call.H : call.reserve_width());
    const bool is_read =
        torch::read(kept[i], saved[i]) && saved[i].type == call.type && saved[i].count() == count;
    if (!is_read) return false;
    // In the order of time and rows, whatever the order of the dimensions.
    if (layout.batch_first && call.is_batched && i < num_layers) {
      std::swap(saved[i].sizes[0], saved[i].sizes[1]);
      std::swap(saved[i].strides[0], saved[i].strides[1]);
    }
    saved[i].data = const_cast<char*>(contiguous(saved[i], scratch));
  }

  gradients.assign(needs.size(), py::none());
  char *dinput = nullptr, *dhx, *dcx;
  if (layout.has_states) {
    gradients[1] = owned(call.new_states());
    gradients[2] = owned(call.new_states());
    dhx = data_of(gradients[1]), dcx = data_of(gradients[2]);
  } else {
    dhx = static_cast<char*>(scratch.take(num_layers * states_bytes));
    dcx = static_cast<char*>(scratch.take(num_layers * states_bytes));
  }
  if (needs[0]) {
    gradients[0] = call.layout.has_norms ? new_igates(call) : owned(call.new_sequence(call.I));
    dinput = data_of(gradients[0]);
  }

  std::vector<LayerGradients> layers;
  std::vector<LstmBackward> calls(num_layers);
  layers.reserve(num_layers);
  const int64_t strides[] = {call.B * width, width, 0};
  const char* dy = outputs.dy;
  int lowest = num_layers;  // the layer where gradients end
  for (int layer = num_layers - 1; layer >= 0; --layer) {
    const auto of_layer = needs.begin() + first_weight + layer * per_layer;
    if (!any(needs.begin(), of_layer + per_layer)) break;
    lowest = layer;
    layers.emplace_back(call, layer, of_layer, scratch);
    const LayerGradients& made = layers.back();
    LstmBackward& one = calls[layer];
    call.fill(one, layer, layer ? saved[layer - 1].data : call.x, layer ? strides : call.x_stride);
    one.bias_ih = one.bias_hh = {};
    one.dy = dy;
    const bool is_last = layer + 1 == num_layers;
    std::copy_n(is_last ? outputs.dy_stride : strides, 2, one.dy_stride);
    one.dy_stride[2] = call.H;
    one.dhy = outputs.dhy ? outputs.dhy + layer * states_bytes : nullptr;
    one.dcy = outputs.dcy ? outputs.dcy + layer * states_bytes : nullptr;
    one.y = saved[layer].data;
    one.reserve = saved[num_layers + layer].data;
    const int64_t I = call.input_size(layer);
    const bool is_needed_below = layer && any(needs.begin(), of_layer);
    one.dinput =
        layer ? is_needed_below ? scratch.take(call.rows() * I * call.item()) : nullptr : dinput;
    one.dinput_stride[0] = call.B * I, one.dinput_stride[1] = I, one.dinput_stride[2] = 0;
    one.dweight_ih = made.weight_ih.sums();
    one.dweight_hh = made.weight_hh.sums();
    one.dbias = made.bias_ih.sums() ? made.bias_ih.sums() : made.bias_hh.sums();
    one.dweight_ch = made.weight_ch.sums();
    one.dhx = dhx + layer * states_bytes;
    one.dcx = dcx + layer * states_bytes;
    dy = static_cast<const char*>(one.dinput);
  }
  const auto& kernels = cpu::kernels("auto");
  const int threads = num_threads();
  run_kernels(call, [&] {
    for (int layer = num_layers - 1; layer >= lowest; --layer) {
      Scratch of_layer;
      const LstmBackward& read = calls[layer];
      LstmBackward one = read;
      const LayerGradients& made = layers[num_layers - 1 - layer];
      if (layout.has_norms) {
        LayerNormBackward with_norms{one, call.norms(of_layer), made.norm_hh.sums(),
                                     made.norm_c.sums()};
        with_norms.input = nullptr;
        with_norms.workspace =
            of_layer.take(kernels.layer_norm_backward_workspace(one.shape, threads));
        kernels.layer_norm_backward(with_norms, threads);
      } else {
        one.workspace = of_layer.take(kernels.backward_workspace(one.shape, threads));
        kernels.backward(one, threads);
      }
      made.finish(call, layer, kernels, threads);
    }
  });
  for (size_t i = 0; i < layers.size(); ++i) {
    const int layer = num_layers - 1 - static_cast<int>(i);
    layers[i].put(call, &gradients[first_weight + layer * per_layer]);
  }
  return true;
}

}  // namespace fastlstm::direct
