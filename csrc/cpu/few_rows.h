// The products of a step of a few rows with all panels of a tile, in one function.
//
// With H = 64 and two rows, a panel takes 0.14 us. Calling multiply_strips for each panel took
// half as long again.
#pragma once

#include "products.h"
#include "schedule.h"

namespace fastlstm::cpu {
namespace {

// Neighbouring panels of packed weights: the words, and the numbers of gate sums, from one panel to
// the next one.
template <class S>
struct Panels {
  const Word<S>* weights;
  int64_t count, words, gate_sums;
};

// Whether add_products computes a product, unless its weights have to be prefetched. One row is
// left to multiply_strips: its speed is limited by the reads of the weights, 5% more with this.
template <class S>
constexpr bool is_few_rows(int64_t count, int64_t depth) {
  return !kOnTiles<S> && count > 1 && count <= kMaxRows<S> && depth <= kChunk<S> &&
         depth % Format<S>::kPerWord == 0;
}

// For each of the panels, the gate sums at c[r] += rows[r] (depth) x panel. The sums begin with
// what they are added to.
template <class S, int kRows>
__attribute__((noinline)) void add_products(const S* const* rows, Sum<S>* const* c, int64_t depth,
                                            const Panels<S>& panels) {
  using V = Simd<Sum<S>>;
  using Vector = typename V::Value;
  constexpr int kSets = kRows * kColumns >= 8 ? 1 : 2;
  const int64_t words = depth / Format<S>::kPerWord;
  for (int64_t i = 0; i < panels.count * kStrips; ++i) {
    const int64_t panel = i / kStrips, strip = i % kStrips;
    const int64_t at = panel * panels.gate_sums + strip * kStripWidth<S>;
    const Vector* b = reinterpret_cast<const Vector*>(panels.weights + panel * panels.words +
                                                      strip * strip_words<S>(depth));
    Vector sum[kSets][kRows][kColumns] = {};
    RowsApart<S, kRows> words_of_rows(rows);
    const auto multiply = [&](int set) {
      multiply_add<S, kRows, kColumns>(words_of_rows, b, sum[set]);
      words_of_rows.next();
      b += kColumns;
    };
    int64_t k = 0;
    for (; k + kSets <= words; k += kSets) {
#pragma GCC unroll 2
      for (int set = 0; set < kSets; ++set) multiply(set);
    }
    if (k < words) multiply(0);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kColumns; ++v) {
        if constexpr (kSets == 2) sum[0][r][v] += sum[1][r][v];
        Sum<S>* to = c[r] + at + v * V::kLanes;
        V::store(to, sum[0][r][v] + V::load(to, AllLanes{}), AllLanes{});
      }
    }
  }
}

// The same for `count` rows, of which operand(i) says what to multiply and where to add.
template <class S, class OperandAt>
FASTLSTM_INLINE void add_products(int64_t count, int64_t depth, const Panels<S>& panels,
                                  const OperandAt& operand) {
  const S* rows[kMaxRows<S>];
  Sum<S>* c[kMaxRows<S>];
  for (int64_t i = 0; i < count; ++i) {
    const Operand<S> at = operand(i);
    rows[i] = at.row, c[i] = at.c;
  }
  with_count<kMaxRows<S>>(static_cast<int>(count), [&](auto size) {
    constexpr int kRows = decltype(size)::value;
    if constexpr (is_few_rows<S>(kRows, 0)) add_products<S, kRows>(rows, c, depth, panels);
  });
}

}  // namespace
}  // namespace fastlstm::cpu
