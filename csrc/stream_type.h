// The Python type fastlstm._C.Stream: csrc/stream.h for torch's tensors.
#pragma once

#include <pybind11/pybind11.h>

#include "lstm.h"
#include "stream.h"

namespace fastlstm {

// A whole sequence in one layer and direction, for a stream of one layer: x (T, B, I) and y (T, B,
// P) with strides in elements, of T and B, hx and hy (B, P), cx and cy (B, H).
struct StreamSequence {
  int64_t T, B;
  const float* x;
  int64_t x_stride[3];
  float* y;
  int64_t y_stride[2];
  const float *hx, *cx;
  float *hy, *cy;
};

// Whether the object is a stream of one layer of these sizes for so many rows, whose weights have
// been noted by _is_current.
bool is_stream_of(PyObject* object, int64_t B, int64_t I, int64_t H);

// For such a stream, without the GIL: whether it has these weights; and a run, which returns
// FASTLSTM_BUSY if another thread is using the stream.
bool has_weights(PyObject* stream, const fastlstm_layer& layer);
int run_sequence(PyObject* stream, const StreamSequence& sequence);

void define_stream(pybind11::module_& module);

}  // namespace fastlstm
