// One step of a call with layer norm: see kernels.h, and layer_norm.h for z and c~.
//
// A step of the reserve has 9H numbers: 5H as in kernels.h and then z = W_hh (hidden_mask * h'),
// 4H. Sums are float, or double where dtype is float64.
#pragma once

#include "cuda/kernels.h"

namespace fastlstm::cuda {

struct NormalizedCellForward : CellForwardWithOptions {
  const void* norm_hh;  // (G, 4H) the gain of the norm of z over the 4H gates
  const void* norm_c;   // (G, 2, H) gain and bias of the norm of c~, or null
};

// dweight_ch is here (B, G, 3H): each row of the batch has sums of its own, so that no sum needs
// atomics. dhgates are dz of this step. There is no dbias.
struct NormalizedCellBackward : CellBackwardWithOptions {
  const void* norm_hh;
  const void* norm_c;
  void* dz;        // (T, B, G, 4H) the gradient of z: that of this step is written
  void* dnorm_hh;  // (B, G, 4H) sums, which this step's are added to
  void* dnorm_c;   // (B, G, 2H) sums, the same, or null if norm_c is
};

template <class Visit>
void for_each_field(NormalizedCellForward& call, Visit&& visit) {
  for_each_field(static_cast<CellForwardWithOptions&>(call), visit);
  visit("norm_hh", call.norm_hh);
  visit("norm_c", call.norm_c);
}

template <class Visit>
void for_each_field(NormalizedCellBackward& call, Visit&& visit) {
  for_each_field(static_cast<CellBackwardWithOptions&>(call), visit);
  visit("norm_hh", call.norm_hh);
  visit("norm_c", call.norm_c);
  visit("dz", call.dz);
  visit("dnorm_hh", call.dnorm_hh);
  visit("dnorm_c", call.dnorm_c);
}

void normalized_cell_forward(const NormalizedCellForward& call, Stream stream);
void normalized_cell_backward(const NormalizedCellBackward& call, Stream stream);

}  // namespace fastlstm::cuda
