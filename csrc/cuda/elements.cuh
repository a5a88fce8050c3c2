// The types that kernels store and multiply: how a number is read and written, and how two of them
// make a sum. The rest of the kernels is the same for all.
#pragma once

#include "cell.h"
#include "cuda/primitives.cuh"

namespace fastlstm::cuda {

// Of every type that is stored: a float or a double of it, and back.
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

// Four numbers side by side, written at once.
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

// For cell.h. exp2 and the division in float are the hardware's: 2 units in the last place each.
template <class Value_>
struct GateMath;

template <>
struct GateMath<float> {
  using Value = float;
  __device__ __forceinline__ static float sigmoid(float x) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  }
  __device__ __forceinline__ static float tanh(float x) { return ::tanhf(x); }
};

template <>
struct GateMath<double> {
  using Value = double;
  __device__ __forceinline__ static double sigmoid(double x) { return 1 / (1 + ::exp(-x)); }
  __device__ __forceinline__ static double tanh(double x) { return ::tanh(x); }
};

// An element of a product: `Stored` in memory, kPerWord in 32 bits of a fragment. `word` turns the
// weights of a word as they lie in memory into it, `operand` a number into what products read of
// it, and `multiply` adds a product of fragments to d.
template <class Number>
struct HalfElement {
  using Stored = Number;
  using Bits = uint16_t;
  static constexpr int kPerWord = 2;

  __device__ __forceinline__ static uint32_t word(const Bits (&weights)[2]) {
    return weights[0] | uint32_t{weights[1]} << 16;
  }
  __device__ __forceinline__ static float operand(float value) { return value; }
  __device__ __forceinline__ static void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    multiply_add(Number{}, d, a, b);
  }
};

using BFloat16Element = HalfElement<__nv_bfloat16>;
using Float16Element = HalfElement<__half>;

// float32 with 10 bits of mantissa in products.
struct Tf32Element {
  using Stored = float;
  using Bits = float;
  static constexpr int kPerWord = 1;

  __device__ __forceinline__ static uint32_t word(const Bits (&weights)[1]) {
    return round_to_tf32(weights[0]);
  }
  __device__ __forceinline__ static float operand(float value) {
    return __uint_as_float(round_to_tf32(value));
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    multiply_add(Tf32{}, d, a, b);
  }
};

// float32 with 21 bits of mantissa in products: each number is the sum of two of 10 bits, and of
// the four products the three that matter are made, the small ones first.
struct Tf32x3Element {
  using Stored = float;
  using Bits = float;
  static constexpr int kPerWord = 1;

  __device__ __forceinline__ static uint32_t word(const Bits (&weights)[1]) {
    return __float_as_uint(weights[0]);
  }
  __device__ __forceinline__ static float operand(float value) { return value; }
  template <int kWords>
  __device__ __forceinline__ static void split(const uint32_t (&from)[kWords],
                                               uint32_t (&high)[kWords], uint32_t (&low)[kWords]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      high[i] = round_to_tf32(__uint_as_float(from[i]));
      low[i] = round_to_tf32(__uint_as_float(from[i]) - __uint_as_float(high[i]));
    }
  }
  __device__ __forceinline__ static void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
    uint32_t a_high[4], a_low[4], b_high[2], b_low[2];
    split(a, a_high, a_low);
    split(b, b_high, b_low);
    multiply_add(Tf32{}, d, a_low, b_high);
    multiply_add(Tf32{}, d, a_high, b_low);
    multiply_add(Tf32{}, d, a_high, b_high);
  }
};

}  // namespace fastlstm::cuda
