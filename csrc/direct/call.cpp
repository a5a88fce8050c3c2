#include "call.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace fastlstm::direct {
namespace {

using torch::Tensor;
using torch::Type;

constexpr bool kForward[] = {false}, kBothWays[] = {false, true};

template <class Visit>
void for_each_field(Layout& layout, const Visit& visit) {
  for (int* field :
       {&layout.input_size, &layout.hidden_size, &layout.num_layers, &layout.num_directions,
        &layout.is_cell, &layout.batch_first, &layout.has_bias, &layout.has_peepholes,
        &layout.has_states, &layout.has_lengths, &layout.has_reset, &layout.has_norms,
        &layout.has_hidden_mask, &layout.has_keep_h, &layout.has_keep_c}) {
    visit(*field);
  }
}

template <class Item>
Item* copy_row(const Item* from, int64_t stride, int64_t count, Item* to) {
  if (stride == 0) {
    std::fill_n(to, count, *from);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * stride];
  }
  return to + count;
}

// Copies the elements of the dimensions from `dim` on, in order. Returns the end of the copy.
template <class Item>
Item* copy(const Tensor& tensor, int dim, const Item* from, Item* to) {
  if (dim + 1 >= tensor.dims) {
    const int64_t count = tensor.dims > 0 ? tensor.sizes[dim] : 1;
    return copy_row(from, tensor.dims > 0 ? tensor.strides[dim] : 0, count, to);
  }
  for (int64_t i = 0; i < tensor.sizes[dim]; ++i) {
    to = copy(tensor, dim + 1, from + i * tensor.strides[dim], to);
  }
  return to;
}

template <class Item>
void copy_all(const Tensor& tensor, char* to) {
  copy(tensor, 0, reinterpret_cast<const Item*>(tensor.data), reinterpret_cast<Item*>(to));
}

// Adds one direction's parameter to the groups of a layer, which lie `stride` elements apart.
bool add_group(const Tensor& tensor, int64_t direction, LstmWeight& weight) {
  if (direction == 0) return weight = {tensor.data, 0}, true;
  const int64_t step = tensor.data - static_cast<const char*>(weight.data);
  weight.stride = step / torch::bytes_of(tensor.type);
  return step % torch::bytes_of(tensor.type) == 0;
}

}  // namespace

PyObject* to_python(const Layout& layout) {
  PyObject* const tuple = PyTuple_New(Layout::kFields);
  Py_ssize_t i = 0;
  Layout fields = layout;
  if (!tuple) return nullptr;
  for_each_field(fields, [&](int field) { PyTuple_SET_ITEM(tuple, i++, PyLong_FromLong(field)); });
  PyTuple_SET_ITEM(tuple, i, PyFloat_FromDouble(layout.cell_clip));
  PyTuple_SET_ITEM(tuple, i + 1, PyFloat_FromDouble(layout.weight_dropout));
  return tuple;
}

Layout to_layout(PyObject* tuple) {
  Layout layout;
  Py_ssize_t i = 0;
  for_each_field(layout, [&](int& field) {
    field = static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(tuple, i++)));
  });
  layout.cell_clip = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, i));
  layout.weight_dropout = PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, i + 1));
  return layout;
}

const char* contiguous(const Tensor& tensor, Scratch& scratch) {
  if (tensor.is_contiguous()) return tensor.data;
  char* const copied =
      static_cast<char*>(scratch.take(tensor.count() * torch::bytes_of(tensor.type)));
  switch (torch::bytes_of(tensor.type)) {
    case 1:
      copy_all<uint8_t>(tensor, copied);
      break;
    case 2:
      copy_all<uint16_t>(tensor, copied);
      break;
    case 4:
      copy_all<uint32_t>(tensor, copied);
      break;
    default:
      copy_all<uint64_t>(tensor, copied);
  }
  return copied;
}

bool Call::read(const Layout& new_layout, PyObject* const* tensors, Scratch& scratch) {
  layout = new_layout;
  I = layout.input_size, H = layout.hidden_size;
  PyObject* const* const states = tensors + 1;
  PyObject* const* const weights = states + 2 * layout.has_states;
  PyObject* const* const rest = weights + layout.groups() * layout.weights_per_group();
  return I > 0 && H > 0 && read_input(tensors[0], scratch) && read_weights(weights) &&
         read_states(states, scratch) && (!layout.has_lengths || read_lengths(rest[0], scratch)) &&
         (!layout.has_reset || read_reset(rest[layout.has_lengths], scratch)) &&
         (!layout.has_options() ||
          read_options(rest + layout.has_lengths + layout.has_reset, scratch));
}

bool Call::read_input(PyObject* object, Scratch& scratch) {
  Tensor input;
  if (!torch::read(object, input)) return false;
  type = input.type;
  is_default = torch::is_default(type);
  const int last = input.dims - 1, with_batch = (layout.is_cell ? 2 : 3) + layout.has_norms;
  is_batched = input.dims == with_batch;
  if ((!is_batched && input.dims != with_batch - 1) ||
      input.sizes[last] != (layout.has_norms ? 4 * H : I) ||
      (layout.has_norms && input.sizes[last - 1] != G()) ||
      (type != Type::float32 && type != Type::float64 && type != Type::bfloat16)) {
    return false;
  }
  x = input.data;
  if (input.strides[last] != 1 && I > 1) {
    x = contiguous(input, scratch);
    for (int64_t dim = last, stride = 1; dim >= 0; stride *= input.sizes[dim--]) {
      input.strides[dim] = stride;
    }
  }
  T = B = 1;
  const bool batch_first = layout.batch_first && !layout.has_norms;
  if (layout.has_norms) x_stride[2] = input.strides[last - 1];
  if (!layout.is_cell) {
    const int time = is_batched && batch_first;
    T = input.sizes[time], x_stride[0] = input.strides[time];
  }
  if (is_batched) {
    const int batch = !layout.is_cell && !batch_first;
    B = input.sizes[batch], x_stride[1] = input.strides[batch];
  }
  return T > 0 && B > 0;
}

bool Call::read_weights(PyObject* const* tensors) {
  layers.resize(layout.num_layers);
  for (int group = 0; group < layout.groups(); ++group) {
    const int layer = group / layout.num_directions, direction = group % layout.num_directions;
    LayerWeights& of_layer = layers[layer];
    const auto add = [&](LstmWeight& weight, int64_t rows, int64_t columns) {
      Tensor tensor;
      const int64_t sizes[] = {rows, columns};
      return torch::read(*tensors++, tensor) && tensor.type == type &&
             tensor.has_sizes(sizes, columns < 0 ? 1 : 2) && tensor.is_contiguous() &&
             add_group(tensor, direction, weight);
    };
    const bool has_norms = layout.has_norms, has_bias = layout.has_bias && !has_norms;
    const bool fits =
        (has_norms || add(of_layer.weight_ih, 4 * H, input_size(layer))) &&
        add(of_layer.weight_hh, 4 * H, H) &&
        (!has_bias || (add(of_layer.bias_ih, 4 * H, -1) && add(of_layer.bias_hh, 4 * H, -1))) &&
        (!layout.has_peepholes || add(of_layer.weight_ch, 3 * H, -1)) &&
        (!has_norms || (add(of_layer.norm_hh, 4 * H, -1) && add(of_layer.norm_c, 2, H)));
    if (!fits) return false;
  }
  return true;
}

bool Call::read_states(PyObject* const* tensors, Scratch& scratch) {
  const size_t bytes = layout.num_layers * states() * item();
  if (!layout.has_states) {
    hx = cx = static_cast<char*>(std::memset(scratch.take(bytes), 0, bytes));
    return true;
  }
  const int64_t batched[] = {layout.groups(), B, H}, single[] = {layout.groups(), H};
  const int64_t* const sizes = is_batched ? batched : single;
  const int skipped = layout.is_cell;  // a cell's states have no dimension of layers
  for (const char** state : {&hx, &cx}) {
    Tensor tensor;
    if (!torch::read(*tensors++, tensor) || tensor.type != type ||
        !tensor.has_sizes(sizes + skipped, (is_batched ? 3 : 2) - skipped)) {
      return false;
    }
    *state = contiguous(tensor, scratch);
  }
  return true;
}

bool Call::read_lengths(PyObject* object, Scratch& scratch) {
  Tensor tensor;
  if (!is_batched || !torch::read(object, tensor) || tensor.dims != 1 || tensor.sizes[0] != B ||
      (tensor.type != Type::int32 && tensor.type != Type::int64)) {
    return false;
  }
  auto* const steps = static_cast<int64_t*>(scratch.take(2 * B * sizeof(int64_t)));
  int64_t* const order = steps + B;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t at = b * tensor.strides[0];
    steps[b] = tensor.type == Type::int32 ? reinterpret_cast<const int32_t*>(tensor.data)[at]
                                          : reinterpret_cast<const int64_t*>(tensor.data)[at];
    if (steps[b] < 1 || steps[b] > T) return false;
  }
  std::iota(order, order + B, 0);
  std::stable_sort(order, order + B, [&](int64_t a, int64_t b) { return steps[a] > steps[b]; });
  lengths = steps, by_length = order;
  return true;
}

bool Call::read_reset(PyObject* object, Scratch& scratch) {
  Tensor tensor;
  if (!torch::read(object, tensor) || tensor.type != Type::boolean) return false;
  const int64_t time_first[] = {T, B}, batch_first[] = {B, T};
  const bool swaps = is_batched && layout.batch_first;
  if (!tensor.has_sizes(swaps ? batch_first : time_first, is_batched ? 2 : 1)) return false;
  if (swaps) {
    std::swap(tensor.sizes[0], tensor.sizes[1]);
    std::swap(tensor.strides[0], tensor.strides[1]);
  }
  reset = reinterpret_cast<const uint8_t*>(contiguous(tensor, scratch));
  return true;
}

bool Call::read_options(PyObject* const* tensors, Scratch& scratch) {
  options.assign(layout.num_layers, {});
  for (LstmCellOptions& own : options) {
    own.cell_clip = layout.cell_clip;
    if (layout.has_hidden_mask) {
      const int64_t sizes[] = {G(), B, H};
      Tensor mask;
      if (!torch::read(*tensors++, mask) || mask.type != type || !mask.has_sizes(sizes, 3)) {
        return false;
      }
      own.hidden_mask = contiguous(mask, scratch);
    }
    for (int64_t g = 0; layout.weight_dropout > 0 && g < G(); ++g) {
      const int64_t sizes[] = {4 * H, H};
      Tensor mask;
      if (!torch::read(*tensors++, mask) || mask.type != Type::boolean ||
          !mask.has_sizes(sizes, 2) || !mask.is_contiguous()) {
        return false;
      }
      weight_masks.push_back(reinterpret_cast<uint8_t*>(mask.data));
    }
    const auto read_share = [&](const void*& data, int64_t* stride) {
      const int64_t sizes[] = {T, B, G(), H}, strides[] = {B * G() * H, G() * H, H};
      Tensor share;
      if (!torch::read(*tensors++, share) || share.type != type || !share.has_sizes(sizes, 4)) {
        return false;
      }
      const bool is_copied = share.strides[3] != 1 && H > 1;
      data = is_copied ? contiguous(share, scratch) : share.data;
      std::copy_n(is_copied ? strides : share.strides, 3, stride);
      return true;
    };
    if ((layout.has_keep_h && !read_share(own.keep_h, own.keep_h_stride)) ||
        (layout.has_keep_c && !read_share(own.keep_c, own.keep_c_stride))) {
      return false;
    }
  }
  const bool has_cell_options =
      layout.has_hidden_mask || layout.has_keep_h || layout.has_keep_c || layout.cell_clip > 0;
  if (!has_cell_options) options.clear();
  return true;
}

bool Call::use_dropped(PyObject* const* tensors) {
  const int64_t sizes[] = {G(), 4 * H, H};
  for (LayerWeights& of_layer : layers) {
    Tensor dropped;
    if (!torch::read(*tensors++, dropped) || dropped.type != type || !dropped.has_sizes(sizes, 3) ||
        !dropped.is_contiguous()) {
      return false;
    }
    of_layer.weight_hh = {dropped.data, 4 * H * H};
  }
  return true;
}

CellNorms Call::norms(Scratch& scratch) const {
  const auto joined = [&](const LstmWeight& gain, int64_t count) {
    const auto* const data = static_cast<const char*>(gain.data);
    if (G() == 1) return data;
    char* const to = static_cast<char*>(scratch.take(G() * count * item()));
    for (int64_t g = 0; g < G(); ++g) {
      std::memcpy(to + g * count * item(), data + g * gain.stride * item(), count * item());
    }
    return static_cast<const char*>(to);
  };
  CellNorms norms{};
  norms.norm_hh = joined(layers[0].norm_hh, 4 * H);
  norms.norm_c = joined(layers[0].norm_c, 2 * H);
  if (options.empty()) return norms;
  const LstmCellOptions& own = options[0];
  norms.hidden_mask = own.hidden_mask;
  norms.keep_h = own.keep_h, norms.keep_c = own.keep_c;
  std::copy_n(own.keep_h_stride, 3, norms.keep_h_stride);
  std::copy_n(own.keep_c_stride, 3, norms.keep_c_stride);
  norms.cell_clip = own.cell_clip > 0 ? &own.cell_clip : nullptr;
  return norms;
}

LstmShape Call::shape(int layer) const {
  LstmShape shape{};
  shape.dtype = type == Type::float32   ? DType::float32
                : type == Type::float64 ? DType::float64
                                        : DType::bfloat16;
  shape.T = T, shape.B = B, shape.G = G(), shape.H = H;
  shape.I = layout.has_norms ? 0 : input_size(layer);
  shape.reverse = G() == 1 ? kForward : kBothWays;
  shape.lengths = lengths, shape.by_length = by_length, shape.reset = reset;
  return shape;
}

void Call::fill(LstmCall& call, int layer, const char* input, const int64_t* strides) const {
  const LayerWeights& weights = layers[layer];
  call.shape = shape(layer);
  call.input = input;
  std::copy_n(strides, 3, call.input_stride);
  call.weight_ih = weights.weight_ih, call.weight_hh = weights.weight_hh;
  call.bias_ih = weights.bias_ih, call.bias_hh = weights.bias_hh;
  call.weight_ch = weights.weight_ch;
  call.options = options.empty() || layout.has_norms ? nullptr : &options[layer];
  call.hx = hx + layer * states() * item();
  call.cx = cx + layer * states() * item();
}

PyObject* Call::new_sequence(int64_t n) const {
  if (layout.is_cell || !is_batched) {
    const int64_t sizes[] = {rows(), n}, strides[] = {n, 1};
    const int skipped = layout.is_cell && !is_batched;
    return torch::allocate(type, is_default, sizes + skipped, strides + skipped, 2 - skipped);
  }
  const int64_t time_first[] = {T, B, n}, batch_first[] = {B, T, n};
  const int64_t by_time[] = {B * n, n, 1}, by_batch[] = {n, B * n, 1};
  return layout.batch_first ? torch::allocate(type, is_default, batch_first, by_batch, 3)
                            : torch::allocate(type, is_default, time_first, by_time, 3);
}

PyObject* Call::new_output() const {
  const int64_t width = G() * H;
  if (!splits_groups) return new_sequence(width);
  const int64_t sizes[] = {T, B, G(), H}, strides[] = {B * width, width, H, 1};
  return torch::allocate(type, is_default, sizes, strides, 4);
}

PyObject* Call::new_states() const {
  const int64_t batched[] = {layout.groups(), B, H}, of_batched[] = {B * H, H, 1};
  const int64_t single[] = {layout.groups(), H}, of_single[] = {H, 1};
  const int skipped = layout.is_cell;
  return is_batched ? torch::allocate(type, is_default, batched + skipped, of_batched + skipped,
                                      3 - skipped)
                    : torch::allocate(type, is_default, single + skipped, of_single + skipped,
                                      2 - skipped);
}

}  // namespace fastlstm::direct
