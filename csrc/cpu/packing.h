// Copies matrices to the layout in which the microkernel reads them.
//
// A panel is 4 vectors wide, in strips of kColumns vectors: [strip][word of depth][kColumns]. In
// the forward pass its vectors are the four gates of the same hidden units, so that the cell can be
// computed from its sums; elsewhere they are neighbouring columns. A sliver is up to kMaxRows rows:
// [word of depth][kMaxRows]. Panels are padded with zeros. tile_packing.h has the layouts for
// tiles.
#pragma once

#include <cstddef>
#include <cstring>

#include "microkernel.h"
#include "tile_packing.h"
#include "transpose.h"

namespace fastlstm::cpu {
namespace {

// Loads `count` numbers, at most a vector of words; the rest is zero.
template <class S>
FASTLSTM_INLINE typename Simd<Sum<S>>::Value load_words(const S* from, int64_t count) {
  using V = Simd<Sum<S>>;
  if constexpr (!std::is_same_v<S, BFloat16>) {
    return V::load(from, SomeLanes{static_cast<int32_t>(count)});
  } else {
#if defined(FASTLSTM_AVX512)
    const auto mask = static_cast<uint32_t>((uint64_t{1} << count) - 1);
    return (typename V::Value)_mm512_maskz_loadu_epi16(mask, from);
#else
    typename V::Value words = {};
    std::memcpy(&words, from, count * sizeof(S));
    return words;
#endif
  }
}

// Packs `depth` numbers of each of `rows` rows, `stride` apart, as the columns of one vector of a
// strip. Two neighbours of bfloat16 are moved as one word.
template <class S>
FASTLSTM_INLINE void pack_transposed(const S* first, int64_t stride, int64_t rows, int64_t depth,
                                     Word<S>* strip, int vector, int vectors) {
  if constexpr (kOnTiles<S>) {
    pack_tiles_transposed(first, stride, rows, depth, strip, vector, vectors);
  } else {
    using V = Simd<Sum<S>>;
    constexpr int kUnits = kLanes<S>, kPerWord = Format<S>::kPerWord;
    const int64_t words = words_of<S>(depth);
    typename V::Value square[kUnits];
    const auto store = [&](int64_t word) {
      std::memcpy(strip + (word * vectors + vector) * kUnits, &square[word % kUnits],
                  sizeof(square[0]));
    };
    for (int64_t word = 0; word < words; word += kUnits) {
      const S* from = first + word * kPerWord;
      const int64_t left = depth - word * kPerWord;
      if (rows >= kUnits && left >= kUnits * kPerWord) {
#pragma GCC unroll 16
        for (int row = 0; row < kUnits; ++row) {
          std::memcpy(&square[row], from + row * stride, sizeof(square[row]));  // any even address
        }
        transpose<Sum<S>>(square);
#pragma GCC unroll 16
        for (int row = 0; row < kUnits; ++row) store(word + row);
      } else {
        for (int64_t row = 0; row < kUnits; ++row) {
          const int64_t count = row < rows ? lesser(left, kUnits * kPerWord) : 0;
          square[row] = load_words(row < rows ? from + row * stride : first, count);
        }
        transpose<Sum<S>>(square);
        for (int64_t row = 0; row < lesser(kUnits, words - word); ++row) store(word + row);
      }
    }
  }
}

// Packs weight (4H, D) as a panel (depth, 4 gates): the gates of the hidden units from `unit` on,
// columns k0 to k0 + depth.
template <class S>
void pack_gates(const S* weight, int64_t H, int64_t D, int64_t unit, int64_t k0, int64_t depth,
                Word<S>* panel) {
  for (int gate = 0; gate < 4; ++gate) {
    pack_transposed(weight + (gate * H + unit) * D + k0, D, H - unit, depth,
                    panel + gate / kColumns * strip_words<S>(depth), gate % kColumns, kColumns);
  }
}

// Packs weight (P, D) as a strip (D, kStripWidth), whose columns are the rows from `first` on. The
// last strip may be narrower.
template <class S>
void pack_columns(const S* weight, int64_t P, int64_t D, int64_t first, Word<S>* strip) {
  const int vectors = vectors_of<S>(P - first);
  for (int v = 0; v < vectors; ++v) {
    const int64_t row = first + v * kLanes<S>;
    const int64_t rows = row < P ? P - row : 0;
    pack_transposed(weight + lesser(row, P - 1) * D, D, rows, D, strip, v, vectors);
  }
}

// Packs rows row(0) to row(depth - 1) as strips (depth, kStripWidth): their columns from `first` to
// `columns`. The last strip may be narrower.
template <class S, class RowAt>
FASTLSTM_INLINE void pack_rows(const RowAt& row, int64_t depth, int64_t first, int64_t columns,
                               int strips, Word<S>* panel) {
  using V = Simd<Sum<S>>;
  const int64_t words = words_of<S>(depth);
  const auto for_each_vector = [&](const auto& visit) {
    for (int strip = 0; strip < strips; ++strip) {
      const int64_t begin = first + strip * kStripWidth<S>;
      const int vectors = vectors_of<S>(columns - begin);
      for (int v = 0; v < vectors; ++v) {
        visit(panel + strip * words * kStripWidth<S>, v, vectors, begin + v * V::kLanes);
      }
    }
  };
  if constexpr (kOnTiles<S>) {
    for_each_vector([&](Word<S>* strip, int vector, int vectors, int64_t column) {
      pack_tile_rows<S>(row, depth, column, columns, strip, vector, vectors);
    });
  } else {
    for (int64_t word = 0; word < words; ++word) {
      for_each_vector([&](Word<S>* strip, int vector, int vectors, int64_t column) {
        Word<S>* to = strip + (word * vectors + vector) * V::kLanes;
        const auto copy = [&](auto lanes) {
          if constexpr (std::is_same_v<S, BFloat16>) {
            typename V::Bits pair = V::widen(row(2 * word) + column, lanes);
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
      });
    }
  }
}

// Eight neighbouring words.
constexpr int kEight = 8;
template <class Item>
struct Eight {
  typedef Item Items __attribute__((vector_size(kEight * sizeof(Item))));
};

// Packs columns first to last of rows[0] to rows[depth - 1], which are `columns` wide, as slivers
// of kMaxRows columns. It goes through eight words of depth at a time, because slivers fall into
// the same sets of L1. A sliver has six columns, but eight are copied at a time if there is room:
// the next word overwrites the other two. Copying one word at a time took 3 to 13% of the time of
// the product that follows.
template <class S>
void pack_slivers(const S* const* rows, int64_t depth, int64_t first, int64_t last, int64_t columns,
                  Word<S>* slivers) {
  if constexpr (kOnTiles<S>) {
    pack_tile_slivers<S>(rows, depth, first, last, columns, slivers);
  } else {
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
}

}  // namespace
}  // namespace fastlstm::cpu
