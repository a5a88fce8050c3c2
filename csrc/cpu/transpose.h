// The transpose of a square of vectors, and the sums of its rows, in registers.
#pragma once

#include <utility>

#include "simd.h"

namespace fastlstm::cpu {
namespace {

// Lane i of the result is lane kFrom(i) of `a` and `b` together, those of `b` counted from kLanes
// on.
#if defined(__clang__)
template <class T, int (*kFrom)(int), size_t... kLane>
FASTLSTM_INLINE
    typename Simd<T>::Value shuffle(typename Simd<T>::Value a, typename Simd<T>::Value b,
                                    std::index_sequence<kLane...>) {
  return __builtin_shufflevector(a, b, kFrom(kLane)...);
}
template <class T, int (*kFrom)(int)>
FASTLSTM_INLINE typename Simd<T>::Value shuffle(typename Simd<T>::Value a,
                                                typename Simd<T>::Value b) {
  return shuffle<T, kFrom>(a, b, std::make_index_sequence<Simd<T>::kLanes>());
}
#else  // g++ has __builtin_shufflevector from version 12 on
template <class T, int (*kFrom)(int)>
FASTLSTM_INLINE
    typename Simd<T>::Value shuffle(typename Simd<T>::Value a, typename Simd<T>::Value b) {
  typename Simd<T>::Bits from;
#pragma GCC unroll 16
  for (int lane = 0; lane < Simd<T>::kLanes; ++lane) from[lane] = kFrom(lane);
  return __builtin_shuffle(a, b, from);
}
#endif

// The halves of two rows kDistance apart, after their off-diagonal quarters were swapped.
template <int kLanes, int kDistance>
constexpr int upper(int lane) {
  return lane & kDistance ? kLanes + lane - kDistance : lane;
}
template <int kLanes, int kDistance>
constexpr int lower(int lane) {
  return lane & kDistance ? kLanes + lane : lane + kDistance;
}

// Transposes a square of vectors by swapping its off-diagonal quarters, then theirs, and so on:
// log2(lanes) rounds of one shuffle per vector.
template <class T, int kDistance>
FASTLSTM_INLINE void transpose_round(typename Simd<T>::Value* square) {
  constexpr int kLanes = Simd<T>::kLanes;
#pragma GCC unroll 16
  for (int row = 0; row < kLanes; ++row) {
    if (row & kDistance) continue;
    const auto a = square[row], b = square[row + kDistance];
    square[row] = shuffle<T, upper<kLanes, kDistance>>(a, b);
    square[row + kDistance] = shuffle<T, lower<kLanes, kDistance>>(a, b);
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

// The lanes of `a` in one half of the result and those of `b` in the other, and the lanes that are
// added to them.
template <int kLanes, int kDistance>
constexpr int same(int lane) {
  return lane & kDistance ? kLanes + lane : lane;
}
template <int kLanes, int kDistance>
constexpr int other(int lane) {
  return lane & kDistance ? kLanes + lane - kDistance : lane + kDistance;
}

// Adds up the lanes of each vector of a square: lane i of square[0] becomes the sum of square[i].
// A round halves the number of vectors. It takes half as many shuffles as a transpose.
template <class T, int kDistance = Simd<T>::kLanes / 2>
FASTLSTM_INLINE void sum_lanes(typename Simd<T>::Value* square) {
  constexpr int kLanes = Simd<T>::kLanes;
#pragma GCC unroll 16
  for (int row = 0; row < kDistance; ++row) {
    const auto a = square[row], b = square[row + kDistance];
    square[row] =
        shuffle<T, same<kLanes, kDistance>>(a, b) + shuffle<T, other<kLanes, kDistance>>(a, b);
  }
  if constexpr (kDistance > 1) sum_lanes<T, kDistance / 2>(square);
}

}  // namespace
}  // namespace fastlstm::cpu
