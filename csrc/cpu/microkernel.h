// The one inner loop: a few rows times one packed panel, with the whole product in registers.
//
// A panel is [k][4 vectors]. Forward, the four vectors are the four gates of the same hidden units,
// so that the cell follows at once; backward, they are 4V neighbouring columns. With 32 registers
// 6 x 4 accumulators leave room for the panel's row and a broadcast: 24 multiply-adds for 10 loads.
#pragma once

#include "simd.h"

namespace fastlstm::cpu {
namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kMaxRows = 6;  // 32 vector registers
#else
constexpr int kMaxRows = 3;  // 16 vector registers
#endif
constexpr int kPanelVectors = 4;

// Products added up in one register before the sum goes to memory. The error of a sum grows with
// its length: in float32, one chain over the 4H = 1024 of a backward step was 1.4e-6 off.
constexpr int64_t kChain = 256;

template <class T>
constexpr int kPanelWidth = kPanelVectors * Simd<T>::kLanes;

template <class T, int kRows, class Value = typename Simd<T>::Value>
FASTLSTM_INLINE void multiply_add(const T* const* row, const Value* panel, int64_t k,
                                  Value (&sum)[kRows][kPanelVectors]) {
  Value b[kPanelVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVectors; ++v) b[v] = panel[k * kPanelVectors + v];
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kPanelVectors; ++v) sum[r][v] += row[r][k] * b[v];
  }
}

// product (kRows, panel width) = rows (kRows, depth) x panel (depth, panel width), all of it
// aligned but the rows. A single row would wait for its own sums (4 of them, while two units of
// latency 4 want 8), so it keeps two sets: one for the even k, one for the odd.
template <class T, int kRows>
__attribute__((noinline)) void multiply_rows(const T* const* rows, const T* panel, int64_t depth,
                                             T* product) {
  using Value = typename Simd<T>::Value;
  constexpr int kSets = kRows == 1 ? 2 : 1;
  const T* row[kRows];
  for (int r = 0; r < kRows; ++r) row[r] = rows[r];

  const Value* vector = reinterpret_cast<const Value*>(panel);
  Value* out = reinterpret_cast<Value*>(product);
  int64_t k = 0;
  do {
    const bool first = k == 0;
    const int64_t end = depth - k < kChain ? depth : k + kChain;
    Value sum[kSets][kRows][kPanelVectors] = {};
    for (; k + kSets <= end; k += kSets) {
#pragma GCC unroll 2
      for (int set = 0; set < kSets; ++set) multiply_add(row, vector, k + set, sum[set]);
    }
    if (kSets == 2 && k < end) multiply_add(row, vector, k++, sum[0]);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) {
        if constexpr (kSets == 2) sum[0][r][v] += sum[1][r][v];
        Value& total = out[r * kPanelVectors + v];
        total = first ? sum[0][r][v] : total + sum[0][r][v];
      }
    }
  } while (k < depth);
}

template <class T>
FASTLSTM_INLINE void multiply(int count, const T* const* rows, const T* panel, int64_t depth,
                              T* product) {
  switch (count) {
    case 1:
      return multiply_rows<T, 1>(rows, panel, depth, product);
    case 2:
      return multiply_rows<T, 2>(rows, panel, depth, product);
    case 3:
      return multiply_rows<T, 3>(rows, panel, depth, product);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 4:
      return multiply_rows<T, 4>(rows, panel, depth, product);
    case 5:
      return multiply_rows<T, 5>(rows, panel, depth, product);
    case 6:
      return multiply_rows<T, 6>(rows, panel, depth, product);
#endif
  }
}

}  // namespace
}  // namespace fastlstm::cpu
