#include "cuda/bindings.h"

#include <pybind11/typing.h>

#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "cuda/kernels.h"
#include "cuda/normalized.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm {
namespace {

using cuda::Costs;
using cuda::Device;
using cuda::Direction;
using cuda::Plan;
using cuda::Products;

Direction parse_direction(const std::string& name) {
  if (name == "forward") return Direction::forward;
  if (name == "backward") return Direction::backward;
  throw std::invalid_argument("direction: expected forward or backward, got " + name);
}

Products parse_products(std::string_view name) {
  if (name == "tf32") return Products::tf32;
  if (name == "tf32x3") return Products::tf32x3;
  throw std::invalid_argument("products: expected tf32 or tf32x3, got " + std::string(name));
}

// A struct of kernels.h is a dict of its members: of ints, or, for Costs, of floats.
using Numbers = py::typing::Dict<py::str, py::int_>;
using Floats = py::typing::Dict<py::str, py::float_>;

Device parse_device(const py::dict& from) {
  return {from["major"].cast<int>(), from["minor"].cast<int>(), from["multiprocessors"].cast<int>(),
          from["shared_memory"].cast<size_t>()};
}

Numbers device(int number) {
  const Device found = cuda::device(number);
  return Numbers(py::dict("major"_a = found.major, "minor"_a = found.minor,
                          "multiprocessors"_a = found.multiprocessors,
                          "shared_memory"_a = found.shared_memory));
}

// A member of a dict that stands for a struct.
template <class Number>
Number member(const py::dict& from, const char* argument, const char* name) {
  const std::string where = std::string(argument) + ": " + name + ": expected a number";
  if (!from.contains(name)) throw std::invalid_argument(where + ", got none");
  const py::object value = from[name];
  try {
    return value.cast<Number>();
  } catch (const py::cast_error&) {
    throw std::invalid_argument(where + " that fits, got " + py::repr(value).cast<std::string>());
  }
}

// The launcher checks whether it is one of the call's shape.
Plan parse_plan(const py::dict& from) {
  Plan plan{};
  cuda::for_each_member(plan, [&from](const char* name, auto& number) {
    number = member<std::decay_t<decltype(number)>>(from, "plan", name);
  });
  return plan;
}

Numbers to_dict(const Plan& plan) {
  Numbers dict;
  cuda::for_each_member(plan, [&dict](const char* name, auto number) { dict[name] = number; });
  return dict;
}

Costs parse_costs(const py::dict& from) {
  Costs costs;
  cuda::for_each_cost(costs, [&from](const char* name, double& number) {
    number = member<double>(from, "costs", name);
    if (!(number > 0)) {
      throw std::invalid_argument(std::string("costs: ") + name + ": expected more than 0, got " +
                                  std::to_string(number));
    }
  });
  return costs;
}

Floats costs() {
  Floats dict;
  cuda::for_each_cost(Costs{}, [&dict](const char* name, double number) { dict[name] = number; });
  return dict;
}

using PlansAndRefusal = py::typing::Tuple<py::typing::List<Numbers>, py::str>;
PlansAndRefusal plans(const std::string& direction, const std::string& dtype, int64_t B, int64_t G,
                      int64_t H, bool layered, const std::string& products, const Numbers& device) {
  const cuda::Problem problem = {parse_direction(direction), parse_dtype(dtype), B, G, H, layered,
                                 parse_products(products)};
  const cuda::Plans found = cuda::plans(problem, parse_device(device));
  py::list best_first;
  for (const Plan& plan : found.best_first) best_first.append(to_dict(plan));
  return py::make_tuple(best_first, found.refusal);
}

double step_ns(const std::string& direction, const std::string& dtype, int64_t B, int64_t G,
               int64_t H, bool layered, const std::string& products, const Numbers& plan,
               const Floats& costs) {
  const cuda::Problem problem = {parse_direction(direction), parse_dtype(dtype), B, G, H, layered,
                                 parse_products(products)};
  const Plan parsed = parse_plan(plan);
  cuda::check_plan(problem, parsed);
  return cuda::step_ns(problem, parsed, parse_costs(costs));
}

// A call of kernels.h, and where it is run.
template <class Call>
struct OnStream : Call {
  int device;
  void* stream;

  cuda::Stream where() const { return {device, stream}; }
};

template <class Call, class Visit>
void for_each_field(OnStream<Call>& arguments, Visit&& visit) {
  for_each_field(static_cast<Call&>(arguments), visit);
  visit("device", arguments.device);
  visit("stream", arguments.stream);
}

// The same with a plan, and the products it is for.
template <class Call>
struct Planned : OnStream<Call> {
  Products products;
  Plan plan;
};

template <class Call, class Visit>
void for_each_field(Planned<Call>& arguments, Visit&& visit) {
  for_each_field(static_cast<OnStream<Call>&>(arguments), visit);
  visit("products", arguments.products);
  visit("plan", arguments.plan);
}

void forward(const Planned<cuda::RecurrenceForward>& call) {
  const py::gil_scoped_release release;
  cuda::forward(call, call.products, call.plan, call.where());
}

void backward(const Planned<cuda::RecurrenceBackward>& call) {
  const py::gil_scoped_release release;
  cuda::backward(call, call.products, call.plan, call.where());
}

void forward_with_options(const Planned<cuda::RecurrenceForwardWithOptions>& call) {
  const py::gil_scoped_release release;
  cuda::forward_with_options(call, call.products, call.plan, call.where());
}

void backward_with_options(const Planned<cuda::RecurrenceBackwardWithOptions>& call) {
  const py::gil_scoped_release release;
  cuda::backward_with_options(call, call.products, call.plan, call.where());
}

void cell_forward(const OnStream<cuda::CellForward>& call) {
  const py::gil_scoped_release release;
  cuda::cell_forward(call, call.where());
}

void cell_backward(const OnStream<cuda::CellBackward>& call) {
  const py::gil_scoped_release release;
  cuda::cell_backward(call, call.where());
}

void cell_forward_with_options(const OnStream<cuda::CellForwardWithOptions>& call) {
  const py::gil_scoped_release release;
  cuda::cell_forward_with_options(call, call.where());
}

void cell_backward_with_options(const OnStream<cuda::CellBackwardWithOptions>& call) {
  const py::gil_scoped_release release;
  cuda::cell_backward_with_options(call, call.where());
}

void normalized_cell_forward(const OnStream<cuda::NormalizedCellForward>& call) {
  const py::gil_scoped_release release;
  cuda::normalized_cell_forward(call, call.where());
}

void normalized_cell_backward(const OnStream<cuda::NormalizedCellBackward>& call) {
  const py::gil_scoped_release release;
  cuda::normalized_cell_backward(call, call.where());
}

// Reads a member of a dict as a field of its type is read.
template <class Field>
bool read_member(PyObject* dict, const char* name, Field& field) {
  PyObject* value = PyDict_GetItemString(dict, name);
  return value && Python<Field>::read(value, field);
}

}  // namespace

template <>
struct Python<cuda::CellOptions> {
  static constexpr const char* name = "dict[str, object]";
  static bool read(PyObject* value, cuda::CellOptions& field) {
    if (!PyDict_Check(value)) return false;
    const py::object limit =
        py::reinterpret_borrow<py::object>(PyDict_GetItemString(value, "cell_clip"));
    if (!limit || !PyFloat_Check(limit.ptr())) return false;
    field.cell_clip = PyFloat_AS_DOUBLE(limit.ptr());
    return read_member(value, "hidden_mask", field.hidden_mask) &&
           read_member(value, "keep_h", field.keep_h) &&
           read_member(value, "keep_h_stride", field.keep_h_stride) &&
           read_member(value, "keep_c", field.keep_c) &&
           read_member(value, "keep_c_stride", field.keep_c_stride);
  }
};

template <>
struct Python<Products> {
  static constexpr const char* name = "str";
  static bool read(PyObject* value, Products& field) {
    std::string_view text;
    if (!Python<std::string_view>::read(value, text)) return false;
    field = parse_products(text);
    return true;
  }
};

template <>
struct Python<Plan> {
  static constexpr const char* name = "dict[str, int]";
  static bool read(PyObject* value, Plan& field) {
    if (!PyDict_Check(value)) return false;
    field = parse_plan(py::reinterpret_borrow<py::dict>(value));
    return true;
  }
};

void bind_cuda(py::module_& module) {
  module.attr("built") = true;
  module.attr("reason") = py::none();
  module.def("device", &device, "number"_a,
             "What the plans depend on: major, minor, multiprocessors, shared_memory.");
  module.def("plans", &plans, "direction"_a, "dtype"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "layered"_a = false, "products"_a, "device"_a,
             "The plans that fit on the device, best first; and why there is none, or \"\".");
  module.def("costs", &costs, "The constants of the model by which plans are ranked.");
  module.def("step_ns", &step_ns, "direction"_a, "dtype"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "layered"_a = false, "products"_a, "plan"_a, "costs"_a,
             "What the model expects a step of the plan to take.");
  KeywordFunction<Planned<cuda::RecurrenceForward>>::define(
      module, "forward", forward,
      "The forward pass in one launch. Arguments are the fields of RecurrenceForward.");
  KeywordFunction<Planned<cuda::RecurrenceBackward>>::define(
      module, "backward", backward,
      "The backward pass in one launch. Arguments are the fields of RecurrenceBackward.");
  KeywordFunction<Planned<cuda::RecurrenceForwardWithOptions>>::define(
      module, "forward_with_options", forward_with_options,
      "As forward does. Arguments are the fields of RecurrenceForwardWithOptions.");
  KeywordFunction<Planned<cuda::RecurrenceBackwardWithOptions>>::define(
      module, "backward_with_options", backward_with_options,
      "As backward does. Arguments are the fields of RecurrenceBackwardWithOptions.");
  KeywordFunction<OnStream<cuda::CellForward>>::define(
      module, "cell_forward", cell_forward,
      "One step of the forward pass. Arguments are the fields of CellForward.");
  KeywordFunction<OnStream<cuda::CellBackward>>::define(
      module, "cell_backward", cell_backward,
      "One step of the backward pass. Arguments are the fields of CellBackward.");
  KeywordFunction<OnStream<cuda::CellForwardWithOptions>>::define(
      module, "cell_forward_with_options", cell_forward_with_options,
      "As cell_forward does. Arguments are the fields of CellForwardWithOptions.");
  KeywordFunction<OnStream<cuda::CellBackwardWithOptions>>::define(
      module, "cell_backward_with_options", cell_backward_with_options,
      "As cell_backward does. Arguments are the fields of CellBackwardWithOptions.");
  KeywordFunction<OnStream<cuda::NormalizedCellForward>>::define(
      module, "normalized_cell_forward", normalized_cell_forward,
      "The same with layer norm. Arguments are the fields of NormalizedCellForward.");
  KeywordFunction<OnStream<cuda::NormalizedCellBackward>>::define(
      module, "normalized_cell_backward", normalized_cell_backward,
      "The same with layer norm. Arguments are the fields of NormalizedCellBackward.");
}

}  // namespace fastlstm
