#include "bindings.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cpu/kernels.h"
#include "draw.h"
#include "observers.h"
#include "ops.h"
#include "passes.h"

namespace py = pybind11;

namespace fastlstm::direct {
namespace {

bool is_enabled = true;

bool requires_grad(PyObject* tensor) {
  static PyObject* const name = PyUnicode_InternFromString("requires_grad");
  PyObject* const value = PyObject_GetAttr(tensor, name);
  if (!value) PyErr_Clear();
  Py_XDECREF(value);
  return value != Py_False;
}

// Whether PyTorch's own functions are faster in training: why_slower of fastlstm.backends.cpu,
// which has the measurements.
bool is_slower(const Call& call) {
  if (call.type == torch::Type::bfloat16 || (call.T == 1 && call.B <= 64)) return false;
  const bool few_steps = call.H <= 8 && call.I >= 512 && call.T <= 8;
  const bool few_rows = call.T <= 64 && call.T * call.B <= 10000;
  return few_steps || (call.H <= 4 && call.I >= 128 && few_rows);
}

// The results of torch.lstm, the function behind nn.LSTM, which autograd knows.
Results run_torch(const Call& call, const Objects& tensors) {
  static PyObject* const lstm =
      py::object(py::module_::import("torch._VF").attr("lstm")).release().ptr();
  const Layout& layout = call.layout;
  const auto tensor = [&](size_t i) {
    return py::reinterpret_borrow<py::object>(tensors.data()[i]);
  };
  py::tuple states(2);
  if (layout.has_states) {
    states[0] = tensor(1), states[1] = tensor(2);
  } else {
    const py::object zeros = owned(call.new_states());
    std::memset(data_of(zeros), 0, layout.num_layers * call.states() * call.item());
    states[0] = zeros, states[1] = zeros;
  }
  py::list weights;
  for (size_t i = 1 + 2 * layout.has_states; i < tensors.size(); ++i) weights.append(tensor(i));
  const py::tuple outputs =
      py::handle(lstm)(tensor(0), states, weights, layout.has_bias != 0, layout.num_layers, 0.0,
                       true, layout.num_directions == 2, layout.batch_first != 0);
  Results results;
  results.y = outputs[0], results.hy = outputs[1], results.cy = outputs[2];
  return results;
}

// Calls record(layout, outputs, kept, input, hx, cx, weights ...), which lets autograd know, and
// puts the outputs that it returns in the place of those that came.
void let_autograd_know(PyObject* record, const Request& request, Results& results) {
  py::tuple kept(results.kept.size());
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = results.kept[i];
  const bool is_cell = request.layout.is_cell;
  PyObject* const all[] = {results.y.ptr(), results.hy.ptr(), results.cy.ptr()};
  const auto pack = [&] {
    return is_cell ? PyTuple_Pack(2, all[1], all[2]) : PyTuple_Pack(3, all[0], all[1], all[2]);
  };
  const py::object layout = owned(to_python(request.layout)), outputs = owned(pack());
  std::vector<PyObject*> arguments = {layout.ptr(), outputs.ptr(), kept.ptr()};
  arguments.insert(arguments.end(), request.tensors.begin(), request.tensors.end());
  const py::tuple recorded =
      owned(PyObject_Vectorcall(record, arguments.data(), arguments.size(), nullptr));
  if (!is_cell) results.y = recorded[0];
  results.hy = recorded[recorded.size() - 2];
  results.cy = recorded[recorded.size() - 1];
}

bool records_gradients(const Objects& tensors) {
  return is_grad_enabled() && std::any_of(tensors.begin(), tensors.end(), requires_grad);
}

// Puts the layout and the tensors that normalize(layout, tensors) returns in the place of the
// request's: the input is projected and normalised, and the weights have the norms' gains.
void add_norms(PyObject* normalize, Request& request) {
  py::tuple tensors(request.tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensors[i] = py::reinterpret_borrow<py::object>(request.tensors.data()[i]);
  }
  const py::object layout = owned(to_python(request.layout));
  const py::tuple prepared = py::handle(normalize)(layout, tensors);
  request.layout = to_layout(py::tuple(prepared[0]).ptr());
  Objects added;
  for (const py::handle tensor : py::tuple(prepared[1])) added.add(tensor.ptr());
  request.tensors.swap(added);
}

// Computes the results of a module's call. Returns false if the general path has to. `options` is
// None or an LSTMOptions, `normalize` None or that of add_norms.
bool call_module(Request& request, PyObject* record, PyObject* options, PyObject* normalize,
                 Results& results) {
  if (is_watched() || is_autocast_enabled()) return false;
  const bool has_options = options != Py_None, has_norms = normalize != Py_None;
  Options drawn;
  if (has_options && (request.is_inference || request.is_rounded || !drawn.read(options))) {
    return false;
  }
  request.layout.cell_clip = drawn.cell_clip;
  bool train = records_gradients(request.tensors);
  if (train ? request.is_inference : request.is_rounded && request.streams.empty()) return false;
  Scratch scratch;
  Call call;
  if (!call.read(request.layout, request.tensors.data(), scratch)) return false;
  const Layout& layout = call.layout;
  const bool torch_can = !has_options && !layout.has_peepholes && !layout.has_reset;
  if (train && request.is_backend_free && torch_can && is_slower(call)) {
    if (layout.is_cell || layout.has_lengths || !call.is_batched) return false;
    results = run_torch(call, request.tensors);
    return true;
  }
  if (!train && request.is_rounded) {
    return forward_by_streams(call, request.streams, scratch, results);
  }
  if (drawn.has_masks()) drawn.draw(call, request.is_training, request);
  if (has_norms) {
    add_norms(normalize, request);
    train = records_gradients(request.tensors);
  }
  if (drawn.has_masks() || has_norms) {
    call = Call();
    if (!call.read(request.layout, request.tensors.data(), scratch) ||
        (request.dropped.size() > 0 && !call.use_dropped(request.dropped.data()))) {
      return false;
    }
  }
  const std::vector<PrepackedWeights*> none;
  results = forward(call, train, scratch, train || has_options ? none : request.prepacked);
  for (PyObject* const weight : request.dropped) {
    results.kept.push_back(py::reinterpret_borrow<py::object>(weight));
  }
  if (train) let_autograd_know(record, request, results);
  return true;
}

template <class Run>
PyObject* guarded(const Run& run) {
  try {
    return run().release().ptr();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

PyObject* lstm(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    if (count != 8) throw py::type_error("direct_lstm: expected 8 arguments");
    Request request;
    Results results;
    if (!is_enabled || !request.of_lstm(arguments[0], arguments + 2) ||
        !call_module(request, arguments[1], arguments[6], arguments[7], results)) {
      return py::none();
    }
    const py::object states = owned(PyTuple_Pack(2, results.hy.ptr(), results.cy.ptr()));
    return owned(PyTuple_Pack(2, results.y.ptr(), states.ptr()));
  });
}

PyObject* cell(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    if (count != 4) throw py::type_error("direct_cell: expected 4 arguments");
    Request request;
    Results results;
    if (!is_enabled || !request.of_cell(arguments[0], arguments + 2) ||
        !call_module(request, arguments[1], Py_None, Py_None, results)) {
      return py::none();
    }
    return owned(PyTuple_Pack(2, results.hy.ptr(), results.cy.ptr()));
  });
}

// (layout, saved tensors: those of the call and what forward kept, grads, needs)
PyObject* gradients(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    if (count != 4) throw py::type_error("direct_gradients: expected 4 arguments");
    for (int i = 0; i < 4; ++i) {
      if (!PyTuple_Check(arguments[i])) throw py::type_error("direct_gradients: expected tuples");
    }
    if (PyTuple_GET_SIZE(arguments[0]) != Layout::kFields) {
      throw py::type_error("direct_gradients: expected a layout of " +
                           std::to_string(Layout::kFields) + " numbers");
    }
    if (!is_enabled || is_watched() || is_grad_enabled()) return py::none();
    const Layout layout = to_layout(arguments[0]);
    PyObject* const* const saved = PySequence_Fast_ITEMS(arguments[1]);
    const int num_tensors = layout.count(), num_layers = layout.num_layers;
    const bool drops = layout.weight_dropout > 0;
    PyObject* const* const kept = saved + num_tensors;
    if (PyTuple_GET_SIZE(arguments[1]) != num_tensors + (2 + drops) * num_layers ||
        PyTuple_GET_SIZE(arguments[2]) != (layout.is_cell ? 2 : 3) ||
        PyTuple_GET_SIZE(arguments[3]) != num_tensors) {
      throw py::type_error("direct_gradients: expected tuples that belong to the layout");
    }
    std::vector<bool> needs;
    for (int i = 0; i < num_tensors; ++i) {
      needs.push_back(PyTuple_GET_ITEM(arguments[3], i) == Py_True);
    }
    Scratch scratch;
    Call call;
    std::vector<py::object> found;
    if (!call.read(layout, saved, scratch) || (drops && !call.use_dropped(kept + 2 * num_layers)) ||
        !backward(call, kept, PySequence_Fast_ITEMS(arguments[2]), needs, scratch, found)) {
      return py::none();
    }
    py::tuple result(found.size());
    for (size_t i = 0; i < found.size(); ++i) result[i] = std::move(found[i]);
    return result;
  });
}

PyObject* forward_of_op(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    return is_enabled && count == kForwardArguments ? forward_op(arguments) : py::none();
  });
}

PyObject* backward_of_op(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&]() -> py::object {
    return is_enabled && count == kBackwardArguments ? backward_op(arguments) : py::none();
  });
}

bool set_reading(const std::string& reading) {
  is_enabled = reading != "off";
  return torch::read_through_dlpack(reading == "dlpack") == (reading == "dlpack");
}

PyMethodDef methods[] = {
    {"direct_lstm", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(lstm)),
     METH_FASTCALL,
     "direct_lstm(module: object, record: object, input: object, hx: object, lengths: object, "
     "reset: object, options: object, normalize: object, /) -> tuple | None\n\n"
     "The outputs of LSTM.forward, or None if the general path has to compute them."},
    {"direct_cell", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(cell)),
     METH_FASTCALL,
     "direct_cell(module: object, record: object, input: object, hx: object, /) -> tuple | None\n\n"
     "The outputs of LSTMCell.forward, or None if the general path has to compute them."},
    {"direct_gradients", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(gradients)),
     METH_FASTCALL,
     "direct_gradients(layout: tuple, saved: tuple, grads: tuple, needs: tuple, /) -> tuple | "
     "None\n\n"
     "The gradients of a direct call's tensors, or None if the general path has to compute them."},
    {"direct_forward_op",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(forward_of_op)), METH_FASTCALL,
     "direct_forward_op(*arguments: object) -> tuple | None\n\n"
     "The outputs of the op lstm_sequence, or None if the general path has to compute them."},
    {"direct_backward_op",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(backward_of_op)), METH_FASTCALL,
     "direct_backward_op(*arguments: object) -> tuple | None\n\n"
     "The same for the op lstm_sequence_backward."},
};

}  // namespace

void bind(py::module_& module) {
  const py::object name = module.attr("__name__");
  for (PyMethodDef& method : methods) {
    module.attr(method.ml_name) =
        py::reinterpret_steal<py::object>(PyCFunction_NewEx(&method, nullptr, name.ptr()));
  }
  module.def(
      "set_direct", &set_reading, py::arg("reading"),
      "How direct calls read tensors: \"dlpack\", the default, \"attributes\", or \"off\": there "
      "are none.\nReturns False if this torch lacks it. For tests.");
}

}  // namespace fastlstm::direct
