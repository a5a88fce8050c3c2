// The copies that packing.h makes, in the order in which tiles are read.
//
// A strip is [run of kRun words][piece][kRun words][columns], a sliver [run][piece][kMaxRows][kRun
// words], and a block of rows [run][piece][rows][kRun words]: 16 rows of each are a tile. A word is
// two neighbours in depth, as bfloat16; of a float that is in pieces, the two neighbours' pieces.
#pragma once

#include <cfloat>
#include <cstring>

#include "tiles.h"
#include "transpose.h"

namespace fastlstm::cpu {
namespace {

// Bytes of a packed copy of the rows of one product.
template <class S>
constexpr int64_t kRowsRoom = kDepth * kMaxRows<S> * int64_t{sizeof(Word<S>)};

#if defined(FASTLSTM_TILES)

// kRun words of each piece: of 32 neighbours in depth in one row, or of 16 columns in two rows.
template <class S>
struct Words {
  Simd<float>::Bits piece[kPieces<S>];
};

// Clamps infinities to the largest float, because cut() would turn them into NaN. NaN stays NaN.
FASTLSTM_INLINE Simd<float>::Value finite(Simd<float>::Value x) {
  using V = Simd<float>;
  return V::clamp(x, -FLT_MAX - V::Value{}, FLT_MAX - V::Value{});
}
// Returns the upper 8 bits of the mantissa of every lane, and subtracts them from `x` exactly.
FASTLSTM_INLINE Simd<float>::Bits cut(Simd<float>::Value& x) {
  using V = Simd<float>;
  const V::Bits upper = (V::Bits)x & int32_t(0xffff0000);
  x -= (V::Value)upper;
  return upper;
}

// The first `count` lanes of a vector; `count` may be negative, or more than the vector has.
FASTLSTM_INLINE SomeLanes lanes_below(int64_t count) {
  const int64_t lanes = Simd<float>::kLanes;
  return {static_cast<int32_t>(count < 0 ? 0 : count < lanes ? count : lanes)};
}

// The words of up to 32 neighbours in depth. Those from `count` on are zero.
FASTLSTM_INLINE Words<BFloat16> words_along(const BFloat16* from, int64_t count) {
  Words<BFloat16> words;
  const auto mask = static_cast<__mmask32>(count >= 32 ? ~uint32_t{0} : (1u << count) - 1);
  words.piece[0] = (Simd<float>::Bits)_mm512_maskz_loadu_epi16(mask, from);
  return words;
}
FASTLSTM_INLINE Words<SplitFloat> words_along(const SplitFloat* from, int64_t count) {
  using V = Simd<float>;
  V::Value low = finite(V::load(from, lanes_below(count)));
  V::Value high = finite(V::load(from + V::kLanes, lanes_below(count - V::kLanes)));
  typedef uint16_t Upper __attribute__((vector_size(kVectorBytes)));
  Upper upper;
  for (int i = 0; i < 32; ++i) upper[i] = static_cast<uint16_t>(2 * i + 1);
  Words<SplitFloat> words;
  for (V::Bits& piece : words.piece) {
    const V::Bits a = cut(low), b = cut(high);
    piece = (V::Bits)_mm512_permutex2var_epi16((__m512i)a, (__m512i)upper, (__m512i)b);
  }
  return words;
}

// The words of 16 columns in two neighbouring rows of depth. A row beyond the depth is null: zero.
template <class Lanes>
FASTLSTM_INLINE Words<BFloat16> words_across(const BFloat16* first, const BFloat16* second,
                                             Lanes lanes) {
  using V = Simd<float>;
  Words<BFloat16> words{};
  if (first) words.piece[0] = V::widen(first, lanes);
  if (second) words.piece[0] |= V::widen(second, lanes) << 16;
  return words;
}
template <class Lanes>
FASTLSTM_INLINE Words<SplitFloat> words_across(const SplitFloat* first, const SplitFloat* second,
                                               Lanes lanes) {
  using V = Simd<float>;
  V::Value low = {}, high = {};
  if (first) low = finite(V::load(first, lanes));
  if (second) high = finite(V::load(second, lanes));
  Words<SplitFloat> words;
  for (V::Bits& piece : words.piece) {
    piece = (V::Bits)((V::Wrapping)cut(low) >> 16) | cut(high);
  }
  return words;
}

// Stores the kRun words of each piece, `piece` bytes apart.
template <class S>
FASTLSTM_INLINE void store_words(const Words<S>& words, char* to, int64_t piece) {
  for (int i = 0; i < kPieces<S>; ++i) std::memcpy(to + i * piece, &words.piece[i], kVectorBytes);
}
// Stores the words of 16 rows as the transposed tile, whose rows lie `stride` bytes apart.
template <class S>
FASTLSTM_INLINE void store_transposed(const Words<S>* words, char* to, int64_t stride,
                                      int64_t piece) {
  for (int i = 0; i < kPieces<S>; ++i) {
    Simd<float>::Value square[kRun];
    for (int row = 0; row < kRun; ++row) square[row] = (Simd<float>::Value)words[row].piece[i];
    transpose<float>(square);
    for (int row = 0; row < kRun; ++row) {
      std::memcpy(to + i * piece + row * stride, &square[row], kVectorBytes);
    }
  }
}

// pack_transposed: `rows` neighbouring rows become the columns of one vector of a strip.
template <class S>
void pack_tiles_transposed(const S* first, int64_t stride, int64_t rows, int64_t depth,
                           Word<S>* strip, int vector, int vectors) {
  const Matrix to = strip_matrix<S>(strip, vectors);
  char* at = to.data + vector * kTileRowBytes;
  for (int64_t k = 0; k < depth; k += 2 * kRun, at += to.run) {
    Words<S> words[kRun] = {};
    for (int64_t row = 0; row < kRun && row < rows; ++row) {
      words[row] = words_along(first + row * stride + k, depth - k);
    }
    store_transposed(words, at, to.stride, to.piece);
  }
}

// pack_rows for one vector of a strip of tiles.
template <class S, class RowAt>
FASTLSTM_INLINE void pack_tile_rows(const RowAt& row, int64_t depth, int64_t column,
                                    int64_t columns, Word<S>* strip, int vector, int vectors) {
  const Matrix to = strip_matrix<S>(strip, vectors);
  for (int64_t word = 0; word < words_of<S>(depth); ++word) {
    const S* first = 2 * word < depth ? row(2 * word) + column : nullptr;
    const S* second = 2 * word + 1 < depth ? row(2 * word + 1) + column : nullptr;
    char* at = to.data + word / kRun * to.run + word % kRun * to.stride + vector * kTileRowBytes;
    if (column + kLanes<S> <= columns) {
      store_words(words_across(first, second, AllLanes{}), at, to.piece);
    } else {
      store_words(words_across(first, second, lanes_below(columns - column)), at, to.piece);
    }
  }
}

// pack_slivers for tiles.
template <class S>
void pack_tile_slivers(const S* const* rows, int64_t depth, int64_t first, int64_t last,
                       int64_t columns, Word<S>* slivers) {
  for (int64_t column = first; column < last; column += kRun) {
    const int64_t row = (column - first) % kMaxRows<S>;
    const Matrix to =
        rows_matrix<S>(slivers + (column - first - row) * words_of<S>(depth), kMaxRows<S>);
    char* at = to.data + row * kTileRowBytes;
    for (int64_t k = 0; k < depth; k += 2 * kRun, at += to.run) {
      Words<S> words[kRun];
      for (int64_t i = 0; i < kRun; ++i) {
        const int64_t here = k + 2 * i;
        const S* low = here < depth ? rows[here] + column : nullptr;
        const S* high = here + 1 < depth ? rows[here + 1] + column : nullptr;
        words[i] = column + kLanes<S> <= columns
                       ? words_across(low, high, AllLanes{})
                       : words_across(low, high, lanes_below(columns - column));
      }
      store_transposed(words, at, to.stride, to.piece);
    }
  }
}

// pack_row_blocks for row `r` of a block of tiles.
template <class S>
FASTLSTM_INLINE void pack_tile_row(const S* row, int64_t depth, const Matrix& block, int64_t r) {
  char* at = block.data + r * block.stride;
  for (int64_t k = 0; k < depth; k += 2 * kRun, at += block.run) {
    store_words(words_along(row + k, depth - k), at, block.piece);
  }
}

// The matrix that multiply_on_tiles reads for rows that are not packed: the rows in place, if tiles
// can be loaded from there, else a copy in `room`, which has kRowsRoom bytes.
template <class S>
FASTLSTM_INLINE Matrix unpacked_rows(const S* const* rows, int count, int64_t depth, char* room) {
  if (kPieces<S> == 1 && depth % (2 * kRun) == 0 && are_even(rows, count)) {
    char* data = const_cast<char*>(reinterpret_cast<const char*>(rows[0]));
    return {data, stride_of(rows, count), kTileRowBytes, 0};
  }
  const Matrix block = rows_matrix<S>(reinterpret_cast<Word<S>*>(room), count);
  for (int r = 0; r < count; ++r) pack_tile_row(rows[r], depth, block, r);
  return block;
}

#else

// Declarations for machines without tiles: the code that names them is never instantiated.
template <class S>
void pack_tiles_transposed(const S* first, int64_t stride, int64_t rows, int64_t depth,
                           Word<S>* strip, int vector, int vectors);
template <class S, class RowAt>
void pack_tile_rows(const RowAt& row, int64_t depth, int64_t column, int64_t columns,
                    Word<S>* strip, int vector, int vectors);
template <class S>
void pack_tile_slivers(const S* const* rows, int64_t depth, int64_t first, int64_t last,
                       int64_t columns, Word<S>* slivers);
template <class S>
void pack_tile_row(const S* row, int64_t depth, const Matrix& block, int64_t r);
template <class S>
Matrix unpacked_rows(const S* const* rows, int count, int64_t depth, char* room);

#endif

}  // namespace
}  // namespace fastlstm::cpu
