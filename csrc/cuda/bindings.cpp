#include "cuda/bindings.h"

#include <string>
#include <vector>

#include "arguments.h"
#include "cuda/kernels.h"

namespace py = pybind11;
using namespace py::literals;

namespace fastlstm {
namespace {

using cuda::Device;
using cuda::Plan;
using cuda::Products;

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

// Of a plan that can be followed.
Plan parse_plan(const py::dict& from) {
  if (!from["refusal"].is_none()) {
    throw std::invalid_argument("plan: expected one without a refusal, got " +
                                from["refusal"].cast<std::string>());
  }
  Plan plan{};
  plan.kernel = from["kernel"].cast<int>();
  plan.units = from["units"].cast<int>();
  plan.slices = from["slices"].cast<int>();
  plan.tiles = from["tiles"].cast<int>();
  plan.tile_rows = from["tile_rows"].cast<int>();
  plan.k_warps = from["k_warps"].cast<int>();
  plan.register_steps = from["register_steps"].cast<int>();
  plan.shared_steps = from["shared_steps"].cast<int>();
  plan.chunk_steps = from["chunk_steps"].cast<int>();
  plan.stages = from["stages"].cast<int>();
  plan.shared_bytes = from["shared_bytes"].cast<size_t>();
  return plan;
}

py::dict to_dict(const Plan& plan) {
  return py::dict("refusal"_a = plan.refusal, "kernel"_a = plan.kernel, "units"_a = plan.units,
                  "slices"_a = plan.slices, "tiles"_a = plan.tiles, "tile_rows"_a = plan.tile_rows,
                  "k_warps"_a = plan.k_warps, "register_steps"_a = plan.register_steps,
                  "shared_steps"_a = plan.shared_steps, "chunk_steps"_a = plan.chunk_steps,
                  "stages"_a = plan.stages, "shared_bytes"_a = plan.shared_bytes);
}

LstmShape sizes(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H) {
  LstmShape shape{};
  shape.dtype = parse_dtype(dtype);
  shape.T = T, shape.B = B, shape.G = G, shape.H = H;
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

py::dict plan_forward(const std::string& dtype, int64_t B, int64_t G, int64_t H,
                      const std::string& products, const py::dict& device) {
  return to_dict(
      cuda::plan_forward(sizes(dtype, 0, B, G, H), parse_products(products), parse_device(device)));
}

py::dict plan_backward(const std::string& dtype, int64_t B, int64_t G, int64_t H,
                       const std::string& products, const py::dict& device) {
  return to_dict(cuda::plan_backward(sizes(dtype, 0, B, G, H), parse_products(products),
                                     parse_device(device)));
}

size_t forward_workspace(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                         const py::dict& plan) {
  return cuda::forward_workspace(sizes(dtype, T, B, G, H), parse_plan(plan));
}

size_t backward_workspace(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
                          const py::dict& plan) {
  return cuda::backward_workspace(sizes(dtype, T, B, G, H), parse_plan(plan));
}

void forward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
             const py::sequence& reverse, Address lengths, Address reset, Address igates,
             const Strides& igates_stride, const Weight& weight_hh, const Weight& weight_ch,
             Address hx, Address cx, Address y, Address hy, Address cy, Address cells,
             Address reserve, Address workspace, const std::string& products, const py::dict& plan,
             int device, Address stream) {
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmForward call{};
  call.shape = course(sizes(dtype, T, B, G, H), flags, lengths, reset);
  call.input = in(igates);
  set(call.input_stride, igates_stride);
  call.weight_hh = weight(weight_hh);
  call.weight_ch = weight(weight_ch);
  call.hx = in(hx);
  call.cx = in(cx);
  call.y = out(y);
  call.hy = out(hy);
  call.cy = out(cy);
  call.cells = out(cells);
  call.reserve = out(reserve);
  call.workspace = out(workspace);
  const Products how = parse_products(products);
  const Plan parsed = parse_plan(plan);
  const py::gil_scoped_release release;
  cuda::forward(call, how, parsed, device, out(stream));
}

void backward(const std::string& dtype, int64_t T, int64_t B, int64_t G, int64_t H,
              const py::sequence& reverse, Address lengths, Address reset, Address dy,
              const Strides& dy_stride, Address dhy, Address dcy, Address dcells, Address reserve,
              Address y, const Weight& weight_hh, const Weight& weight_ch, Address hx, Address cx,
              Address digates, const Strides& digates_stride, Address dbias, Address dweight_ch,
              Address dhx, Address dcx, Address workspace, const std::string& products,
              const py::dict& plan, int device, Address stream) {
  const std::vector<uint8_t> flags = parse_reverse(reverse, G);
  LstmBackward call{};
  call.shape = course(sizes(dtype, T, B, G, H), flags, lengths, reset);
  call.dy = in(dy);
  set(call.dy_stride, dy_stride);
  call.dhy = in(dhy);
  call.dcy = in(dcy);
  call.dcells = in(dcells);
  call.reserve = in(reserve);
  call.y = in(y);
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
  module.def("plan_forward", &plan_forward, "dtype"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "products"_a, "device"_a);
  module.def("plan_backward", &plan_backward, "dtype"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "products"_a, "device"_a);
  module.def("forward_workspace", &forward_workspace, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a,
             py::kw_only(), "plan"_a, "Bytes of scratch that forward needs.");
  module.def("backward_workspace", &backward_workspace, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a,
             py::kw_only(), "plan"_a, "Bytes of scratch that backward needs.");
  module.def("forward", &forward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, py::kw_only(), "reverse"_a,
             "lengths"_a, "reset"_a, "igates"_a, "igates_stride"_a, "weight_hh"_a, "weight_ch"_a,
             "hx"_a, "cx"_a, "y"_a, "hy"_a, "cy"_a, "cells"_a, "reserve"_a, "workspace"_a,
             "products"_a, "plan"_a, "device"_a, "stream"_a);
  module.def("backward", &backward, "dtype"_a, "T"_a, "B"_a, "G"_a, "H"_a, py::kw_only(),
             "reverse"_a, "lengths"_a, "reset"_a, "dy"_a, "dy_stride"_a, "dhy"_a, "dcy"_a,
             "dcells"_a, "reserve"_a, "y"_a, "weight_hh"_a, "weight_ch"_a, "hx"_a, "cx"_a,
             "digates"_a, "digates_stride"_a, "dbias"_a, "dweight_ch"_a, "dhx"_a, "dcx"_a,
             "workspace"_a, "products"_a, "plan"_a, "device"_a, "stream"_a);
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
