// Copies of W_hh in the order in which the microkernel reads them. Made once per call: O(H^2) work
// next to the O(T B H^2) of the recurrence, but seen in full at T = 1, so both are vectorised.
#pragma once

#include <cstddef>

#include "microkernel.h"

namespace fastlstm::cpu {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Transposes a square of vectors by swapping its off-diagonal quarters, then theirs, and so on:
// log2(lanes) rounds of one shuffle per vector.
template <class T, int kDistance>
FASTLSTM_INLINE void transpose_round(typename Simd<T>::Value* square) {
  using S = Simd<T>;
  using Bits = typename S::Bits;
  constexpr int kLanes = S::kLanes;
  Bits upper, lower;
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

// weight (4H, H) -> panel (H, 4, lanes): the four gates of hidden units `panel_index` * lanes and
// on, zero past H.
template <class T>
void pack_forward(const T* weight, int64_t H, int64_t panel_index, T* panel) {
  using S = Simd<T>;
  constexpr int kLanes = S::kLanes;
  const int64_t unit = panel_index * kLanes;
  const int64_t units = H - unit < kLanes ? H - unit : kLanes;
  for (int gate = 0; gate < 4; ++gate) {
    for (int64_t k = 0; k < H; k += kLanes) {
      const int64_t depth = H - k < kLanes ? H - k : kLanes;
      const T* from = weight + (gate * H + unit) * H + k;
      typename S::Value square[kLanes];
      if (units == kLanes && depth == kLanes) {
#pragma GCC unroll 16
        for (int row = 0; row < kLanes; ++row) square[row] = S::load(from + row * H, AllLanes{});
      } else {
        for (int row = 0; row < kLanes; ++row) {
          square[row] =
              S::load(from + row * H, SomeLanes{static_cast<int32_t>(row < units ? depth : 0)});
        }
      }
      transpose<T>(square);
      T* to = panel + (k * 4 + gate) * kLanes;
      for (int64_t row = 0; row < depth; ++row) {
        S::store(to + row * 4 * kLanes, square[row], AllLanes{});
      }
    }
  }
}

// weight (4H, H) -> panel (4H, 4 lanes): columns `panel_index` * 4 lanes and on, zero past H.
template <class T>
void pack_backward(const T* weight, int64_t H, int64_t panel_index, T* panel) {
  using S = Simd<T>;
  for (int64_t k = 0; k < 4 * H; ++k) {
    for (int v = 0; v < kPanelVectors; ++v) {
      const int64_t column = panel_index * kPanelWidth<T> + v * S::kLanes;
      const int64_t left = H - column;
      const T* from = weight + k * H + column;
      T* to = panel + k * kPanelWidth<T> + v * S::kLanes;
      if (left >= S::kLanes) {
        S::store(to, S::load(from, AllLanes{}), AllLanes{});
      } else {
        S::store(to, S::load(from, SomeLanes{static_cast<int32_t>(left > 0 ? left : 0)}),
                 AllLanes{});
      }
    }
  }
}

}  // namespace
}  // namespace fastlstm::cpu
