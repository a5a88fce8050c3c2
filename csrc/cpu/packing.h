// Copies of matrices in the order in which the microkernel reads them.
//
// A panel is 4 vectors wide, in strips of kColumns vectors: [strip][word of depth][kColumns]. In
// the forward pass its vectors are the four gates of the same hidden units, so that the cell
// follows at once; elsewhere they are neighbouring columns. A sliver is up to kMaxRows rows:
// [word of depth][kMaxRows], or, for tiles, [run of kRun words][kMaxRows][kRun]. Whatever lies
// beyond an edge of a panel is zero.
#pragma once

#include <cstddef>
#include <cstring>

#include "tiles.h"

namespace fastlstm::cpu {
namespace {

constexpr int kPanelVectors = 4;
constexpr int kStrips = kPanelVectors / kColumns;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t greater(int64_t a, int64_t b) { return a > b ? a : b; }

template <class S>
constexpr int kLanes = Simd<Sum<S>>::kLanes;
template <class S>
constexpr int kStripWidth = kColumns * kLanes<S>;
template <class S>
constexpr int kPanelWidth = kPanelVectors * kLanes<S>;

// The depth that is multiplied, and packed, at a time.
template <class S>
constexpr int64_t kChunk = kDepth * Format<S>::kPerWord;

// The depth of a product in words, whole runs of them for tiles, and the words of a strip and of a
// panel.
template <class S>
constexpr int64_t words_of(int64_t depth) {
  constexpr int64_t kWhole = kOnTiles<S> ? kRun : 1;
  return ceil_div(depth, Format<S>::kPerWord * kWhole) * kWhole;
}
template <class S>
constexpr int64_t strip_words(int64_t depth) {
  return words_of<S>(depth) * kStripWidth<S>;
}
template <class S>
constexpr int64_t panel_words(int64_t depth) {
  return words_of<S>(depth) * kPanelWidth<S>;
}

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

// `rows` neighbouring rows, `stride` apart, of which `depth` numbers count -> columns: a vector for
// each word of the depth, `step` words apart. Two neighbours of bfloat16 move as one word.
template <class S>
FASTLSTM_INLINE void pack_transposed(const S* first, int64_t stride, int64_t rows, int64_t depth,
                                     Word<S>* to, int64_t step) {
  using V = Simd<Sum<S>>;
  constexpr int kUnits = kLanes<S>, kPerWord = Format<S>::kPerWord;
  const int64_t words = words_of<S>(depth);
  for (int64_t word = 0; word < words; word += kUnits) {
    const S* from = first + word * kPerWord;
    const int64_t left = depth - word * kPerWord;
    typename V::Value square[kUnits];
    if (rows >= kUnits && left >= kUnits * kPerWord) {
#pragma GCC unroll 16
      for (int row = 0; row < kUnits; ++row) {
        std::memcpy(&square[row], from + row * stride, sizeof(square[row]));  // any even address
      }
    } else {
      std::memset(square, 0, sizeof(square));
      for (int row = 0; row < lesser(rows, kUnits); ++row) {
        std::memcpy(&square[row], from + row * stride, lesser(left, kUnits * kPerWord) * sizeof(S));
      }
    }
    transpose<Sum<S>>(square);
    for (int64_t row = 0; row < lesser(kUnits, words - word); ++row) {
      std::memcpy(to + (word + row) * step, &square[row], sizeof(square[row]));
    }
  }
}

// weight (4H, D) -> panel (depth, 4 gates): the gates of the hidden units `unit` and on, along
// columns k0 to k0 + depth.
template <class S>
void pack_gates(const S* weight, int64_t H, int64_t D, int64_t unit, int64_t k0, int64_t depth,
                Word<S>* panel) {
  for (int gate = 0; gate < 4; ++gate) {
    Word<S>* strip = panel + gate / kColumns * strip_words<S>(depth) + gate % kColumns * kLanes<S>;
    pack_transposed(weight + (gate * H + unit) * D + k0, D, H - unit, depth, strip, kStripWidth<S>);
  }
}

// weight (P, D) -> strip (D, kStripWidth): its rows `first` and on become columns. The last strip
// is narrow where it can be.
template <class S>
void pack_columns(const S* weight, int64_t P, int64_t D, int64_t first, Word<S>* strip) {
  const int vectors = vectors_of<S>(P - first);
  for (int v = 0; v < vectors; ++v) {
    const int64_t row = first + v * kLanes<S>;
    const int64_t rows = row < P ? P - row : 0;
    pack_transposed(weight + lesser(row, P - 1) * D, D, rows, D, strip + v * kLanes<S>,
                    vectors * kLanes<S>);
  }
}

// Rows row(0) to row(depth - 1) -> strips (depth, kStripWidth): their columns `first` and on, as
// far as `columns`. A strip that reaches beyond is narrow where it can be.
template <class S, class RowAt>
FASTLSTM_INLINE void pack_rows(const RowAt& row, int64_t depth, int64_t first, int64_t columns,
                               int strips, Word<S>* panel) {
  using V = Simd<Sum<S>>;
  const int64_t words = words_of<S>(depth);
  for (int64_t word = 0; word < words; ++word) {
    for (int strip = 0; strip < strips; ++strip) {
      const int64_t begin = first + strip * kStripWidth<S>;
      const int vectors = vectors_of<S>(columns - begin);
      Word<S>* to = panel + strip * words * kStripWidth<S> + word * vectors * V::kLanes;
      for (int v = 0; v < vectors; ++v, to += V::kLanes) {
        const int64_t column = begin + v * V::kLanes;
        const auto copy = [&](auto lanes) {
          if constexpr (std::is_same_v<S, BFloat16>) {
            typename V::Bits pair = {};
            if (2 * word < depth) pair = V::widen(row(2 * word) + column, lanes);
            if (2 * word + 1 < depth) pair |= V::widen(row(2 * word + 1) + column, lanes) << 16;
            std::memcpy(to, &pair, sizeof(pair));
          } else {
            V::store(to, V::load(row(word) + column, lanes), AllLanes{});
          }
        };
        if (column + V::kLanes <= columns) {
          copy(AllLanes{});
        } else if (column < columns) {
          copy(SomeLanes{static_cast<int32_t>(columns - column)});
        } else {
          std::memset(to, 0, V::kLanes * sizeof(*to));
        }
      }
    }
  }
}

// Eight neighbouring words.
constexpr int kEight = 8;
template <class Item>
struct Eight {
  typedef Item Items __attribute__((vector_size(kEight * sizeof(Item))));
};

// How far a row of a sliver is from the one before, and how its words follow each other.
template <class S>
constexpr int64_t kSliverRow = kOnTiles<S> ? kRun : 1;
template <class S>
constexpr Spacing kSliverSpacing =
    kOnTiles<S> ? Spacing{1, (kMaxRows<S> - 1) * kRun} : Spacing{kMaxRows<S>, 0};

// Columns first to last of rows[0] to rows[depth - 1], `columns` wide -> slivers for tiles: a
// square of kRun words of depth and as many columns at a time.
inline void pack_tile_slivers(const BFloat16* const* rows, int64_t depth, int64_t first,
                              int64_t last, int64_t columns, uint32_t* slivers) {
  using V = Simd<float>;
  const int64_t words = words_of<BFloat16>(depth);
  const auto pack = [&](int64_t word, int64_t column, auto lanes) {
    V::Value square[kRun];
    for (int64_t i = 0; i < kRun; ++i) {
      const int64_t k = 2 * (word + i);
      V::Bits pair = {};
      if (k < depth) pair = V::widen(rows[k] + column, lanes);
      if (k + 1 < depth) pair |= V::widen(rows[k + 1] + column, lanes) << 16;
      square[i] = (V::Value)pair;
    }
    transpose<float>(square);
    const int64_t row = (column - first) % kMaxRows<BFloat16>;
    std::memcpy(slivers + (column - first - row) * words + (word * kMaxRows<BFloat16> + row * kRun),
                square, sizeof(square));
  };
  for (int64_t column = first; column < last; column += V::kLanes) {
    for (int64_t word = 0; word < words; word += kRun) {
      if (column + V::kLanes <= columns) {
        pack(word, column, AllLanes{});
      } else {
        pack(word, column, SomeLanes{static_cast<int32_t>(columns - column)});
      }
    }
  }
}

// Columns first to last of rows[0] to rows[depth - 1], `columns` wide -> slivers, each kMaxRows of
// those columns. Eight words of depth at a time, since slivers lie where they share sets of L1; and
// eight columns at a time where that is harmless: the two too many are overwritten by the next
// word. Word by word it took 3 to 13% of the product that follows.
template <class S>
void pack_slivers(const S* const* rows, int64_t depth, int64_t first, int64_t last, int64_t columns,
                  Word<S>* slivers) {
  if constexpr (kOnTiles<S>) return pack_tile_slivers(rows, depth, first, last, columns, slivers);
  constexpr int kPerWord = Format<S>::kPerWord;
  const int64_t words = words_of<S>(depth);
  const auto pack = [&](int64_t word, int64_t column, int64_t count, Word<S>* to) {
    for (int64_t i = column; i < column + count; ++i, ++to) {
      if constexpr (kPerWord == 2) {
        const int64_t k = word * 2;
        *to = rows[k][i].bits | (k + 1 < depth ? uint32_t{rows[k + 1][i].bits} << 16 : 0);
      } else {
        *to = rows[word][i];
      }
    }
  };
  const auto pack_eight = [&](int64_t word, int64_t column, Word<S>* to) {
    using Words = typename Eight<Word<S>>::Items;
    Words eight;
    if constexpr (kPerWord == 2) {
      typename Eight<uint16_t>::Items low, high;
      std::memcpy(&low, rows[word * 2] + column, sizeof(low));
      std::memcpy(&high, rows[word * 2 + 1] + column, sizeof(high));
      eight = __builtin_convertvector(low, Words) | __builtin_convertvector(high, Words) << 16;
    } else {
      std::memcpy(&eight, rows[word] + column, sizeof(eight));
    }
    std::memcpy(to, &eight, sizeof(eight));
  };
  for (int64_t begin = 0; begin < words; begin += kEight) {
    const int64_t end = lesser(begin + kEight, words);
    for (int64_t column = first; column < last; column += kMaxRows<S>) {
      Word<S>* to = slivers + (column - first) * words + begin * kMaxRows<S>;
      const int64_t count = lesser(kMaxRows<S>, last - column);
      const bool by_eights = count == kMaxRows<S> && column + kEight <= columns;
      int64_t word = begin;
      for (; by_eights && word < lesser(end, words - 1); ++word, to += kMaxRows<S>) {
        pack_eight(word, column, to);
      }
      for (; word < end; ++word, to += kMaxRows<S>) pack(word, column, count, to);
    }
  }
}

}  // namespace
}  // namespace fastlstm::cpu
