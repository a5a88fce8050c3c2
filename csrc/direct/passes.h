// The two passes of a direct call: outputs and gradients as new tensors.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <vector>

#include "call.h"

namespace fastlstm::direct {

// Runs the kernels of a call, without the GIL if they take longer than some 20 us: to release it
// and to take it again costs 0.1 us, or far more if other threads want it.
template <class Run>
void run_kernels(const Call& call, const Run& run) {
  if (call.flops() < 1e6) return run();
  const pybind11::gil_scoped_release release;
  run();
}

// A new reference, or the Python error that is set.
inline pybind11::object owned(PyObject* object) {
  if (!object) throw pybind11::error_already_set();
  return pybind11::reinterpret_steal<pybind11::object>(object);
}

// The memory of a tensor that was made here.
inline char* data_of(const pybind11::object& object) {
  torch::Tensor tensor;
  if (!torch::read_new(object.ptr(), tensor)) throw std::runtime_error("expected a new tensor");
  return tensor.data;
}

// A new tensor in memory that an earlier training step may have freed: ../buffer_pool.h.
pybind11::object pooled(const Call& call, const std::vector<int64_t>& sizes);

// What forward computes, where y of a cell is hy, and what is kept for backward: y of every layer,
// the reserve of every layer, and Request::dropped.
struct Results {
  pybind11::object y, hy, cy;
  std::vector<pybind11::object> kept;
};

// With `train` there is something to keep. `prepacked` is empty or has an entry for each layer.
Results forward(const Call& call, bool train, Scratch& scratch,
                const std::vector<PrepackedWeights*>& prepacked = {});

// The same in inference by the streams of each layer and direction. Returns false if they cannot
// run the call, have other weights, or are in use by another thread.
bool forward_by_streams(const Call& call, const std::vector<PyObject*>& streams, Scratch& scratch,
                        Results& results);

// The gradients of the tensors of Call::read, in their order; None for those that no flag of
// `needs` asks for.
//
// Args: what forward kept; `grads` of the outputs, where None is zero; and one flag
// for each tensor. It returns false if one of them is not understood.
bool backward(const Call& call, PyObject* const* kept, PyObject* const* grads,
              const std::vector<bool>& needs, Scratch& scratch,
              std::vector<pybind11::object>& gradients);

}  // namespace fastlstm::direct
