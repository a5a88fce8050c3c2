// The memory of a stepping object (csrc/stream.h) as the kernels see it.
//
// The object lays this out once, and packs the weights; stream_run() then allocates nothing. Sizes
// are those of csrc/lstm.h; P is H without a projection.
//
// A packed matrix is cut into panels of four vectors of words. For W_ih and W_hh the vectors are
// the gates i, f, g, o of as many hidden units as a vector has lanes; for W_hr they are rows
// that lie next to each other. A word holds one float32, two bfloat16 or four int8, neighbours in
// depth (along a row). Units and depth beyond the end are zero, and so are rows of numbers beyond
// theirs: they are padded to a multiple of kPadding.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastlstm::cpu {

enum class WeightType : int32_t { float32 = 0, bfloat16 = 1, int8 = 2 };

constexpr int64_t numbers_per_word(WeightType type) {
  return type == WeightType::float32 ? 1 : type == WeightType::bfloat16 ? 2 : 4;
}

constexpr int64_t kPadding = 16;
constexpr int64_t padded(int64_t size) { return (size + kPadding - 1) / kPadding * kPadding; }

struct StreamMatrix {
  uint32_t* words;  // (panels, words of depth, 4, lanes)
  // Only of int8, (panels, 4, lanes): a row of the matrix is `scale` times its integers, and
  // `offset` is -32768 times their sum; see multiply_quantized().
  float *scale, *offset;
  int64_t depth;  // in numbers: the columns of the matrix

  int64_t words_of_depth(WeightType type) const {
    return (depth + numbers_per_word(type) - 1) / numbers_per_word(type);
  }
};

struct StreamLayer {
  StreamMatrix weight_ih, weight_hh, weight_hr;  // weight_hr only with a projection
  float* bias;                                   // (panels, 4, lanes), the sum of both
  float* peepholes;                              // (panels, 3, lanes)
  bool has_peepholes;
  float* h;          // (max_steps + 1, B, padded(P)): slots, see stream.cpp
  float* c;          // (B, padded(H))
  float *h_0, *c_0;  // (padded(P)), (padded(H)): the state from which a row starts
};

struct StreamPlan {
  WeightType type;
  bool has_projection;
  int64_t B, I, H, P, L;
  int64_t max_steps;  // of run() that are computed layer by layer
  StreamLayer* layers;
  float* gate_sums;    // (panels, max_steps * B, 4, lanes)
  float* unprojected;  // (B, padded(H)): h before the projection
  char* scratch;       // num_threads times scratch_bytes
  size_t scratch_bytes;
  void* progress;    // num_threads cache lines, for the barrier
  int num_threads;   // of the next call
  int most_threads;  // that the caller allows
  bool has_vnni;     // VPDPBUSD multiplies bytes
  int64_t slot;      // of h now: 0 or 1
};

// Bytes of scratch for one thread, which multiplies up to `rows` rows of up to `widest` numbers.
constexpr size_t stream_scratch(int64_t rows, int64_t I, int64_t widest) {
  const int64_t of_a_row = padded(I) * 4 + padded(widest) * 2 + 4 * kPadding * 4 + 32;
  return (rows * of_a_row + 8 * 64) / 64 * 64;
}

// T steps of x (T, B, I) and y (T, B, P). Strides count elements and may be negative; the last
// dimension of y is contiguous.
struct StreamCall {
  int64_t T;
  const float* x;
  int64_t x_stride[3];
  float* y;
  int64_t y_stride[2];
};

}  // namespace fastlstm::cpu
