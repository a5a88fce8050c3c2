// The two ops of fastlstm/op/schema.py as direct calls: what a compiled model runs.
//
// An op is one layer, whose directions are its groups. The general path checks an op's arguments
// and runs it in 30 us forward and 75 backward, these functions in 5. They understand plain calls
// of one or two directions on the cpu backend.
#pragma once

#include <Python.h>
#include <pybind11/pybind11.h>

namespace fastlstm::direct {

constexpr int kForwardArguments = 18, kBackwardArguments = 22;

// The outputs of the op, a tuple, for its arguments in the order of the schema. None if the general
// path has to run it, or to raise an error.
pybind11::object forward_op(PyObject* const* arguments);
pybind11::object backward_op(PyObject* const* arguments);

}  // namespace fastlstm::direct
