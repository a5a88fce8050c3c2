// One step of the LSTM cell with the options of a call, for the kernels of a step and of a
// sequence.
#pragma once

#include "cuda/elements.cuh"

namespace fastlstm::cuda {

// The limit of c; a NaN is not clipped, as in torch.
template <class Number>
__device__ __forceinline__ Number clip(Number c, const CellOptions& options) {
  const Number limit = static_cast<Number>(options.cell_clip);
  return !(limit > 0) ? c : c > limit ? limit : c < -limit ? -limit : c;
}

// A state after zoneout: the share `keep` of it is that of the step before.
template <class Number>
__device__ __forceinline__ Number mix(Number before, Number after, Number keep) {
  return keep * before + (1 - keep) * after;
}

// The h that W_hh is multiplied with, from h and its factor. h is rounded first, because the
// product for the gradient of W_hh will read it as it is stored.
template <class Stored>
__device__ __forceinline__ Sum<Stored> masked(Sum<Stored> h, Stored factor) {
  Stored stored;
  store(&stored, h);
  return to_sum(factor) * to_sum(stored);
}

// cell_forward of cell.h with a limit of c.
template <bool kPeepholes, class Number>
__device__ __forceinline__ Number clipped_cell_forward(Gates<Number>& gates,
                                                       const Peepholes<Number>& weight, Number& c,
                                                       const CellOptions& options) {
  using Math = GateMath<Number>;
  if constexpr (kPeepholes) {
    gates.i += weight.i * c;
    gates.f += weight.f * c;
  }
  gates.i = Math::sigmoid(gates.i);
  gates.f = Math::sigmoid(gates.f);
  gates.g = Math::tanh(gates.g);
  c = clip(gates.f * c + gates.i * gates.g, options);
  if constexpr (kPeepholes) gates.o += weight.o * c;
  gates.o = Math::sigmoid(gates.o);
  return gates.o * Math::tanh(c);
}

// cell_backward of cell.h with a limit of c, which it computes from the gates and c'.
template <bool kPeepholes, class Number>
__device__ __forceinline__ Gates<Number> clipped_cell_backward(
    const Gates<Number>& gates, Number c_prev, Number dh, const Peepholes<Number>& weight,
    Number& dc, Peepholes<Number>& dweight, const CellOptions& options) {
  const Number sum = gates.f * c_prev + gates.i * gates.g, c = clip(sum, options);
  Peepholes<Number> added = {};
  Gates<Number> d = fastlstm::cell_backward<GateMath<Number>, kPeepholes>(gates, c_prev, c, dh,
                                                                          weight, dc, added);
  const Number limit = static_cast<Number>(options.cell_clip);
  if (limit > 0 && !(sum <= limit && sum >= -limit)) {  // only o's gate has a gradient then
    d.i = d.f = d.g = dc = added.i = added.f = 0;
  }
  dweight.i += added.i, dweight.f += added.f, dweight.o += added.o;
  return d;
}

}  // namespace fastlstm::cuda
