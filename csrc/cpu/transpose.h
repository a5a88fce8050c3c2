// The transpose of a square of vectors, and the sums of its rows, in registers.
#pragma once

#include "simd.h"

namespace fastlstm::cpu {
namespace {

// Transposes a square of vectors by swapping its off-diagonal quarters, then theirs, and so on:
// log2(lanes) rounds of one shuffle per vector.
template <class T, int kDistance>
FASTLSTM_INLINE void transpose_round(typename Simd<T>::Value* square) {
  using V = Simd<T>;
  constexpr int kLanes = V::kLanes;
  typename V::Bits upper, lower;
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool stays = (lane & kDistance) == 0;
    upper[lane] = stays ? lane : kLanes + lane - kDistance;
    lower[lane] = stays ? lane + kDistance : kLanes + lane;
  }
#pragma GCC unroll 16
  for (int row = 0; row < kLanes; ++row) {
    if (row & kDistance) continue;
    const auto a = square[row], b = square[row + kDistance];
    square[row] = __builtin_shuffle(a, b, upper);
    square[row + kDistance] = __builtin_shuffle(a, b, lower);
  }
}

template <class T>
FASTLSTM_INLINE void transpose(typename Simd<T>::Value* square) {
  constexpr int kLanes = Simd<T>::kLanes;
  if constexpr (kLanes > 8) transpose_round<T, 8>(square);
  if constexpr (kLanes > 4) transpose_round<T, 4>(square);
  if constexpr (kLanes > 2) transpose_round<T, 2>(square);
  transpose_round<T, 1>(square);
}

// Adds up the lanes of each vector of a square: lane i of square[0] becomes the sum of square[i].
// A round halves the number of vectors. It takes half as many shuffles as a transpose.
template <class T, int kDistance = Simd<T>::kLanes / 2>
FASTLSTM_INLINE void sum_lanes(typename Simd<T>::Value* square) {
  constexpr int kLanes = Simd<T>::kLanes;
  typename Simd<T>::Bits same, other;
#pragma GCC unroll 16
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool second = (lane & kDistance) != 0;
    same[lane] = second ? kLanes + lane : lane;
    other[lane] = second ? kLanes + lane - kDistance : lane + kDistance;
  }
#pragma GCC unroll 16
  for (int row = 0; row < kDistance; ++row) {
    const auto a = square[row], b = square[row + kDistance];
    square[row] = __builtin_shuffle(a, b, same) + __builtin_shuffle(a, b, other);
  }
  if constexpr (kDistance > 1) sum_lanes<T, kDistance / 2>(square);
}

}  // namespace
}  // namespace fastlstm::cpu
