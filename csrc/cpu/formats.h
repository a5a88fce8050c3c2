// How numbers are multiplied, and in which words and chunks they are packed for it.
//
// Vectors multiply float and double as they are, and bfloat16 two neighbours in depth at a time. On
// tiles (tiles.h) so are bfloat16, and a float is three of them, the sum of which it is: each cut
// off where it has 8 bits, none rounded. Six of the nine products of two such floats are as exact
// as float32; the other three lie below its last bit. On registers alone that is 2.1 times the
// speed of the vectors, 507 GFLOP/s a core against 242. Tiles take what is below 1e-38 for zero: of
// a float below 1e-33 the smaller pieces are lost.
#pragma once

#include <type_traits>

#include "simd.h"

namespace fastlstm::cpu {
namespace {

#if defined(__AMX_BF16__) && !defined(FASTLSTM_VECTOR_BYTES)
#define FASTLSTM_TILES
#endif

// Whether such numbers are multiplied on tiles, and as the sum of how many bfloat16.
#if defined(FASTLSTM_TILES)
template <class S>
constexpr bool kOnTiles = std::is_same_v<S, BFloat16> || std::is_same_v<S, SplitFloat>;
#else
template <class S>
constexpr bool kOnTiles = false;
#endif
template <class S>
constexpr int kPieces = std::is_same_v<S, SplitFloat> ? 3 : 1;

// Rows that are multiplied at a time, and vectors of a strip: what tiles or registers hold.
template <class S>
constexpr int kMaxRows = kOnTiles<S> ? 32 : 6;
#if defined(__AVX512F__) || defined(__aarch64__) || defined(FASTLSTM_MANY_REGISTERS)
constexpr int kColumns = 4;
#else
constexpr int kColumns = 2;
#endif

// Words of one strip that are multiplied before the sums go to memory. The strip then stays in L1
// or close to it while rows pass by, and no sum in one register grows long: in float32, one chain
// over the 4H = 1024 products of a backward step was 1.4e-6 off.
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

// Words of a row in pack_row_blocks' blocks.
template <class S>
constexpr int64_t block_words(int64_t depth) {
  return ceil_div(words_of<S>(depth), kRun) * kRun;
}

// The vectors of a strip of which `columns` are left: kColumns, or for fewer columns a half or one.
// Without narrow strips a backward pass with H = 38 and I = 8 took 1.6 times as long.
template <class S>
constexpr int vectors_of(int64_t columns) {
  constexpr int kLanes = Simd<Sum<S>>::kLanes;
  return columns > kColumns / 2 * kLanes ? kColumns : columns > kLanes ? kColumns / 2 : 1;
}

}  // namespace
}  // namespace fastlstm::cpu
