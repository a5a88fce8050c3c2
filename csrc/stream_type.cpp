#include "stream_type.h"

#include <string>
#include <vector>

#include "stream.h"
#include "tensors.h"

namespace py = pybind11;

namespace fastlstm {
namespace {

// What step() returns is `output`, whose memory is that of `buffer`. The buffer cannot move or be
// freed while it is exported, whatever is done to the tensor.
struct StreamObject {
  PyObject_HEAD;
  fastlstm_stream* stream;
  PyObject* output;
  Py_buffer buffer;
  int64_t L, B, I, H, P;
  double microseconds;  // of a step, about
};

StreamObject* self_of(PyObject* object) { return reinterpret_cast<StreamObject*>(object); }

// A shorter step keeps the GIL: giving it up and taking it again can cost more.
constexpr double kKeepsGil = 20;

// Raises what a code of csrc/stream.h means. Returns null.
PyObject* raise(int code) {
  PyErr_SetString(code == FASTLSTM_INVALID ? PyExc_ValueError : PyExc_RuntimeError,
                  fastlstm_last_error());
  return nullptr;
}

PyObject* none_or_raise(int code) {
  if (code != FASTLSTM_OK) return raise(code);
  Py_RETURN_NONE;
}

std::string text_of(const py::object& object) { return py::str(object).cast<std::string>(); }

std::string size_text(const int64_t* sizes, int dims) {
  std::string text = "(";
  for (int i = 0; i < dims; ++i)
    text += (i ? ", " : "") + (sizes[i] < 0 ? "T" : std::to_string(sizes[i]));
  return text + ")";
}

// Raises that a tensor is not what is expected.
void refuse(const char* name, PyObject* object, const int64_t* sizes, int dims) {
  try {
    const py::handle tensor(object);
    const std::string expected = std::string(name) + ": expected a float32 tensor " +
                                 size_text(sizes, dims) + " on the CPU, got ";
    if (!py::hasattr(tensor, "dtype") || !py::hasattr(tensor, "device")) {
      PyErr_SetString(PyExc_TypeError, (expected + Py_TYPE(object)->tp_name).c_str());
      return;
    }
    std::string dtype = text_of(tensor.attr("dtype"));
    if (dtype.rfind("torch.", 0) == 0) dtype.erase(0, 6);
    std::string got = dtype + " " + text_of(py::tuple(py::list(tensor.attr("shape")))) + " on " +
                      text_of(tensor.attr("device"));
    if (!torch::is_plain(object)) got = std::string("a ") + Py_TYPE(object)->tp_name + " of " + got;
    PyErr_SetString(PyExc_ValueError, (expected + got).c_str());
  } catch (py::error_already_set& error) {
    error.restore();
  }
}

// Reads a float32 tensor of these sizes; a negative size is any. Raises and returns false for
// another object.
bool read(const char* name, PyObject* object, const int64_t* sizes, int dims, torch::Tensor& tensor,
          bool contiguous = true) {
  bool is_right = torch::read(object, tensor) && tensor.type == torch::Type::float32 &&
                  tensor.dims == dims && (!contiguous || tensor.is_contiguous());
  for (int i = 0; is_right && i < dims; ++i) {
    is_right = sizes[i] < 0 || tensor.sizes[i] == sizes[i];
  }
  if (!is_right) refuse(name, object, sizes, dims);
  return is_right;
}

float* data_of(const torch::Tensor& tensor) { return reinterpret_cast<float*>(tensor.data); }

int run_steps(StreamObject* self, int64_t T, const torch::Tensor& x, float* y) {
  const int first = x.dims - 2;
  const int64_t stride[] = {first ? x.strides[0] : 0, x.strides[first], x.strides[first + 1]};
  int code;
  if (self->microseconds * static_cast<double>(T) < kKeepsGil) {
    code = fastlstm_stream_run(self->stream, T, data_of(x), stride, y, nullptr);
  } else {
    Py_BEGIN_ALLOW_THREADS;
    code = fastlstm_stream_run(self->stream, T, data_of(x), stride, y, nullptr);
    Py_END_ALLOW_THREADS;
  }
  return code;
}

PyObject* step(PyObject* object, PyObject* x_object) {
  StreamObject* self = self_of(object);
  torch::Tensor x;
  const int64_t sizes[] = {self->B, self->I};
  if (!read("x", x_object, sizes, 2, x, false)) return nullptr;
  const int code = run_steps(self, 1, x, static_cast<float*>(self->buffer.buf));
  if (code != FASTLSTM_OK) return raise(code);
  Py_INCREF(self->output);
  return self->output;
}

PyObject* run(PyObject* object, PyObject* x_object) {
  StreamObject* self = self_of(object);
  torch::Tensor x, y;
  const int64_t sizes[] = {-1, self->B, self->I};
  if (!read("x", x_object, sizes, 3, x, false)) return nullptr;
  const int64_t T = x.sizes[0];
  const int64_t out_sizes[] = {T, self->B, self->P};
  const int64_t out_strides[] = {self->B * self->P, self->P, 1};
  PyObject* output = torch::allocate(x_object, out_sizes, out_strides, 3);
  if (!output) return nullptr;
  int code = FASTLSTM_INVALID;
  if (read("y", output, out_sizes, 3, y)) code = run_steps(self, T, x, data_of(y));
  if (code == FASTLSTM_OK) return output;
  Py_DECREF(output);
  return PyErr_Occurred() ? nullptr : raise(code);
}

// get_state(h, c) and set_state(h, c) with contiguous tensors (L, B, P) and (L, B, H).
template <class Call>
PyObject* with_state(PyObject* object, PyObject* const* arguments, Py_ssize_t count, Call call) {
  StreamObject* self = self_of(object);
  torch::Tensor h, c;
  const int64_t h_sizes[] = {self->L, self->B, self->P}, c_sizes[] = {self->L, self->B, self->H};
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "expected the arguments h and c");
    return nullptr;
  }
  if (!read("h", arguments[0], h_sizes, 3, h) || !read("c", arguments[1], c_sizes, 3, c)) {
    return nullptr;
  }
  return none_or_raise(call(self->stream, data_of(h), data_of(c)));
}

PyObject* get_state(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  return with_state(object, arguments, count, fastlstm_stream_get_state);
}

PyObject* set_state(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  return with_state(object, arguments, count, fastlstm_stream_set_state);
}

// reset(rows): bytes, one for each row, or None.
PyObject* reset(PyObject* object, PyObject* rows) {
  StreamObject* self = self_of(object);
  const uint8_t* flags = nullptr;
  if (rows != Py_None) {
    if (!PyBytes_Check(rows) || PyBytes_GET_SIZE(rows) != self->B) {
      PyErr_SetString(PyExc_ValueError, "rows: expected a byte for each row");
      return nullptr;
    }
    flags = reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(rows));
  }
  return none_or_raise(fastlstm_stream_reset(self->stream, flags));
}

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

PyObject* set_weights(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  StreamObject* self = self_of(object);
  if (count != 3 || !PyList_Check(arguments[0])) {
    PyErr_SetString(PyExc_TypeError, "expected the arguments layers (a list), h_0 and c_0");
    return nullptr;
  }
  Weights weights;
  const int64_t proj_size = self->P == self->H ? 0 : self->P;
  if (!weights.read(self->L, self->I, self->H, proj_size, arguments[0], arguments[1],
                    arguments[2])) {
    return nullptr;
  }
  int code;
  Py_BEGIN_ALLOW_THREADS;
  code = fastlstm_stream_set_weights(self->stream, weights.layers.data(), weights.h_0, weights.c_0);
  Py_END_ALLOW_THREADS;
  return none_or_raise(code);
}

PyObject* num_threads(PyObject* object, PyObject*) {
  return PyLong_FromLong(fastlstm_stream_num_threads(self_of(object)->stream));
}

PyObject* create(PyTypeObject* type, PyObject* positional, PyObject* keywords) {
  static const char* names[] = {"batch_size",  "input_size", "hidden_size", "proj_size", "layers",
                                "h_0",         "c_0",        "weight_type", "output",    "buffer",
                                "num_threads", "isa",        nullptr};
  fastlstm_stream_config config{};
  PyObject *layers, *h_0, *c_0, *output, *buffer;
  long long batch_size, input_size, hidden_size, proj_size;
  if (!PyArg_ParseTupleAndKeywords(
          positional, keywords, "$LLLLO!OOiOOis", const_cast<char**>(names), &batch_size,
          &input_size, &hidden_size, &proj_size, &PyList_Type, &layers, &h_0, &c_0,
          &config.weight_type, &output, &buffer, &config.num_threads, &config.isa)) {
    return nullptr;
  }
  config.batch_size = batch_size, config.input_size = input_size;
  config.hidden_size = hidden_size, config.proj_size = proj_size;
  config.num_layers = PyList_GET_SIZE(layers);
  Weights weights;
  if (!weights.read(config.num_layers, input_size, hidden_size, proj_size, layers, h_0, c_0)) {
    return nullptr;
  }
  config.layers = weights.layers.data();
  config.h_0 = weights.h_0, config.c_0 = weights.c_0;
  auto made = py::reinterpret_steal<py::object>(type->tp_alloc(type, 0));  // zeroed
  if (!made) return nullptr;
  StreamObject* self = self_of(made.ptr());
  self->L = config.num_layers, self->B = batch_size, self->I = input_size, self->H = hidden_size;
  self->P = proj_size ? proj_size : hidden_size;
  if (PyObject_GetBuffer(buffer, &self->buffer, PyBUF_WRITABLE) != 0) return nullptr;
  if (self->buffer.len < self->B * self->P * static_cast<int64_t>(sizeof(float))) {
    PyErr_SetString(PyExc_ValueError, "buffer: expected room for B * P numbers");
    return nullptr;
  }
  Py_INCREF(output);
  self->output = output;
  Py_BEGIN_ALLOW_THREADS;
  self->stream = fastlstm_stream_create(&config);
  Py_END_ALLOW_THREADS;
  if (!self->stream) return raise(FASTLSTM_INVALID);
  const double weights_of_layers =
      4.0 * hidden_size * (input_size + self->P) + 8.0 * hidden_size * self->P * (self->L - 1);
  // Some 25 weights a nanosecond and row; several rows share a weight that was loaded.
  self->microseconds = weights_of_layers * (1 + 0.5 * (self->B - 1)) / 25e3;
  return made.release().ptr();
}

void destroy(PyObject* object) {
  StreamObject* self = self_of(object);
  PyTypeObject* type = Py_TYPE(object);
  fastlstm_stream_destroy(self->stream);
  Py_XDECREF(self->output);
  if (self->buffer.obj) PyBuffer_Release(&self->buffer);
  type->tp_free(object);
  Py_DECREF(type);
}

template <class Function>
PyCFunction method(Function function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"step", step, METH_O,
     "step(self, x: torch.Tensor) -> torch.Tensor\n\nRun one step of every row."},
    {"run", run, METH_O,
     "run(self, x: torch.Tensor) -> torch.Tensor\n\nRun several steps of every row."},
    {"_get_state", method(get_state), METH_FASTCALL,
     "_get_state(self, h: torch.Tensor, c: torch.Tensor) -> None\n\nWrite the state to tensors."},
    {"_set_state", method(set_state), METH_FASTCALL,
     "_set_state(self, h: torch.Tensor, c: torch.Tensor) -> None\n\nRead the state from tensors."},
    {"_reset", reset, METH_O,
     "_reset(self, rows: bytes | None) -> None\n\nSet rows to the initial state."},
    {"_set_weights", method(set_weights), METH_FASTCALL,
     "_set_weights(self, layers: list, h_0: torch.Tensor | None, c_0: torch.Tensor | None)"
     " -> None\n\nPack other weights."},
    {"_num_threads", num_threads, METH_NOARGS,
     "_num_threads(self) -> int\n\nThe threads of a step."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(create)},
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>("A stepping object: see csrc/stream.h and fastlstm.Stream.")},
    {0, nullptr}};

PyType_Spec spec = {"fastlstm._C.Stream", sizeof(StreamObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

}  // namespace

void define_stream(py::module_& module) {
  module.attr("Stream") = py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
}

}  // namespace fastlstm
