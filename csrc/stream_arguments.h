// How the arguments of fastlstm._C.Stream are read, and its errors raised.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "stream.h"
#include "tensors.h"

namespace fastlstm {
namespace {

// Raises what a code of csrc/stream.h means. Returns null.
inline PyObject* raise(int code) {
  PyErr_SetString(code == FASTLSTM_INVALID ? PyExc_ValueError : PyExc_RuntimeError,
                  fastlstm_last_error());
  return nullptr;
}

inline PyObject* none_or_raise(int code) {
  if (code != FASTLSTM_OK) return raise(code);
  Py_RETURN_NONE;
}

inline std::string text_of(const pybind11::object& object) {
  return pybind11::str(object).cast<std::string>();
}

inline std::string size_text(const int64_t* sizes, int dims) {
  std::string text = "(";
  for (int i = 0; i < dims; ++i)
    text += (i ? ", " : "") + (sizes[i] < 0 ? "T" : std::to_string(sizes[i]));
  return text + ")";
}

// Raises that a tensor is not what is expected.
inline void refuse(const char* name, PyObject* object, const int64_t* sizes, int dims) {
  try {
    const pybind11::handle tensor(object);
    const std::string expected = std::string(name) + ": expected a float32 tensor " +
                                 size_text(sizes, dims) + " on the CPU, got ";
    if (!pybind11::hasattr(tensor, "dtype") || !pybind11::hasattr(tensor, "device")) {
      PyErr_SetString(PyExc_TypeError, (expected + Py_TYPE(object)->tp_name).c_str());
      return;
    }
    std::string dtype = text_of(tensor.attr("dtype"));
    if (dtype.rfind("torch.", 0) == 0) dtype.erase(0, 6);
    std::string got = dtype + " " + text_of(pybind11::tuple(pybind11::list(tensor.attr("shape")))) +
                      " on " + text_of(tensor.attr("device"));
    if (!torch::is_plain(object)) got = std::string("a ") + Py_TYPE(object)->tp_name + " of " + got;
    PyErr_SetString(PyExc_ValueError, (expected + got).c_str());
  } catch (pybind11::error_already_set& error) {
    error.restore();
  }
}

// Reads a float32 tensor of these sizes; a negative size is any. Raises and returns false for
// another object.
inline bool read(const char* name, PyObject* object, const int64_t* sizes, int dims,
                 torch::Tensor& tensor, bool contiguous = true) {
  bool is_right = torch::read(object, tensor) && tensor.type == torch::Type::float32 &&
                  tensor.dims == dims && (!contiguous || tensor.is_contiguous());
  for (int i = 0; is_right && i < dims; ++i) {
    is_right = sizes[i] < 0 || tensor.sizes[i] == sizes[i];
  }
  if (!is_right) refuse(name, object, sizes, dims);
  return is_right;
}

inline float* data_of(const torch::Tensor& tensor) { return reinterpret_cast<float*>(tensor.data); }

// The weights as Python passes them: a list with a tuple of six tensors or None for each layer, in
// the order of fastlstm_layer, and h_0 (L, P) and c_0 (L, H) or None.
struct Weights {
  std::vector<fastlstm_layer> layers;
  const float *h_0 = nullptr, *c_0 = nullptr;

  // Raises and returns false if a tensor has other sizes.
  bool read(int64_t L, int64_t I, int64_t H, int64_t proj_size, PyObject* list, PyObject* h_object,
            PyObject* c_object) {
    const int64_t P = proj_size ? proj_size : H;
    if (PyList_GET_SIZE(list) != L) {
      PyErr_SetString(PyExc_ValueError, "layers: expected num_layers tuples");
      return false;
    }
    for (int64_t l = 0; l < L; ++l) {
      PyObject* layer = PyList_GET_ITEM(list, l);
      if (!PyTuple_Check(layer) || PyTuple_GET_SIZE(layer) != 6) {
        PyErr_SetString(PyExc_TypeError, "layers: expected tuples of six tensors or None");
        return false;
      }
      const int64_t matrix_ih[] = {4 * H, l ? P : I}, matrix_hh[] = {4 * H, P};
      const int64_t vector[] = {4 * H}, peepholes[] = {3 * H}, matrix_hr[] = {P, H};
      fastlstm_layer& to = layers.emplace_back();
      const auto item = [&](int i) { return PyTuple_GET_ITEM(layer, i); };
      if (!set("weight_ih", item(0), matrix_ih, 2, to.weight_ih) ||
          !set("weight_hh", item(1), matrix_hh, 2, to.weight_hh) ||
          !set("bias_ih", item(2), vector, 1, to.bias_ih) ||
          !set("bias_hh", item(3), vector, 1, to.bias_hh) ||
          !set("weight_ch", item(4), peepholes, 1, to.weight_ch) ||
          !set("weight_hr", item(5), matrix_hr, 2, to.weight_hr)) {
        return false;
      }
    }
    const int64_t h_sizes[] = {L, P}, c_sizes[] = {L, H};
    return set("h_0", h_object, h_sizes, 2, h_0) && set("c_0", c_object, c_sizes, 2, c_0);
  }

 private:
  static bool set(const char* name, PyObject* object, const int64_t* sizes, int dims,
                  const float*& to) {
    to = nullptr;
    if (object == Py_None) return true;
    torch::Tensor tensor;
    if (!fastlstm::read(name, object, sizes, dims, tensor)) return false;
    to = data_of(tensor);
    return true;
  }
};

}  // namespace
}  // namespace fastlstm
