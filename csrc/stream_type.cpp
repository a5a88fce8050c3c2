#include "stream_type.h"

#include <atomic>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "stream_arguments.h"

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
  double microseconds;             // of a step, about
  std::vector<char>* signature;    // of the weights that are packed, or null
  std::atomic<bool> runs_a_layer;  // a call of _run_layer is not over
};

StreamObject* self_of(PyObject* object) { return reinterpret_cast<StreamObject*>(object); }

// A shorter step keeps the GIL: giving it up and taking it again can cost more.
constexpr double kKeepsGil = 20;

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
  PyObject* output = PyObject_CallMethod(x_object, "new_empty", "LLL", (long long)T,
                                         (long long)self->B, (long long)self->P);
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

// What tells whether the weights of a stream of one layer are those that were packed: a checksum of
// W_ih and W_hh, and a copy of everything smaller.
std::vector<char> signature_of(const StreamObject* self, const fastlstm_layer& layer) {
  LstmShape shape{};
  shape.G = 1, shape.H = self->H, shape.I = self->I, shape.P = self->P;
  const int num_threads = fastlstm_stream_num_threads(self->stream);
  const uint64_t checksum =
      cpu::kernels("auto").checksum(shape, {layer.weight_ih, 0}, {layer.weight_hh, 0}, num_threads);
  std::vector<char> bytes;
  const auto add = [&](const void* data, int64_t size) {
    const char* first = static_cast<const char*>(data);
    bytes.push_back(data != nullptr);
    if (data) bytes.insert(bytes.end(), first, first + size);
  };
  constexpr int64_t kFloat = sizeof(float);
  add(&checksum, sizeof(checksum));
  add(layer.bias_ih, 4 * self->H * kFloat);
  add(layer.bias_hh, 4 * self->H * kFloat);
  add(layer.weight_ch, 3 * self->H * kFloat);
  add(layer.weight_hr, self->P * self->H * kFloat);
  return bytes;
}

// is_current(layer): whether the stream of one layer has these weights. The first call is to be
// with the weights that it was made of, and returns true.
PyObject* is_current(PyObject* object, PyObject* layer) {
  StreamObject* self = self_of(object);
  const auto list = py::reinterpret_steal<py::object>(PyList_New(1));
  if (!list) return nullptr;
  Py_INCREF(layer);
  PyList_SET_ITEM(list.ptr(), 0, layer);
  Weights weights;
  const int64_t proj_size = self->P == self->H ? 0 : self->P;
  if (!weights.read(1, self->I, self->H, proj_size, list.ptr(), Py_None, Py_None)) return nullptr;
  std::vector<char> now;
  Py_BEGIN_ALLOW_THREADS;
  now = signature_of(self, weights.layers[0]);
  Py_END_ALLOW_THREADS;
  if (!self->signature) self->signature = new std::vector<char>(now);
  return PyBool_FromLong(now == *self->signature);
}

// run_layer(x, y, hx, cx, hy, cy, group, reverse): a whole sequence in one layer and direction.
// x (T, B, I); y (T, B, G, P), hx and hy (G, B, P), cx and cy (G, B, H) are contiguous, and the
// group's part is read and written. B is at most the stream's batch_size. Returns whether it was
// done: false if another thread is using the stream.
PyObject* run_layer(PyObject* object, PyObject* const* arguments, Py_ssize_t count) {
  StreamObject* self = self_of(object);
  torch::Tensor x, y, hx, cx, hy, cy;
  if (count != 8) {
    PyErr_SetString(PyExc_TypeError, "expected x, y, hx, cx, hy, cy, group, reverse");
    return nullptr;
  }
  const int64_t group = PyLong_AsLongLong(arguments[6]);
  const int is_reverse = PyObject_IsTrue(arguments[7]);
  if (PyErr_Occurred()) return nullptr;
  const int64_t any[] = {-1, -1, self->I};
  if (!read("x", arguments[0], any, 3, x, false)) return nullptr;
  const int64_t T = x.sizes[0], B = x.sizes[1], P = self->P;
  const int64_t y_sizes[] = {T, B, -1, P};
  if (!read("y", arguments[1], y_sizes, 4, y)) return nullptr;
  const int64_t G = y.sizes[2], h_sizes[] = {G, B, P}, c_sizes[] = {G, B, self->H};
  if (!read("hx", arguments[2], h_sizes, 3, hx) || !read("cx", arguments[3], c_sizes, 3, cx) ||
      !read("hy", arguments[4], h_sizes, 3, hy) || !read("cy", arguments[5], c_sizes, 3, cy)) {
    return nullptr;
  }
  if (group < 0 || group >= G || T < 1) {
    PyErr_SetString(PyExc_ValueError, "group: expected one of y, and at least one step");
    return nullptr;
  }
  const int64_t last = is_reverse ? T - 1 : 0, sign = is_reverse ? -1 : 1;
  const int64_t h_at = group * B * P, c_at = group * B * self->H;
  const StreamSequence sequence = {T,
                                   B,
                                   data_of(x) + last * x.strides[0],
                                   {sign * x.strides[0], x.strides[1], x.strides[2]},
                                   data_of(y) + last * B * G * P + group * P,
                                   {sign * B * G * P, G * P},
                                   data_of(hx) + h_at,
                                   data_of(cx) + c_at,
                                   data_of(hy) + h_at,
                                   data_of(cy) + c_at};
  int code;
  Py_BEGIN_ALLOW_THREADS;
  code = run_sequence(object, sequence);
  Py_END_ALLOW_THREADS;
  if (code == FASTLSTM_BUSY) Py_RETURN_FALSE;
  if (code != FASTLSTM_OK) return raise(code);
  Py_RETURN_TRUE;
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
  delete self->signature;
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
     "step(self, x: torch.Tensor) -> torch.Tensor\n\n"
     "Run one step of every row.\n\n"
     "Args:\n"
     "    x: (B, I), float32, on the CPU, with any strides.\n\n"
     "Returns:\n"
     "    y (B, P), the last layer's h: one tensor, which the next step overwrites. Clone it to\n"
     "    keep it.\n\n"
     "Raises:\n"
     "    TypeError: x is no Tensor.\n"
     "    ValueError: x has another size, dtype or device, or is of a subclass of Tensor.\n"
     "    RuntimeError: another thread is using the stream."},
    {"run", run, METH_O,
     "run(self, x: torch.Tensor) -> torch.Tensor\n\n"
     "Run T steps of every row: the results of single steps to the bit, in less time.\n\n"
     "Args:\n"
     "    x: (T, B, I), float32, on the CPU, with any strides; also if ``lstm.batch_first``.\n\n"
     "Returns:\n"
     "    y (T, B, P), a new tensor.\n\n"
     "Raises:\n"
     "    TypeError, ValueError, RuntimeError: as :meth:`step` does."},
    {"_get_state", method(get_state), METH_FASTCALL,
     "_get_state(self, h: torch.Tensor, c: torch.Tensor) -> None\n\nWrite the state to tensors."},
    {"_set_state", method(set_state), METH_FASTCALL,
     "_set_state(self, h: torch.Tensor, c: torch.Tensor) -> None\n\nRead the state from tensors."},
    {"_reset", reset, METH_O,
     "_reset(self, rows: bytes | None) -> None\n\nSet rows to the initial state."},
    {"_set_weights", method(set_weights), METH_FASTCALL,
     "_set_weights(self, layers: list, h_0: torch.Tensor | None, c_0: torch.Tensor | None)"
     " -> None\n\nPack other weights."},
    {"_is_current", is_current, METH_O,
     "_is_current(self, layer: tuple) -> bool\n\n"
     "Whether the weights of a stream of one layer are those of the first such call."},
    {"_run_layer", method(run_layer), METH_FASTCALL,
     "_run_layer(self, x: torch.Tensor, y: torch.Tensor, hx: torch.Tensor, cx: torch.Tensor, "
     "hy: torch.Tensor, cy: torch.Tensor, group: int, reverse: bool) -> bool\n\n"
     "Run a sequence in one group of a layer; false if another thread is using the stream."},
    {"_num_threads", num_threads, METH_NOARGS,
     "_num_threads(self) -> int\n\nThe most threads of a step."},
    {nullptr, nullptr, 0, nullptr}};

PyType_Slot slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(create)},
    {Py_tp_dealloc, reinterpret_cast<void*>(destroy)},
    {Py_tp_methods, methods},
    {Py_tp_doc, const_cast<char*>("A stepping object: see csrc/stream.h and fastlstm.Stream.")},
    {0, nullptr}};

PyType_Spec spec = {"fastlstm._C.Stream", sizeof(StreamObject), 0,
                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

PyObject* stream_type = nullptr;

}  // namespace

bool is_stream_of(PyObject* object, int64_t B, int64_t I, int64_t H) {
  if (reinterpret_cast<PyObject*>(Py_TYPE(object)) != stream_type) return false;
  const StreamObject* self = self_of(object);
  return self->signature && self->L == 1 && B <= self->B && self->I == I && self->H == H &&
         self->P == H;
}

bool has_weights(PyObject* stream, const fastlstm_layer& layer) {
  const StreamObject* self = self_of(stream);
  return signature_of(self, layer) == *self->signature;
}

int run_sequence(PyObject* object, const StreamSequence& s) {
  StreamObject* self = self_of(object);
  if (self->runs_a_layer.exchange(true)) return FASTLSTM_BUSY;
  fastlstm_stream* stream = self->stream;
  int code = fastlstm_stream_resize(stream, s.B);
  if (!code) code = fastlstm_stream_set_state(stream, s.hx, s.cx);
  if (!code) code = fastlstm_stream_run(stream, s.T, s.x, s.x_stride, s.y, s.y_stride);
  if (!code) code = fastlstm_stream_get_state(stream, s.hy, s.cy);
  self->runs_a_layer = false;
  return code;
}

void define_stream(py::module_& module) {
  stream_type = PyType_FromSpec(&spec);
  module.attr("Stream") = py::reinterpret_steal<py::object>(stream_type);
}

}  // namespace fastlstm
