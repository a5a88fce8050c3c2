// One step of the LSTM cell, forward and backward, for any arithmetic.
//
// `Math` has a type `Value`, a vector on a CPU or a scalar on a GPU, and the functions `sigmoid`
// and `tanh` of it. Nothing here reads or writes memory. The equations are those of
// fastlstm/backends/reference.py. c' is the cell state of the step before; the peepholes of the
// gates i and f read c', that of o reads the new c.
#pragma once

#if defined(__CUDACC__)
#define FASTLSTM_INLINE __device__ __forceinline__
#else
#define FASTLSTM_INLINE __attribute__((always_inline)) inline
#endif

namespace fastlstm {
namespace {  // one copy per translation unit: each is compiled for its own instruction set

template <class Value>
struct Gates {
  Value i, f, g, o;
};

template <class Value>
struct Peepholes {
  Value i, f, o;
};

// Turns `gates` from pre-activations into activations and `c` from c' into c; returns h.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE Value cell_forward(Gates<Value>& gates, const Peepholes<Value>& weight, Value& c) {
  if constexpr (kPeepholes) {
    gates.i += weight.i * c;
    gates.f += weight.f * c;
  }
  gates.i = Math::sigmoid(gates.i);
  gates.f = Math::sigmoid(gates.f);
  gates.g = Math::tanh(gates.g);
  c = gates.f * c + gates.i * gates.g;
  if constexpr (kPeepholes) gates.o += weight.o * c;
  gates.o = Math::sigmoid(gates.o);
  return gates.o * Math::tanh(c);
}

// Returns the gradients of the pre-activations, from the activations, c', c and dh. On entry
// `dc` is the gradient of c from later steps, on return that of c'. Adds to `dweight`.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE Gates<Value> cell_backward(const Gates<Value>& gates, Value c_prev, Value c,
                                           Value dh, const Peepholes<Value>& weight, Value& dc,
                                           Peepholes<Value>& dweight) {
  const auto [i, f, g, o] = gates;
  const Value tanh_c = Math::tanh(c);
  Gates<Value> d;
  d.o = dh * tanh_c * o * (1 - o);
  Value dc_now = dc + dh * o * (1 - tanh_c * tanh_c);
  if constexpr (kPeepholes) dc_now += weight.o * d.o;
  d.i = dc_now * g * i * (1 - i);
  d.f = dc_now * c_prev * f * (1 - f);
  d.g = dc_now * i * (1 - g * g);
  dc = dc_now * f;
  if constexpr (kPeepholes) {
    dc += weight.i * d.i + weight.f * d.f;
    dweight.i += d.i * c_prev;
    dweight.f += d.f * c_prev;
    dweight.o += d.o * c;
  }
  return d;
}

}  // namespace
}  // namespace fastlstm
