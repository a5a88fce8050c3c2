// A call of LSTM.forward or LSTMCell.forward that needs none of the general path.
//
// The general path is fastlstm/nn and fastlstm/functional.py: some 50 us of Python. A direct call
// checks the same in 2 us. It only answers what it understands in full. For everything else, and
// for every error, it returns false before it has done anything, and the general path answers.
#pragma once

#include <Python.h>

#include <vector>

#include "../layer_norm.h"
#include "../lstm.h"
#include "../prepacked.h"
#include "../scratch.h"
#include "../tensors.h"

namespace fastlstm::direct {

// How the tensors of a call are to be read. In Python it is a tuple of numbers in this order.
struct Layout {
  int input_size = 0, hidden_size = 0, num_layers = 1, num_directions = 1;
  int is_cell = 0;      // input (B, I): one step, without a dimension for it
  int batch_first = 0;  // input and reset are (B, T, ...)
  int has_bias = 0, has_peepholes = 0;
  int has_states = 0;  // hx and cx are among the tensors; else they are zero
  int has_lengths = 0, has_reset = 0;
  // The input of the only layer is igates, whether batch_first or not: (T, B, D, 4H), or (T, D, 4H)
  // without a batch. The weights of a group are weight_hh, weight_ch, norm_hh (4H), norm_c (2, H).
  int has_norms = 0;
  int has_hidden_mask = 0, has_keep_h = 0, has_keep_c = 0;  // each layer has masks
  double cell_clip = 0;                                     // 0: none
  double weight_dropout = 0;                                // above 0 weight_hh has masks

  static constexpr int kFields = 17;
  int groups() const { return num_layers * num_directions; }
  int weights_per_group() const {
    return has_norms ? 3 + has_peepholes : 2 + 2 * has_bias + has_peepholes;
  }
  int masks_per_layer() const {
    return has_hidden_mask + has_keep_h + has_keep_c + (weight_dropout > 0 ? num_directions : 0);
  }
  bool has_options() const { return masks_per_layer() > 0 || cell_clip > 0; }
  // The tensors of a call: input, hx, cx, the weights of each group, lengths, reset, and the masks
  // of each layer: hidden_mask (D, B, H), that of weight_hh of each direction (4H, H), bool, keep_h
  // and keep_c (T, B, D, H).
  int count() const {
    return 1 + 2 * has_states + groups() * weights_per_group() + has_lengths + has_reset +
           num_layers * masks_per_layer();
  }
};

PyObject* to_python(const Layout& layout);
Layout to_layout(PyObject* tuple);

// Objects that live as long as this does: another thread may replace a parameter while kernels run.
class Objects {
 public:
  Objects() { objects_.reserve(8); }
  ~Objects() {
    for (PyObject* object : objects_) Py_DECREF(object);
  }
  Objects(const Objects&) = delete;
  Objects& operator=(const Objects&) = delete;

  void add(PyObject* object) {
    objects_.push_back(object);
    Py_INCREF(object);
  }
  void swap(Objects& other) { objects_.swap(other.objects_); }
  size_t size() const { return objects_.size(); }
  PyObject* const* data() const { return objects_.data(); }
  auto begin() const { return objects_.begin(); }
  auto end() const { return objects_.end(); }

 private:
  std::vector<PyObject*> objects_;
};

// The parameters of all directions of one layer.
struct LayerWeights {
  LstmWeight weight_ih, weight_hh, bias_ih, bias_hh, weight_ch;
  LstmWeight norm_hh, norm_c;
};

// A call whose tensors are checked against each other.
struct Call {
  Layout layout;
  torch::Type type;
  bool is_default;  // torch::is_default(type)
  int64_t T, B, I, H;
  bool is_batched;
  bool splits_groups = false;  // y is (T, B, D, H), as an op has it
  const char* x;
  int64_t x_stride[3] = {0, 0, 0};  // of T, B and D
  const char *hx, *cx;              // (L * D, B, H)
  std::vector<LayerWeights> layers;
  const int64_t *lengths = nullptr, *by_length = nullptr;
  const uint8_t* reset = nullptr;
  std::vector<LstmCellOptions> options;  // of each layer, or empty
  std::vector<uint8_t*> weight_masks;    // of each group, or empty

  int64_t G() const { return layout.num_directions; }
  int64_t item() const { return torch::bytes_of(type); }
  int64_t input_size(int layer) const { return layer ? G() * H : I; }
  // Elements of y, and of all states h or c of one layer.
  int64_t rows() const { return T * B; }
  int64_t states() const { return G() * B * H; }
  int64_t reserve_width() const { return (layout.has_norms ? 9 : 5) * H; }       // of a direction
  double flops() const { return 8.0 * rows() * layout.groups() * H * (I + H); }  // about

  // Reads layout.count() tensors. Copies that the kernels need are taken from the scratch memory.
  bool read(const Layout& layout, PyObject* const* tensors, Scratch& scratch);

  // The sizes of a layer's call. `reverse` points to static memory.
  LstmShape shape(int layer) const;
  // Takes weight_hh of each layer from these tensors (D, 4H, H).
  bool use_dropped(PyObject* const* tensors);
  void fill(LstmCall& call, int layer, const char* input, const int64_t* strides) const;
  // The options of the only layer, which has norms.
  CellNorms norms(Scratch& scratch) const;

  // New tensors: (T, B, n) in the layout of the input, (T, B, D * H) in that of y, and (L * D, B,
  // H) in that of hx.
  PyObject* new_sequence(int64_t n) const;
  PyObject* new_output() const;
  PyObject* new_states() const;

 private:
  bool read_input(PyObject* tensor, Scratch& scratch);
  bool read_weights(PyObject* const* tensors);
  bool read_states(PyObject* const* tensors, Scratch& scratch);
  bool read_lengths(PyObject* tensor, Scratch& scratch);
  bool read_reset(PyObject* tensor, Scratch& scratch);
  bool read_options(PyObject* const* tensors, Scratch& scratch);
};

// The tensor's elements in order: its own memory, or a copy.
const char* contiguous(const torch::Tensor& tensor, Scratch& scratch);

// What a module asks of its call.
struct Request {
  Layout layout;
  Objects tensors;
  Objects dropped;  // weight_hh of each layer (D, 4H, H), if numbers of it are dropped
  // Of each layer, if the module keeps prepacked weights. `caches` owns them.
  std::vector<PrepackedWeights*> prepacked;
  // Of each layer and direction, if inference computes with rounded weights that are there.
  std::vector<PyObject*> streams;
  Objects caches;
  bool is_rounded = false;  // inference computes with rounded weights
  int is_training = 0;
  bool is_inference = false;     // the call is not understood if gradients are recorded
  bool is_backend_free = false;  // PyTorch's own functions may run the call, too

  // Find the tensors of a call in a module's attributes and its arguments: (input, hx, lengths,
  // reset) or (input, hx), all but the input may be None. False if an attribute or a type is not
  // the usual one.
  bool of_lstm(PyObject* module, PyObject* const* arguments);
  bool of_cell(PyObject* module, PyObject* const* arguments);

 private:
  bool add_prepacked(PyObject* list);
  void add_streams(PyObject* rounded);
};

}  // namespace fastlstm::direct
