// The attributes of fastlstm.LSTM and fastlstm.LSTMCell that a direct call reads.
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "call.h"

namespace py = pybind11;

namespace fastlstm::direct {
namespace {

// A name that is compared by its address.
class Name {
 public:
  explicit Name(const char* text) : text_(text) {}
  PyObject* object() const {
    if (!object_) object_ = PyUnicode_InternFromString(text_);
    return object_;
  }

 private:
  const char* const text_;
  mutable PyObject* object_ = nullptr;
};

// The instance dict of a module. Attributes that are not there, such as a property in a subclass,
// are not understood.
class Attributes {
 public:
  explicit Attributes(PyObject* module) : dict_(PyObject_GenericGetDict(module, nullptr)) {
    if (!dict_) PyErr_Clear();
  }
  ~Attributes() { Py_XDECREF(dict_); }
  Attributes(const Attributes&) = delete;
  Attributes& operator=(const Attributes&) = delete;

  PyObject* get(const Name& name) const { return find(dict_, name.object()); }
  bool is(const Name& name, PyObject* value) const { return get(name) == value; }
  bool is_flag(const Name& name, int& value) const {
    PyObject* const found = get(name);
    value = found == Py_True;
    return found == Py_True || found == Py_False;
  }
  bool is_size(const Name& name, int& value) const {
    PyObject* const found = get(name);
    if (!found || !PyLong_CheckExact(found)) return false;
    int overflow = 0;
    const int64_t wide = PyLong_AsLongLongAndOverflow(found, &overflow);
    value = static_cast<int>(wide);
    return overflow == 0 && wide >= 0 && wide == value;
  }

  static PyObject* find(PyObject* dict, PyObject* key) {
    if (!dict || !PyDict_CheckExact(dict)) return nullptr;
    PyObject* const value = PyDict_GetItemWithError(dict, key);
    if (!value) PyErr_Clear();
    return value;
  }

 private:
  PyObject* const dict_;
};

const Name kParameters("_parameters"), kFlatWeights("_flat_weights"),
    kFlatWeightsNames("_flat_weights_names"), kInputSize("input_size"), kHiddenSize("hidden_size"),
    kNumLayers("num_layers"), kBias("bias"), kBatchFirst("batch_first"), kDropout("dropout"),
    kBidirectional("bidirectional"), kProjSize("proj_size"), kTraining("training"),
    kPeephole("peephole"), kBackend("backend"), kLearnInitialState("learn_initial_state"),
    kCheckpointEvery("checkpoint_every"), kNumHeads("num_heads"), kPrepacked("_packed"),
    kKept("_kept");

bool read_backend(const Attributes& module, bool& is_free) {
  PyObject* const backend = module.get(kBackend);
  if (!backend || !PyUnicode_Check(backend)) return false;
  is_free = PyUnicode_CompareWithASCIIString(backend, "auto") == 0;
  return is_free || PyUnicode_CompareWithASCIIString(backend, "cpu") == 0;
}

// weight_ch_l0, weight_ch_l0_reverse, weight_ch_l1 ...
PyObject* peephole_name(int group, int num_directions) {
  static std::vector<PyObject*> names[2];
  std::vector<PyObject*>& known = names[num_directions - 1];
  while (static_cast<int>(known.size()) <= group) {
    const int next = static_cast<int>(known.size());
    const std::string suffix = next % num_directions ? "_reverse" : "";
    const std::string name = "weight_ch_l" + std::to_string(next / num_directions) + suffix;
    known.push_back(PyUnicode_InternFromString(name.c_str()));
  }
  return known[group];
}

bool add(PyObject* tensor, Objects& tensors) {
  if (!tensor || !torch::is_plain(tensor)) return false;
  tensors.add(tensor);
  return true;
}

// Adds both states, or none for None.
bool add_states(PyObject* hx, Layout& layout, Objects& tensors) {
  layout.has_states = hx != Py_None;
  if (!layout.has_states) return true;
  if (PyTuple_CheckExact(hx) && PyTuple_GET_SIZE(hx) == 2) {
    return add(PyTuple_GET_ITEM(hx, 0), tensors) && add(PyTuple_GET_ITEM(hx, 1), tensors);
  }
  return PyList_CheckExact(hx) && PyList_GET_SIZE(hx) == 2 &&
         add(PyList_GET_ITEM(hx, 0), tensors) && add(PyList_GET_ITEM(hx, 1), tensors);
}

}  // namespace

bool Request::add_prepacked(PyObject* list) {
  static PyObject* const type =
      py::object(py::module_::import("fastlstm.backends.cpu.prepacked").attr("PrepackedWeights"))
          .release()
          .ptr();
  if (PyList_GET_SIZE(list) != layout.num_layers) return false;
  for (int layer = 0; layer < layout.num_layers; ++layer) {
    PyObject* const item = PyList_GET_ITEM(list, layer);
    if (reinterpret_cast<PyObject*>(Py_TYPE(item)) != type) return false;
    PyObject* const kept = Attributes(item).get(kKept);
    if (!kept || !py::isinstance<PrepackedWeights>(kept)) return false;
    caches.add(kept);
    prepacked.push_back(py::handle(kept).cast<PrepackedWeights*>());
  }
  return true;
}

void Request::add_streams(PyObject* rounded) {
  PyObject* const kept = Attributes(rounded).get(kKept);  // fastlstm.backends.cpu.stored._Kept
  if (!kept || !PyTuple_Check(kept) || PyTuple_GET_SIZE(kept) == 0) return;
  PyObject* const list = PyTuple_GET_ITEM(kept, 0);
  if (!PyList_Check(list)) return;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i) {
    caches.add(PyList_GET_ITEM(list, i));
    streams.push_back(PyList_GET_ITEM(list, i));
  }
}

bool Request::of_lstm(PyObject* object, PyObject* const* arguments) {
  PyObject *const input = arguments[0], *const hx = arguments[1], *const lengths = arguments[2],
                  *const reset = arguments[3];
  const Attributes module(object);
  int proj_size = 0, is_bidirectional = 0, learns_states = 0, num_heads = 1;
  if (!module.is_size(kInputSize, layout.input_size) ||
      !module.is_size(kHiddenSize, layout.hidden_size) ||
      !module.is_size(kNumLayers, layout.num_layers) || !module.is_size(kProjSize, proj_size) ||
      !module.is_flag(kBidirectional, is_bidirectional) ||
      !module.is_flag(kBatchFirst, layout.batch_first) || !module.is_flag(kBias, layout.has_bias) ||
      !module.is_flag(kPeephole, layout.has_peepholes) ||
      !module.is_flag(kLearnInitialState, learns_states) ||
      !module.is_flag(kTraining, is_training) || !read_backend(module, is_backend_free) ||
      proj_size != 0 || !module.is_size(kNumHeads, num_heads) || num_heads != 1 ||
      (learns_states && hx == Py_None)) {
    return false;
  }
  PyObject* const dropout = module.get(kDropout);
  const bool may_drop = !dropout || !PyFloat_CheckExact(dropout) || PyFloat_AS_DOUBLE(dropout) != 0;
  if (may_drop && is_training && layout.num_layers > 1) return false;
  layout.num_directions = 1 + is_bidirectional;
  is_inference = !module.is(kCheckpointEvery, Py_None);
  PyObject* const prepacked = module.get(kPrepacked);
  const bool is_frozen = prepacked && prepacked != Py_None;
  is_rounded = is_frozen && !PyList_CheckExact(prepacked);
  if (is_frozen && !is_rounded && !add_prepacked(prepacked)) return false;
  if (is_rounded) add_streams(prepacked);

  PyObject* const parameters = module.get(kParameters);
  PyObject* const flat = module.get(kFlatWeights);
  PyObject* const names = module.get(kFlatWeightsNames);
  const int kinds = 2 + 2 * layout.has_bias;
  if (!flat || !PyList_CheckExact(flat) || !names || !PyList_CheckExact(names) ||
      PyList_GET_SIZE(flat) != int64_t{layout.groups()} * kinds ||
      PyList_GET_SIZE(names) != PyList_GET_SIZE(flat) || layout.num_layers == 0) {
    return false;
  }
  if (!add(input, tensors) || !add_states(hx, layout, tensors)) return false;
  for (int group = 0; group < layout.groups(); ++group) {
    for (int kind = group * kinds; kind < (group + 1) * kinds; ++kind) {
      PyObject* const weight = PyList_GET_ITEM(flat, kind);
      const bool is_current = Attributes::find(parameters, PyList_GET_ITEM(names, kind)) == weight;
      if (!is_current || !add(weight, tensors)) return false;
    }
    if (!layout.has_peepholes) continue;
    PyObject* const name = peephole_name(group, layout.num_directions);
    if (!add(Attributes::find(parameters, name), tensors)) return false;
  }
  layout.has_lengths = lengths != Py_None;
  layout.has_reset = reset != Py_None;
  return (!layout.has_lengths || add(lengths, tensors)) &&
         (!layout.has_reset || add(reset, tensors));
}

bool Request::of_cell(PyObject* object, PyObject* const* arguments) {
  static const Name weight_ih("weight_ih"), weight_hh("weight_hh"), bias_ih("bias_ih"),
      bias_hh("bias_hh"), weight_ch("weight_ch");
  const Attributes module(object);
  layout.is_cell = 1;
  if (!module.is_size(kInputSize, layout.input_size) ||
      !module.is_size(kHiddenSize, layout.hidden_size) || !module.is_flag(kBias, layout.has_bias) ||
      !module.is_flag(kPeephole, layout.has_peepholes) || !read_backend(module, is_backend_free) ||
      !add(arguments[0], tensors) || !add_states(arguments[1], layout, tensors)) {
    return false;
  }
  PyObject* const parameters = module.get(kParameters);
  const auto add_parameter = [&](const Name& name, bool is_there) {
    PyObject* const weight = Attributes::find(parameters, name.object());
    return is_there ? add(weight, tensors) : weight == Py_None;
  };
  return add_parameter(weight_ih, true) && add_parameter(weight_hh, true) &&
         add_parameter(bias_ih, layout.has_bias) && add_parameter(bias_hh, layout.has_bias) &&
         add_parameter(weight_ch, layout.has_peepholes);
}

}  // namespace fastlstm::direct
