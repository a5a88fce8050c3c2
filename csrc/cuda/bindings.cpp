#include "cuda/bindings.h"

#include <string>
#include <type_traits>
#include <vector>

#include "arguments.h"
#include "cuda/kernels.h"

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

Products parse_products(const std::string& name) {
  if (name == "tf32") return Products::tf32;
  if (name == "tf32x3") return Products::tf32x3;
  throw std::invalid_argument("products: expected tf32 or tf32x3, got " + name);
}

// A struct of kernels.h is a dict of its members.
Device parse_device(const py::dict& from) {
  return {from["major"].cast<int>(), from["minor"].cast<int>(), from["multiprocessors"].cast<int>(),
          from["shared_memory"].cast<size_t>()};
}

py::dict device(int number) {
  const Device found = cuda::device(number);
  return py::dict("major"_a = found.major, "minor"_a = found.minor,
                  "multiprocessors"_a = found.multiprocessors,
                  "shared_memory"_a = found.shared_memory);
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

py::dict to_dict(const Plan& plan) {
  py::dict dict;
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

py::dict costs() {
  py::dict dict;
  cuda::for_each_cost(Costs{}, [&dict](const char* name, double number) { dict[name] = number; });
  return dict;
}

LstmShape sizes(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                bool layered = false) {
  LstmShape shape{};
  shape.dtype = parse_dtype(dtype);
  shape.T = T, shape.B = B, shape.G = G, shape.H = H, shape.I = layered ? H : 0;
  return shape;
}

// The sizes, and the order in which groups and rows are read. `flags` must outlive the shape.
LstmShape course(LstmShape shape, const std::vector<uint8_t>& flags, Address lengths,
                 Address reset) {
  shape.reverse = flags.data();
  shape.lengths = array<int64_t>(lengths);
  shape.reset = array<uint8_t>(reset);
  return shape;
}

void set(int64_t (&to)[3], const Strides& from) {
  for (int i = 0; i < 3; ++i) to[i] = from[i];
}

py::tuple plans(const std::string& direction, const std::string& dtype, int64_t B, int64_t G,
                int64_t H, bool layered, const std::string& products, const py::dict& device) {
  const cuda::Plans found =
      cuda::plans(parse_direction(direction), sizes(dtype, 0, B, G, H, layered),
                  parse_products(products), parse_device(device));
  py::list best_first;
  for (const Plan& plan : found.best_first) best_first.append(to_dict(plan));
  return py::make_tuple(best_first, found.refusal);
}

double step_ns(const std::string& direction, const std::string& dtype, int64_t B, int64_t G,
               int64_t H, bool layered, const std::string& products, const py::dict& plan,
               const py::dict& costs) {
  const Direction way = parse_direction(direction);
  const LstmShape shape = sizes(dtype, 0, B, G, H, layered);
  const Products how = parse_products(products);
  const Plan parsed = parse_plan(plan);
  cuda::check_plan(way, shape, how, parsed);
  return cuda::step_ns(way, shape, how, parsed, parse_costs(costs));
}

void forward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H, bool layered,
             const py::sequence& reverse, Address lengths, Address reset, Address igates,
             const Strides& igates_stride, const Weight& weight_ih, const Weight& bias_ih,
             const Weight& weight_hh, const Weight& weight_ch, Address hx, Address cx, Address y,
             Address hy, Address cy, Address cells, Address states, Address reserve,
             Address workspace, const std::string& products, const py::dict& plan, int device,
             Address stream) {
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmForward call{};
  call.shape = course(sizes(dtype, T, B, G, H, layered), flags, lengths, reset);
  call.input = in(igates);
  set(call.input_stride, igates_stride);
  call.weight_ih = weight(weight_ih);
  call.bias_ih = weight(bias_ih);
  call.weight_hh = weight(weight_hh);
  call.weight_ch = weight(weight_ch);
  call.hx = in(hx);
  call.cx = in(cx);
  call.y = out(y);
  call.hy = out(hy);
  call.cy = out(cy);
  call.cells = out(cells);
  call.states = out(states);
  call.reserve = out(reserve);
  call.workspace = out(workspace);
  const Products how = parse_products(products);
  const Plan parsed = parse_plan(plan);
  const py::gil_scoped_release release;
  cuda::forward(call, how, parsed, device, out(stream));
}

void backward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H, bool layered,
              const py::sequence& reverse, Address lengths, Address reset, Address dy,
              const Strides& dy_stride, Address dhy, Address dcy, Address dcells, Address reserve,
              Address y, const Weight& weight_ih, const Weight& weight_hh, const Weight& weight_ch,
              Address hx, Address cx, Address digates, const Strides& digates_stride, Address dbias,
              Address dweight_ch, Address dhx, Address dcx, Address workspace,
              const std::string& products, const py::dict& plan, int device, Address stream) {
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmBackward call{};
  call.shape = course(sizes(dtype, T, B, G, H, layered), flags, lengths, reset);
  call.dy = in(dy);
  set(call.dy_stride, dy_stride);
  call.dhy = in(dhy);
  call.dcy = in(dcy);
  call.dcells = in(dcells);
  call.reserve = in(reserve);
  call.y = in(y);
  call.weight_ih = weight(weight_ih);
  call.weight_hh = weight(weight_hh);
  call.weight_ch = weight(weight_ch);
  call.hx = in(hx);
  call.cx = in(cx);
  call.dinput = out(digates);
  set(call.dinput_stride, digates_stride);
  call.dbias = out(dbias);
  call.dweight_ch = out(dweight_ch);
  call.dhx = out(dhx);
  call.dcx = out(dcx);
  call.workspace = out(workspace);
  const Products how = parse_products(products);
  const Plan parsed = parse_plan(plan);
  const py::gil_scoped_release release;
  cuda::backward(call, how, parsed, device, out(stream));
}

void cell_forward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                  int64_t step, const py::sequence& reverse, Address lengths, Address reset,
                  Address igates, const Strides& igates_stride, const Weight& weight_ch, Address y,
                  Address cells, Address reserve, Address hgates, Address h, Address c, int device,
                  Address stream) {
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmForward call{};
  call.shape = course(sizes(dtype, T, B, G, H), flags, lengths, reset);
  call.input = in(igates);
  set(call.input_stride, igates_stride);
  call.weight_ch = weight(weight_ch);
  call.y = out(y);
  call.cells = out(cells);
  call.reserve = out(reserve);
  const py::gil_scoped_release release;
  cuda::cell_forward(call, step, in(hgates), out(h), out(c), device, out(stream));
}

void cell_backward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                   int64_t step, const py::sequence& reverse, Address lengths, Address reset,
                   Address dy, const Strides& dy_stride, Address dcells, Address reserve,
                   const Weight& weight_ch, Address cx, Address digates,
                   const Strides& digates_stride, Address dbias, Address dweight_ch,
                   Address dhgates, Address dh, Address dc, int device, Address stream) {
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmBackward call{};
  call.shape = course(sizes(dtype, T, B, G, H), flags, lengths, reset);
  call.dy = in(dy);
  set(call.dy_stride, dy_stride);
  call.dcells = in(dcells);
  call.reserve = in(reserve);
  call.weight_ch = weight(weight_ch);
  call.cx = in(cx);
  call.dinput = out(digates);
  set(call.dinput_stride, digates_stride);
  call.dbias = out(dbias);
  call.dweight_ch = out(dweight_ch);
  const py::gil_scoped_release release;
  cuda::cell_backward(call, step, out(dhgates), out(dh), out(dc), device, out(stream));
}

}  // namespace

void bind_cuda(py::module_& module) {
  module.attr("built") = true;
  module.attr("reason") = py::none();
  module.def("device", &device, "number"_a,
             "Of the CUDA device of that number: what the plans depend on.");
  module.def("plans", &plans, "direction"_a, "dtype"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "layered"_a = false, "products"_a, "device"_a,
             "The plans of a shape that fit on a device, best first, and why there is none.");
  module.def("costs", &costs, "The constants of the model that ranks plans.");
  module.def("step_ns", &step_ns, "direction"_a, "dtype"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "layered"_a = false, "products"_a, "plan"_a, "costs"_a,
             "What the model expects of a step of a plan.");
  module.def("forward", &forward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, py::kw_only(), "layered"_a,
             "reverse"_a, "lengths"_a, "reset"_a, "igates"_a, "igates_stride"_a, "weight_ih"_a,
             "bias_ih"_a, "weight_hh"_a, "weight_ch"_a, "hx"_a, "cx"_a, "y"_a, "hy"_a, "cy"_a,
             "cells"_a, "states"_a, "reserve"_a, "workspace"_a, "products"_a, "plan"_a, "device"_a,
             "stream"_a);
  module.def("backward", &backward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "layered"_a, "reverse"_a, "lengths"_a, "reset"_a, "dy"_a, "dy_stride"_a, "dhy"_a,
             "dcy"_a, "dcells"_a, "reserve"_a, "y"_a, "weight_ih"_a, "weight_hh"_a, "weight_ch"_a,
             "hx"_a, "cx"_a, "digates"_a, "digates_stride"_a, "dbias"_a, "dweight_ch"_a, "dhx"_a,
             "dcx"_a, "workspace"_a, "products"_a, "plan"_a, "device"_a, "stream"_a);
  module.def("cell_forward", &cell_forward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "step"_a, "reverse"_a, "lengths"_a, "reset"_a, "igates"_a, "igates_stride"_a,
             "weight_ch"_a, "y"_a, "cells"_a, "reserve"_a, "hgates"_a, "h"_a, "c"_a, "device"_a,
             "stream"_a);
  module.def("cell_backward", &cell_backward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "step"_a, "reverse"_a, "lengths"_a, "reset"_a, "dy"_a, "dy_stride"_a, "dcells"_a,
             "reserve"_a, "weight_ch"_a, "cx"_a, "digates"_a, "digates_stride"_a, "dbias"_a,
             "dweight_ch"_a, "dhgates"_a, "dh"_a, "dc"_a, "device"_a, "stream"_a);
}

}  // namespace fastlstm
