// The types that kernels store and multiply: loads, stores and products. The rest of the kernels is
// the same for all types.
#pragma once

#include "cell.h"
#include "cuda/kernels.h"
#include "cuda/primitives.cuh"

namespace fastlstm::cuda {

// Convert a stored number to a float or double, and back.
__device__ __forceinline__ float to_sum(__nv_bfloat16 stored) { return __bfloat162float(stored); }
__device__ __forceinline__ float to_sum(__half stored) { return __half2float(stored); }
__device__ __forceinline__ float to_sum(float stored) { return stored; }
__device__ __forceinline__ double to_sum(double stored) { return stored; }

template <class Stored>
using Sum = decltype(to_sum(Stored{}));

__device__ __forceinline__ void store(__nv_bfloat16* to, float value) {
  *to = __float2bfloat16_rn(value);
}
__device__ __forceinline__ void store(__half* to, float value) { *to = __float2half_rn(value); }
__device__ __forceinline__ void store(float* to, float value) { *to = value; }
__device__ __forceinline__ void store(double* to, double value) { *to = value; }

// Four adjacent numbers, written in one access.
template <class Stored>
struct alignas(4 * sizeof(Stored)) Four {
  Stored numbers[4];
};
template <class Stored>
__device__ __forceinline__ Four<Stored> four(float a, float b, float c, float d) {
  Four<Stored> result;
  store(&result.numbers[0], a);
  store(&result.numbers[1], b);
  store(&result.numbers[2], c);
  store(&result.numbers[3], d);
  return result;
}

// The functions of cell.h's Math that apply several activations.
template <class Math, class Value>
struct Activations {
  __device__ __forceinline__ static void activate(Value& i, Value& f, Value& g) {
    i = Math::sigmoid(i);
    f = Math::sigmoid(f);
    g = Math::tanh(g);
  }
  __device__ __forceinline__ static void activate(Value& o, Value& c) {
    o = Math::sigmoid(o);
    c = Math::tanh(c);
  }
};

// For cell.h. exp2 and the division in float are the hardware's: 2 units in the last place each.
template <class Value_>
struct GateMath;

template <>
struct GateMath<float> : Activations<GateMath<float>, float> {
  using Value = float;
  __device__ __forceinline__ static float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  }
  __device__ __forceinline__ static float tanh(float x) { return ::tanhf(x); }
};

template <>
struct GateMath<double> : Activations<GateMath<double>, double> {
  using Value = double;
  __device__ __forceinline__ static double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }
  __device__ __forceinline__ static double tanh(double x) { return ::tanh(x); }
};

// Elements whose fragments are multiplied as they are stored.
struct PlainWords {
  static constexpr Products kProducts =
      Products::tf32;  // also for types other than float32, which are not split
  template <int kWords>
  struct Words {
    uint32_t of[kWords];
  };
  template <int kWords>
  __device__ __forceinline__ static Words<kWords> words(const uint32_t (&from)[kWords]) {
    Words<kWords> same;
#pragma unroll
    for (int i = 0; i < kWords; ++i) same.of[i] = from[i];
    return same;
  }
};

// An element of a product: `Stored` in memory, kPerWord of them in 32 bits of a fragment. `word`
// makes a word of weights from memory, and `operand` converts a number for the operand. Words<n>
// are n words of a fragment in the form that `multiply` takes, made by `words`. `multiply` adds the
// product of two fragments to d.
template <class Number>
struct HalfElement : PlainWords {
  using Stored = Number;
  using Bits = uint16_t;
  static constexpr int kPerWord = 2;

  __device__ __forceinline__ static uint32_t word(const Bits (&weights)[2]) {
    return weights[0] | uint32_t{weights[1]} << 16;
  }
  __device__ __forceinline__ static float operand(float value) { return value; }
  __device__ __forceinline__ static void multiply(float (&d)[4], const Words<4>& a,
                                                  const Words<2>& b) {
    multiply_add(Number{}, d, a.of, b.of);
  }
};

using BFloat16Element = HalfElement<__nv_bfloat16>;
using Float16Element = HalfElement<__half>;

// float32 with 10 bits of mantissa in products.
struct Tf32Element : PlainWords {
  using Stored = float;
  using Bits = float;
  static constexpr int kPerWord = 1;

  __device__ __forceinline__ static uint32_t word(const Bits (&weights)[1]) {
    return round_to_tf32(weights[0]);
  }
  __device__ __forceinline__ static float operand(float value) {
    return __uint_as_float(round_to_tf32(value));
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const Words<4>& a,
                                                  const Words<2>& b) {
    multiply_add(Tf32{}, d, a.of, b.of);
  }
};

// float32 with 21 bits of mantissa in products: each number is split into the sum of two with 10
// bits. Of the four products the smallest is left out, and the largest is added last.
struct Tf32x3Element {
  static constexpr Products kProducts = Products::tf32x3;
  using Stored = float;
  using Bits = float;
  static constexpr int kPerWord = 1;
  template <int kWords>
  struct Words {
    uint32_t high[kWords], low[kWords];
  };

  __device__ __forceinline__ static uint32_t word(const Bits (&weights)[1]) {
    return __float_as_uint(weights[0]);
  }
  __device__ __forceinline__ static float operand(float value) { return value; }
  template <int kWords>
  __device__ __forceinline__ static Words<kWords> words(const uint32_t (&from)[kWords]) {
    Words<kWords> split;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const float value = __uint_as_float(from[i]);
      split.high[i] = round_to_tf32(value);
      split.low[i] = round_to_tf32(value - __uint_as_float(split.high[i]));
    }
    return split;
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const Words<4>& a,
                                                  const Words<2>& b) {
    multiply_add(Tf32{}, d, a.low, b.high);
    multiply_add(Tf32{}, d, a.high, b.low);
    multiply_add(Tf32{}, d, a.high, b.high);
  }
};

}  // namespace fastlstm::cuda
