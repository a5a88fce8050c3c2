// What fastlstm/masks.py does for the general path, in the same order: from the same state of
// torch's generator come the same masks.
#include "draw.h"

#include "../cpu/kernels.h"
#include "observers.h"
#include "passes.h"

namespace py = pybind11;

namespace fastlstm::direct {
namespace {

// The numbers of the masks of one call.
class Masks {
 public:
  // `count` seeds are drawn from torch's generator at once.
  Masks(const Call& call, int64_t count) : call_(call) {
    static PyObject* const draw =
        py::object(py::module_::import("fastlstm.masks").attr("draw_seeds")).release().ptr();
    if (count == 0) return;
    seeds_ = py::handle(draw)(count);
    torch::Tensor seeds;
    if (!torch::read(seeds_.ptr(), seeds) || seeds.type != torch::Type::int64 ||
        !seeds.has_sizes(&count, 1)) {
      throw std::runtime_error("draw_seeds: expected a tensor of int64");
    }
    next_ = reinterpret_cast<const int64_t*>(seeds.data);
  }

  // Zeros with probability p, and elsewhere 1 / (1 - p).
  py::object dropout(double p, const std::vector<int64_t>& sizes) {
    return draw(p, 0, p < 1 ? 1 / (1 - p) : 0, sizes);
  }

  // Ones with probability p, and elsewhere zeros: the share of a state that a step keeps.
  py::object keep(double p, const std::vector<int64_t>& sizes) { return draw(p, 1, 0, sizes); }

  // Puts weight_hh of a layer with zeros, (G, 4H, H), into `dropped` and the masks into `masks`.
  void drop_weights(double p, const LstmWeight& weight, Objects& dropped, Objects& masks) {
    const int64_t G = call_.G(), H = call_.H, sizes[] = {4 * H, H}, strides[] = {H, 1};
    const int64_t count = 4 * H * H, bytes = count * call_.item();
    const py::object all = pooled(call_, {G, 4 * H, H});
    dropped.add(all.ptr());
    for (int64_t g = 0; g < G; ++g) {
      const py::object mask =
          owned(torch::allocate(torch::Type::boolean, false, sizes, strides, 2));
      masks.add(mask.ptr());
      const cpu::WeightDropout one = {
          call_.shape(0).dtype,
          static_cast<uint64_t>(*next_++),
          p,
          count,
          static_cast<const char*>(weight.data) + g * weight.stride * call_.item(),
          reinterpret_cast<uint8_t*>(data_of(mask)),
          data_of(all) + g * bytes};
      const int threads = num_threads();
      run_kernels(call_, [&] { cpu::kernels("auto").drop_weights(one, threads); });
    }
  }

  // The share p in every step: the same H numbers for all rows.
  py::object expectation(double p) const {
    const int64_t sizes[] = {call_.T, call_.B, call_.G(), call_.H}, strides[] = {0, 0, 0, 1};
    py::object share = owned(torch::allocate(call_.type, call_.is_default, sizes, strides, 4));
    write({call_.shape(0).dtype, 0, 0, 0, p, call_.H, data_of(share)});
    return share;
  }

 private:
  py::object draw(double p, double dropped, double kept, const std::vector<int64_t>& sizes) {
    py::object mask = pooled(call_, sizes);
    int64_t count = 1;
    for (const int64_t size : sizes) count *= size;
    write({call_.shape(0).dtype, static_cast<uint64_t>(*next_++), p, dropped, kept, count,
           data_of(mask)});
    return mask;
  }

  void write(const cpu::Mask& mask) const {
    const int threads = num_threads();
    run_kernels(call_, [&] { cpu::kernels("auto").draw_mask(mask, threads); });
  }

  const Call& call_;
  py::object seeds_;
  const int64_t* next_ = nullptr;
};

bool read_number(PyObject* object, double& number) {
  if (PyFloat_CheckExact(object)) return number = PyFloat_AS_DOUBLE(object), true;
  if (!PyLong_Check(object)) return false;
  number = PyLong_AsDouble(object);
  if (!PyErr_Occurred()) return true;
  PyErr_Clear();
  return false;
}

}  // namespace

bool Options::read(PyObject* options) {
  // In the order of fastlstm.options.LSTMOptions: recurrent_dropout, weight_dropout, zoneout,
  // variational_dropout, cell_clip, norms. What is dropped between layers is not direct.
  if (!PyTuple_Check(options) || PyTuple_GET_SIZE(options) != 6) return false;
  PyObject *const zoneout = PyTuple_GET_ITEM(options, 2), *const clip =
                                                              PyTuple_GET_ITEM(options, 4);
  return PyTuple_Check(zoneout) && PyTuple_GET_SIZE(zoneout) == 2 &&
         read_number(PyTuple_GET_ITEM(options, 0), recurrent_dropout) &&
         read_number(PyTuple_GET_ITEM(options, 1), weight_dropout) &&
         read_number(PyTuple_GET_ITEM(zoneout, 0), p_h) &&
         read_number(PyTuple_GET_ITEM(zoneout, 1), p_c) &&
         (clip == Py_None || read_number(clip, cell_clip));
}

void Options::draw(const Call& call, bool training, Request& request) const {
  Layout& layout = request.layout;
  const int64_t G = call.G(), H = call.H;
  layout.has_hidden_mask = recurrent_dropout > 0;
  layout.weight_dropout = training ? weight_dropout : 0;
  layout.has_keep_h = p_h > 0;
  layout.has_keep_c = p_c > 0;
  const int64_t drawn = training ? layout.masks_per_layer() : 0;
  Masks masks(call, layout.num_layers * drawn);
  const auto add = [&](const py::object& mask) { request.tensors.add(mask.ptr()); };
  const auto share = [&](double p) {
    return training ? masks.keep(p, {call.T, call.B, G, H}) : masks.expectation(p);
  };
  for (int layer = 0; layer < layout.num_layers; ++layer) {
    if (layout.has_hidden_mask) add(masks.dropout(recurrent_dropout, {G, call.B, H}));
    if (layout.weight_dropout > 0) {
      masks.drop_weights(weight_dropout, call.layers[layer].weight_hh, request.dropped,
                         request.tensors);
    }
    if (layout.has_keep_h) add(share(p_h));
    if (layout.has_keep_c) add(share(p_c));
  }
}

}  // namespace fastlstm::direct
