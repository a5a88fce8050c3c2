// One step of the LSTM cell, forward and backward, for any arithmetic.
//
// `Math` has a type `Value`, a vector on a CPU or a scalar on a GPU, the functions `sigmoid` and
// `tanh` of it, and `activate`, which applies them to (i, f, g) or (o, c). Nothing here reads or
// writes memory. The equations are those of fastlstm/backends/reference.py. c' is the cell state of
// the step before; the peepholes of the gates i and f read c', that of o reads the new c.
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

// The first half of a step: turns the pre-activations of i, f and g into activations, and returns
// c.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE Value next_cell(Gates<Value>& gates, const Peepholes<Value>& weight, Value c_prev) {
  if constexpr (kPeepholes) {
    gates.i += weight.i * c_prev;
    gates.f += weight.f * c_prev;
  }
  Math::activate(gates.i, gates.f, gates.g);
  return gates.f * c_prev + gates.i * gates.g;
}

// The second half: turns the pre-activation of o into an activation, and returns h.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE Value cell_output(Gates<Value>& gates, const Peepholes<Value>& weight, Value c) {
  if constexpr (kPeepholes) gates.o += weight.o * c;
  Math::activate(gates.o, c);
  return gates.o * c;
}

// Turns `gates` from pre-activations into activations and `c` from c' into c; returns h.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE Value cell_forward(Gates<Value>& gates, const Peepholes<Value>& weight, Value& c) {
  c = next_cell<Math, kPeepholes>(gates, weight, c);
  return cell_output<Math, kPeepholes>(gates, weight, c);
}

// Returns the gradient of o's pre-activation. On entry `dc` is the gradient of c from later steps,
// on return from this step's h too. Adds to `dweight`.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE Value cell_output_backward(Value o, Value c, Value dh,
                                           const Peepholes<Value>& weight, Value& dc,
                                           Peepholes<Value>& dweight) {
  const Value tanh_c = Math::tanh(c);
  const Value d = dh * tanh_c * o * (1 - o);
  dc += dh * o * (1 - tanh_c * tanh_c);
  if constexpr (kPeepholes) {
    dc += weight.o * d;
    dweight.o += d * c;
  }
  return d;
}

// Writes the gradients of the other pre-activations to `d`, and turns `dc` from the gradient of c
// into that of c'. Adds to `dweight`.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE void next_cell_backward(const Gates<Value>& gates, Value c_prev,
                                        const Peepholes<Value>& weight, Value& dc, Gates<Value>& d,
                                        Peepholes<Value>& dweight) {
  const auto [i, f, g, o] = gates;
  d.i = dc * g * i * (1 - i);
  d.f = dc * c_prev * f * (1 - f);
  d.g = dc * i * (1 - g * g);
  dc = dc * f;
  if constexpr (kPeepholes) {
    dc += weight.i * d.i + weight.f * d.f;
    dweight.i += d.i * c_prev;
    dweight.f += d.f * c_prev;
  }
}

// Returns the gradients of the pre-activations, from the activations, c', c and dh. On entry
// `dc` is the gradient of c from later steps, on return that of c'. Adds to `dweight`.
template <class Math, bool kPeepholes, class Value = typename Math::Value>
FASTLSTM_INLINE Gates<Value> cell_backward(const Gates<Value>& gates, Value c_prev, Value c,
                                           Value dh, const Peepholes<Value>& weight, Value& dc,
                                           Peepholes<Value>& dweight) {
  Gates<Value> d;
  d.o = cell_output_backward<Math, kPeepholes>(gates.o, c, dh, weight, dc, dweight);
  next_cell_backward<Math, kPeepholes>(gates, c_prev, weight, dc, d, dweight);
  return d;
}

}  // namespace
}  // namespace fastlstm
