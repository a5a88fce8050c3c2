// The words and chunks in which numbers of each type are packed and multiplied.
//
// Vectors multiply float and double directly, and bfloat16 in pairs of neighbours in depth. Tiles
// (tiles.h) multiply pairs of bfloat16. There a float is split into the sum of three bfloat16, each
// of the next 8 bits, without rounding. Of the nine products of two split floats, six are computed,
// which is as exact as float32; the other three lie below its last bit. On registers alone that is
// 2.1 times as fast as vectors, 507 GFLOP/s a core against 242. Tiles treat numbers below 1e-38 as
// zero, so floats below 1e-33 lose their smaller pieces.
#pragma once

#include <type_traits>

#include "simd.h"

namespace fastlstm::cpu {
namespace {

#if defined(__AMX_BF16__) && !defined(FASTLSTM_VECTOR_BYTES)
#define FASTLSTM_TILES
#endif

// Whether numbers of a type are multiplied on tiles, and the number of pieces they are split into.
#if defined(FASTLSTM_TILES)
template <class S>
constexpr bool kOnTiles = std::is_same_v<S, BFloat16> || std::is_same_v<S, SplitFloat>;
#else
template <class S>
constexpr bool kOnTiles = false;
#endif
template <class S>
constexpr int kPieces = std::is_same_v<S, SplitFloat> ? 3 : 1;

// The rows that are multiplied at a time, and the vectors of a strip: as many as tiles or registers
// hold.
template <class S>
constexpr int kMaxRows = kOnTiles<S> ? 32 : 6;
#if defined(__AVX512F__) || defined(__aarch64__) || defined(FASTLSTM_MANY_REGISTERS)
constexpr int kColumns = 4;
#else
constexpr int kColumns = 2;
#endif

// The words of depth that are multiplied before the sums are stored. This keeps the strip in or
// near L1, and sums in a register short: in float32, one sum over the 4H = 1024 products of a
// backward step had an error of 1.4e-6.
constexpr int64_t kDepth = 256;

// Words of a row that lie together in a block of rows.
constexpr int64_t kRun = 16;

template <class S>
using Word = typename Format<S>::Word;
template <class S>
using Sum = typename Format<S>::Value;

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

// The depth, in numbers, that is multiplied and packed at a time.
template <class S>
constexpr int64_t kChunk = kDepth * Format<S>::kPerWord;

// The depth of a product in words (for tiles in whole runs), and the words of a strip and of a
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

// Words of a row in pack_row_blocks' blocks.
template <class S>
constexpr int64_t block_words(int64_t depth) {
  return ceil_div(words_of<S>(depth), kRun) * kRun;
}

// The vectors of a strip that has `columns` columns left: as many as they take, up to kColumns.
// Tiles are multiplied in pairs, so that there 3 vectors take as long as 4.
template <class S>
constexpr int vectors_of(int64_t columns) {
  const int vectors = static_cast<int>(lesser(greater(ceil_div(columns, kLanes<S>), 1), kColumns));
  return kOnTiles<S> && vectors == 3 ? 4 : vectors;
}

}  // namespace
}  // namespace fastlstm::cpu
