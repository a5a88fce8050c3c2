// The options of a module, and their masks for one direct call.
#pragma once

#include <Python.h>

#include "call.h"

namespace fastlstm::direct {

// An LSTMOptions of Python in the mode of its module, without the layer norms.
struct Options {
  double recurrent_dropout = 0, weight_dropout = 0, p_h = 0, p_c = 0;
  double cell_clip = 0;  // 0: none

  // False for any other object, and for a kind of number that is not understood.
  bool read(PyObject* options);
  bool has_masks() const { return recurrent_dropout || weight_dropout || p_h || p_c; }
  // Adds masks to the tensors of a request that has been read, or in evaluation the expectation of
  // zoneout's, and the weights that are left.
  void draw(const Call& call, bool training, Request& request) const;
};

}  // namespace fastlstm::direct
